"""Streaming: a causal model processes a signal chunk by chunk, with the samples of the whole file.

A `Stream` holds the state of one signal; the model holds none, so several streams share a model.
Samples come out as soon as no later input can change them; `flush` gives the rest.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechlab.errors import UserError
from speechlab.inference.fused import fuse, obstacle
from speechlab.models.base import Model

PATHS = {"fused": fuse, "modules": lambda model: model}


class Stream:
    """One signal through a causal model: `feed` it chunk by chunk, then `flush`.

    Chunks of any lengths give the samples of `model(whole)` to float32 rounding. The state has a
    constant size, `state_bytes`, and nothing in it drifts: running sums are float64.
    """

    def __init__(self, model: Model, path: str | None = None) -> None:
        """path: "fused", the step kernels of `inference.fused`; "modules", the model's own code;
        None: fused where possible. The numbers are the same.

        UserError with the reason of `refusal` for a model that needs its whole input first.
        """
        if reason := refusal(model):
            raise UserError(reason)
        if path not in (None, *PATHS):
            raise UserError(f"no path '{path}' for a stream; there are: {', '.join(PATHS)}")
        self.path = path or ("modules" if obstacle(model) else "fused")
        self.model = PATHS[self.path](model)
        self._weight = next(model.parameters())
        self._restart()

    @property
    def device(self) -> torch.device:
        """That of the weights; chunks must be there."""
        return self._weight.device

    @property
    def latency(self) -> int:
        """Samples of input that an output sample may wait for."""
        return self.model.look_ahead

    @property
    def latency_ms(self) -> float:
        """The same in milliseconds."""
        return 1000 * self.latency / self.model.sample_rate

    @property
    def state_bytes(self) -> int:
        """Size of the state that is carried from chunk to chunk."""
        carried = (self._network_state, self._level_state, self._levels)
        return sum(array.nbytes for array in _arrays(carried))

    @torch.inference_mode()
    def feed(self, chunk: Tensor) -> Tensor:
        """The next samples, (B, 1, n >= 1) -> the estimate's final samples, (B, S, m >= 0).

        UserError for another shape, another B than before, or samples that are not finite; that
        chunk is skipped, and the stream continues with the next one.
        """
        self._check(chunk)
        level, self._level_state = self.model.level.step(
            chunk, self.model.sample_rate, self._level_state
        )
        self._n_in += chunk.shape[-1]
        levels = level.expand(chunk.shape)
        self._levels = levels if self._levels is None else torch.cat([self._levels, levels], -1)
        return self._advance(chunk / level, last=False)

    @torch.inference_mode()
    def flush(self) -> Tensor:
        """End the signal: the estimate of its last samples, (B, S, m). The next one starts anew.

        feed and flush together return as many samples as were fed.
        """
        if self._levels is None:
            return torch.zeros(1, self.model.n_sources, 0)
        n_rest = self.model.padded_length(self._n_in) - self._n_in
        padding = self._levels.new_zeros(*self._levels.shape[:2], n_rest)
        estimate = self._advance(padding, last=True)
        self._restart()
        return estimate

    def _restart(self) -> None:
        self._network_state = self._level_state = None
        self._levels: Tensor | None = None  # of samples fed and not yet out, (B, 1, n)
        self._n_in = 0

    def _advance(self, x: Tensor, last: bool) -> Tensor:
        x, self._network_state = self.model.network(x, self._network_state, last)
        x = x[..., : self._levels.shape[-1]]
        level, self._levels = self._levels.tensor_split([x.shape[-1]], -1)
        return x * level

    def _check(self, chunk: Tensor) -> None:
        if chunk.dim() != 3 or chunk.shape[1] != 1 or chunk.shape[2] == 0:
            raise UserError(f"a chunk is (B, 1, n) with n >= 1 samples, not {tuple(chunk.shape)}")
        if self._levels is not None and self._levels.shape[0] != chunk.shape[0]:
            raise UserError(
                f"the stream began with B = {self._levels.shape[0]}, the chunk has {chunk.shape[0]}"
            )
        weight = self._weight
        if (chunk.dtype, chunk.device) != (weight.dtype, weight.device):
            raise UserError(
                f"a chunk is {weight.dtype} on {weight.device}, as the weights, not {chunk.dtype} "
                f"on {chunk.device}; convert it with chunk.to"
            )
        if not chunk.isfinite().all():
            raise UserError("the chunk holds NaN or infinite samples; it is skipped")


def refusal(model: Model) -> str | None:
    """Why a model cannot stream, in one line, or None.

    `needs_whole` of a model is the reason in its layers. Where that is None, its level is the
    reason.
    """
    if model.look_ahead is not None:
        return None
    kind, reason = type(model).__name__, model.needs_whole
    if reason is None:
        return (
            f'{kind} with normalize="{model.config.normalize}" needs the whole signal before its '
            'first sample; to stream, load it with normalize="running"'
        )
    command, others = "enhance", "CleanUMamba or a causal SEMambaBasic"
    if model.n_sources > 1:
        command, others = "separate", "a causal SepMamba"
    return (
        f"{kind} cannot stream: {reason}; use `speechlab {command}` for files, or stream {others}"
    )


def _arrays(state: Any) -> Iterator[Tensor | np.ndarray]:
    """All tensors and arrays of nested tuples."""
    if isinstance(state, Tensor | np.ndarray):
        yield state
    for part in state if isinstance(state, tuple) else ():
        yield from _arrays(part)
