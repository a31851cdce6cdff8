"""The layers of a stream: weights packed once, `layer(x, state) -> (y, state)` on numpy arrays.

x (L, n_in): the next frames of one signal, channels last, any L; y (L, n_out). A state is a nested
tuple of arrays that are never modified, so it can be kept and reused. `rest` is the state before
the first frame. Each class computes one layer of `models.cleanumamba`, `layers.stacks` or
`layers.mixers`; the kernels are in `layers.kernels.step`.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from speechlab.layers.kernels import step
from speechlab.layers.kernels.elementary import CONSTANTS
from speechlab.layers.kernels.matmul import pack, padded
from speechlab.layers.mixers import LSTM, MHA, Mamba, Mamba2, MambaS4
from speechlab.layers.stacks import Block, Stack, TransformerLayer

State = tuple[Any, ...]
K = np.array(CONSTANTS, np.float32)
LOG2_E = np.float32(math.log2(math.e))


def empty(*shape: int) -> np.ndarray:
    """float32, to be filled"""
    return np.empty(shape, np.float32)


def zeros(*shape: int) -> np.ndarray:
    """float32"""
    return np.zeros(shape, np.float32)


def array(tensor: Tensor) -> np.ndarray:
    """A copy, so that further training does not change a stream."""
    return np.array(tensor.detach().numpy(), order="C")


def linear(layer: nn.Linear | nn.Conv1d) -> np.ndarray:
    """Packed weight and bias of a linear layer or a 1x1 convolution."""
    bias = None if layer.bias is None else array(layer.bias)
    return pack(array(layer.weight).reshape(len(layer.weight), -1).T, bias)


def taps(conv: nn.Conv1d) -> np.ndarray:
    """Depthwise convolution: (1 + d_conv, channels), oldest tap first, the bias last."""
    return np.concatenate([array(conv.weight)[:, 0].T, array(conv.bias)[None]])


def affine(norm: nn.LayerNorm) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """Weight, bias and epsilon of a layer normalisation."""
    return array(norm.weight), array(norm.bias), np.float32(norm.eps)


class EncoderStep:
    """`EncoderLayer`; state: samples for the next window, and frames that wait for the decoder."""

    def __init__(self, layer: nn.Module) -> None:
        conv = layer.down
        (self.kernel,), (self.stride,) = conv.kernel_size, conv.stride
        self.n_in, self.n_down = conv.in_channels, conv.out_channels
        self.n_out = layer.mix.out_channels // 2
        window = array(conv.weight).transpose(2, 1, 0).reshape(-1, self.n_down)
        self.down, self.mix = pack(window, array(conv.bias)), linear(layer.mix)
        self.per_frame = padded(self.n_down) + padded(2 * self.n_out)
        self.rest = zeros(0, self.n_in)

    def __call__(
        self, x: np.ndarray, tail: np.ndarray, waiting: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the new frames, the tail, and all frames that wait for the decoder."""
        if len(tail):
            x = np.concatenate((tail, x))
        n_frames = 1 + (len(x) - self.kernel) // self.stride
        n_in, n_waiting = self.n_in, len(waiting)
        if n_frames <= 0:
            return zeros(0, self.n_out), x.copy(), waiting
        skip = empty(n_waiting + n_frames, self.n_out)
        skip[:n_waiting] = waiting
        y = skip[n_waiting:]
        scratch = empty(n_frames * self.per_frame)
        window = self.kernel * n_in
        step.encode(x, self.stride * n_in, window, self.n_down, self.down, self.mix, scratch, y, K)
        return y, x[n_frames * self.stride :].copy(), skip


