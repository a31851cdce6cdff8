"""The step path of a stream: a model's network, fast on hops of a few samples on a CPU.

`fuse(model)` gives an object with the model's interface for a `Stream`: same `network`, same
numbers to 1e-5, a fifth to an eighth of the time (results/benchmarks/cleanumamba.csv).
Channels are the last axis, so that a strided convolution is one product on overlapping windows.
Each layer is one call of a compiled kernel (`layers.kernels.step`), and all streams of a model
share the packed weights. It uses one thread: a hop is too short to divide. Several streams can run
in parallel, as the kernels release Python's lock.
"""

import importlib
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from speechlab.errors import UserError
from speechlab.models.cleanumamba import CleanUMamba

State = tuple[Any, ...]
STEPPERS = "speechlab.inference.cells"  # imported on first use, as it needs numba


class Fused:
    """A CleanUMamba whose `network` runs in kernels, without gradients; weights of now."""

    padded_length = CleanUMamba.padded_length
    sample_rate = CleanUMamba.sample_rate
    hop_length = CleanUMamba.hop_length
    frame_length = CleanUMamba.frame_length

    def __init__(self, model: CleanUMamba) -> None:
        steppers = importlib.import_module(STEPPERS)
        self.config = model.config
        self.n_sources, self.look_ahead = model.n_sources, model.look_ahead
        self.encoder = [steppers.EncoderStep(layer) for layer in model.encoder]
        self.conv_in = steppers.LinearStep(model.conv_in)
        self.bottleneck = steppers.StackStep(model.bottleneck)
        self.conv_out = steppers.LinearStep(model.conv_out)
        self.decoder = [steppers.DecoderStep(layer) for layer in model.decoder]
        down, up = (tuple(step.rest for step in part) for part in (self.encoder, self.decoder))
        waiting = tuple(np.zeros((0, step.n_out), np.float32) for step in self.encoder)
        self.rest = down, self.bottleneck.rest, up, waiting
        silence = torch.zeros(1, 1, self.frame_length)
        self.network(silence, None, False)  # compiles or loads every kernel now, not mid-stream

    def network(self, x: Tensor, state: State | None, last: bool) -> tuple[Tensor, State]:
        """`CleanUMamba.network` in float32: (B, 1, n) -> (B, 1, m) and the state, one per signal.

        A state is never modified, so it can be reused. UserError for another type than float32.
        """
        if x.dtype != torch.float32:
            raise UserError(f"the step path takes float32, not {x.dtype}")
        states = state or (self.rest,) * x.shape[0]
        signals = x.detach().numpy().transpose(0, 2, 1)
        steps = [
            self._step(np.ascontiguousarray(signal), before, last)
            for signal, before in zip(signals, states, strict=True)
        ]
        estimate = np.stack([y for y, _ in steps]).transpose(0, 2, 1)
        return torch.from_numpy(estimate), tuple(after for _, after in steps)

    def _step(self, x: np.ndarray, state: State, last: bool) -> tuple[np.ndarray, State]:
        """One signal: x (n, 1) -> (m, 1)."""
        down, between, up, waiting = state
        skips, tails = [], []
        for layer, tail, queue in zip(self.encoder, down, waiting, strict=True):
            x, tail, skip = layer(x, tail, queue)  # (L, C), L halved
            skips.append(skip)
            tails.append(tail)
        if len(x):
            x, between = self.bottleneck(self.conv_in(x), between)
            x = self.conv_out(x)
        histories, queues = [], []
        for layer, before, skip in zip(self.decoder, up, reversed(skips), strict=True):
            length = len(x)
            x, before = layer(x, skip, before, last)  # (L, C), L doubled
            histories.append(before)
            queues.append(skip[length:].copy() if length else skip)
        return x, (tuple(tails), between, tuple(histories), tuple(reversed(queues)))


def obstacle(model: nn.Module) -> str | None:
    """Why a model cannot be fused, or None."""
    if not isinstance(model, CleanUMamba):
        return f"the step path supports CleanUMamba, not {type(model).__name__}"
    kinds = {(p.device.type, p.dtype) for p in model.parameters()}
    if kinds != {("cpu", torch.float32)}:
        found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
        return f"the step path runs float32 on the CPU, the weights are {found}"
    try:
        importlib.import_module(STEPPERS)
    except ImportError as error:
        return f"the step path needs numba, which does not import ({error})"
    return None


def fuse(model: nn.Module) -> Fused:
    """The model's step path; packed once per model, and again after a change of its weights.

    Changes are detected by PyTorch's counters: in place or by assignment, not through `.data`.
    UserError with the reason of `obstacle`.
    """
    reason = obstacle(model)
    if reason:
        raise UserError(reason)
    stamp = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())
    stamp = (model.config, *stamp)
    known = _fused.get(model)
    if known is None or known[0] != stamp:
        _fused[model] = known = (stamp, Fused(model))
    return known[1]


_fused: WeakKeyDictionary[nn.Module, tuple[Any, Fused]] = WeakKeyDictionary()