class DecoderStep:
    """`DecoderLayer`; state: the last frames on which the next samples depend.

    A transposed convolution is a convolution over ceil(kernel / stride) frames, see `step.decode`.
    """

    def __init__(self, layer: nn.Module) -> None:
        conv = layer.up
        (self.kernel,), (self.stride,) = conv.kernel_size, conv.stride
        self.n_in = layer.mix.in_channels
        self.n_up, self.n_out = conv.in_channels, conv.out_channels
        n_frames = -(-self.kernel // self.stride)
        weight = zeros(n_frames * self.stride, self.n_up, self.n_out)
        weight[: self.kernel] = array(conv.weight).transpose(2, 0, 1)
        # (frames back, stride, n_up, n_out) -> (oldest frame first, n_up, stride, n_out)
        weight = weight.reshape(n_frames, self.stride, self.n_up, self.n_out)[::-1].swapaxes(1, 2)
        weight = weight.reshape(n_frames * self.n_up, self.stride * self.n_out)
        self.up = pack(weight, np.tile(array(conv.bias), self.stride))
        self.mix = linear(layer.mix)
        self.activate = isinstance(layer.activation, nn.ReLU)
        self.per_frame = self.n_in + max(padded(2 * self.n_up), padded(self.stride * self.n_out))
        self.rest = zeros(n_frames - 1, self.n_up)

    def __call__(
        self, x: np.ndarray, skip: np.ndarray, before: np.ndarray, last: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the samples that are final; with `last`, all."""
        length, n_before = len(x), len(before)
        if not length and not last:
            return zeros(0, self.n_out), before
        n_rows = length + n_before * last
        n_samples = length * self.stride + (self.kernel - self.stride) * last
        frames, y = empty(n_before + n_rows, self.n_up), empty(n_samples, self.n_out)
        scratch = empty(n_rows * self.per_frame)
        step.decode(
            x, skip, before, self.mix, self.up, self.stride, self.activate, scratch, frames, y, K
        )
        return y, frames[n_rows:].copy()


class LinearStep:
    """A linear layer or 1x1 convolution; no state."""

    def __init__(self, layer: nn.Linear | nn.Conv1d) -> None:
        self.weight, self.n_out = linear(layer), layer.weight.shape[0]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = empty(len(x), self.n_out)
        step.linear(x, self.weight, empty(len(x) * padded(self.n_out)), y)
        return y


class NormStep:
    """Layer normalisation, or nothing for nn.Identity; no state."""

    def __init__(self, layer: nn.LayerNorm | nn.Identity) -> None:
        self.weights = affine(layer) if isinstance(layer, nn.LayerNorm) else None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.weights is None:
            return x
        y = np.empty_like(x)
        step.norm(x, *self.weights, y)
        return y


class Recurrence:
    """x + mixer(norm(x)) for a mixer with a short convolution; state: its tail, and the mixer's."""

    kernel: Any
    weights: tuple[Any, ...]
    rest: State
    per_frame: int  # scratch, float32

    def __call__(self, x: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        tail, h = state
        y, new_tail, new_h = np.empty_like(x), np.empty_like(tail), np.empty_like(h)
        scratch = empty(len(x) * self.per_frame + tail.size)
        self.kernel(x, tail, h, *self.weights, scratch, y, new_tail, new_h, K)
        return y, (new_tail, new_h)


class MambaStep(Recurrence):
    """`Block` of `Mamba`."""

    kernel = staticmethod(step.mamba)

    def __init__(self, block: Block) -> None:
        mixer = block.mixer
        (d_inner, d_state), d_model = mixer.A_log.shape, mixer.in_proj.in_features
        A = np.ascontiguousarray((-array(mixer.A_log.exp()) * LOG2_E).T)
        products = linear(mixer.in_proj), taps(mixer.conv1d), linear(mixer.x_proj)
        scan = linear(mixer.dt_proj), A, np.float32(mixer.leak) * LOG2_E, array(mixer.D)
        self.weights = (*affine(block.norm), *products, *scan, linear(mixer.out_proj))
        self.rest = zeros(len(mixer.conv1d.weight[0, 0]) - 1, d_inner), zeros(d_state, d_inner)
        chosen = padded(mixer.x_proj.out_features) + padded(d_inner)
        room = max(d_inner, chosen, padded(d_model))
        self.per_frame = padded(2 * d_inner) + d_inner + room


class Mamba2Step(Recurrence):
    """`Block` of `Mamba2`."""

    kernel = staticmethod(step.mamba2)

    def __init__(self, block: Block) -> None:
        mixer = block.mixer
        d_model, d_inner = mixer.in_proj.in_features, mixer.split[0]
        n_mixed, d_state = mixer.split[1], mixer.d_state
        z, mixed, dt = np.split(array(mixer.in_proj.weight), np.cumsum(mixer.split[:2]))
        w_in = pack(np.concatenate([mixed, z, dt]).T)
        decay = -array(mixer.A_log.exp()) * LOG2_E
        A, D = (np.repeat(row, mixer.d_head) for row in (decay, array(mixer.D)))
        A = np.ascontiguousarray(np.broadcast_to(A, (d_state, d_inner)))
        scan = array(mixer.dt_bias), A, np.float32(mixer.leak) * LOG2_E, D
        inner = array(mixer.norm.weight), np.float32(mixer.norm.eps)
        products = w_in, taps(mixer.conv1d)
        self.weights = (*affine(block.norm), *products, *scan, *inner, linear(mixer.out_proj))
        self.rest = zeros(len(mixer.conv1d.weight[0, 0]) - 1, n_mixed), zeros(d_state, d_inner)
        room = max(n_mixed, d_model, padded(d_model))
        self.per_frame = padded(sum(mixer.split)) + n_mixed + room


class MambaS4Step(Recurrence):
    """`Block` of `MambaS4`; its systems are discretised once and run in float64."""

    kernel = staticmethod(step.mamba_s4)

    def __init__(self, block: Block) -> None:
        mixer = block.mixer
        d_model, d_inner = mixer.in_proj.in_features, mixer.out_proj.in_features
        A_bar, b, c = (array(part) for part in mixer.s4.discretise())
        A_bar = np.ascontiguousarray(A_bar.swapaxes(1, 2))
        products = linear(mixer.in_proj), taps(mixer.conv1d), linear(mixer.s4_in)
        systems = A_bar, b, c, array(mixer.s4.D), linear(mixer.s4_out)
        self.weights = (*affine(block.norm), *products, *systems, linear(mixer.out_proj))
        n_past, (n_systems, d_state) = len(mixer.conv1d.weight[0, 0]) - 1, b.shape
        self.rest = zeros(n_past, d_inner), np.zeros((n_systems + 1, d_state))
        room = max(d_inner, d_model, padded(n_systems) + max(padded(2 * d_inner), padded(d_model)))
        self.per_frame = padded(2 * d_inner) + d_inner + room


class LSTMStep:
    """`LSTM`; state: hidden and cell, (1, d_model) each."""

    def __init__(self, layer: LSTM) -> None:
        lstm = layer.lstm
        self.w_in = pack(array(lstm.weight_ih_l0).T, array(lstm.bias_ih_l0 + lstm.bias_hh_l0))
        self.w_hidden = pack(array(lstm.weight_hh_l0).T)
        self.rest = zeros(1, lstm.hidden_size), zeros(1, lstm.hidden_size)

    def __call__(self, x: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        h, cell = state
        y, new_h, new_cell = np.empty_like(x), np.empty_like(h), np.empty_like(cell)
        scratch = empty((len(x) + 1) * padded(4 * x.shape[1]))
        step.lstm(x, h, cell, self.w_in, self.w_hidden, scratch, y, new_h, new_cell, K)
        return y, (new_h, new_cell)


class AttentionStep:
    """`TransformerLayer` of `MHA`; state: keys and values (e, 2 window), and what they hold.

    e is the width of all heads. New columns go behind `end`, where no older state looks, so that
    nothing is copied but every `window` frames. `filled` tells whether another continuation of the
    same state has written there: then, too, the window is copied first.
    """

    def __init__(self, layer: TransformerLayer) -> None:
        mixer: MHA = layer.mixer
        parts = (array(p.weight) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
        norms = [np.stack(affine(norm)[:2]) for norm in (layer.mixer_norm, layer.linear_norm)]
        self.window, self.n_keys = mixer.window, mixer.q_proj.out_features
        dense, n_hidden = (linear(layer.linear1), linear(layer.linear2)), layer.linear1.out_features
        products = pack(np.concatenate(list(parts)).T), linear(mixer.out_proj)
        eps = np.float32(layer.mixer_norm.eps)
        self.weights = mixer.window, mixer.n_heads, *products, *norms, eps, *dense, n_hidden
        d_model = mixer.out_proj.out_features
        self.per_frame = max(padded(3 * self.n_keys), padded(n_hidden)) + padded(d_model)
        self.rest = zeros(self.n_keys, 0), zeros(self.n_keys, 0), np.zeros(1, np.int64), 0, 0

    def __call__(self, x: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        y = np.empty_like(x)
        for first in range(0, len(x), self.window):
            part = x[first : first + self.window]
            keys, values, filled, start, end = state = self._room(state, len(part))
            scratch = empty(len(part) * self.per_frame + self.window)
            target = y[first : first + self.window]
            step.attend(part, start, end, keys, values, *self.weights, scratch, target, K)
            end += len(part)
            filled[0] = end
            state = keys, values, filled, max(start, end - self.window + 1), end
        return y, state

    def _room(self, state: State, length: int) -> State:
        """The state with room for `length` more frames behind it."""
        keys, values, filled, start, end = state
        if filled[0] == end and end + length <= keys.shape[1]:
            return state
        fresh = []
        for old in (keys, values):
            new = empty(self.n_keys, 2 * self.window)
            new[:, : end - start] = old[:, start:end]
            fresh.append(new)
        return *fresh, np.array([end - start]), 0, end - start


STEPS = {Mamba: MambaStep, Mamba2: Mamba2Step, MambaS4: MambaS4Step, MHA: AttentionStep}


class StackStep:
    """`Stack`; state: one per layer."""

    def __init__(self, stack: Stack) -> None:
        self.norm_in, self.norm_out = NormStep(stack.norm_in), NormStep(stack.norm_out)
        self.layers = [
            LSTMStep(layer) if isinstance(layer, LSTM) else STEPS[type(layer.mixer)](layer)
            for layer in stack.layers
        ]
        self.rest = tuple(layer.rest for layer in self.layers)

    def __call__(self, x: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        x, after = self.norm_in(x), []
        for layer, before in zip(self.layers, state, strict=True):
            x, layer_state = layer(x, before)
            after.append(layer_state)
        return self.norm_out(x), tuple(after)
