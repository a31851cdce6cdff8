"""Streaming: a causal model processes a signal chunk by chunk, with the samples of the whole file.

A `Stream` holds the state of one signal; the model holds none, so several streams share a model.
Samples come out as soon as no later input can change them; `flush` gives the rest.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from speechlab.audio.level import Level, guarded
from speechlab.audio.offset import CEILING, filtered
from speechlab.errors import UserError, unknown
from speechlab.inference.fused import fuse, obstacle
from speechlab.models.base import Model, arrays, check_finite

PATHS = {"fused": fuse, "modules": lambda model: model}
FAR = 10.0  # of full scale: samples beyond it are set to it; a float signal may be that loud

State = tuple[Tensor, ...]
Prepare = Callable[[Tensor, int, State | None], tuple[Tensor, State | None]]
# What happens to a chunk first, and to the model's level
LEVELS: dict[str, tuple[Prepare, Callable[[Level], Level]]] = {
    # the samples of `model(whole)`; a stream with a glitch recovers within a second
    "guarded": (lambda chunk, rate, state: (chunk.clamp(-FAR, FAR), state), guarded),
    # the same without an offset: the samples of `enhance_blocks` with the level "robust"
    "robust": (filtered, guarded),
    # the samples of `model(whole)`; a glitch lowers what follows for seconds
    "published": (lambda chunk, rate, state: (chunk, state), lambda level: level),
}
CEILINGS = {"guarded": FAR, "robust": CEILING}  # of full scale, where samples are cut


class Stream:
    """One signal through a causal model: `feed` it chunk by chunk, then `flush`.

    Chunks of any lengths give the samples of `model(whole)` to float32 rounding, except after a
    glitch and, with the level "robust", for the offset. The state has a constant size,
    `state_bytes`, and nothing in it drifts: running sums are float64.
    """

    def __init__(
        self, model: Model, path: str | None = None, level: str = "guarded", name: str = ""
    ) -> None:
        """path: "fused", the step kernels of `inference.fused`; "modules", the model's own code;
            None: fused where possible. The numbers are the same.
        level: name in LEVELS.
        name: of the signal, for errors.

        UserError with the reason of `refusal` for a model that needs its whole input first.
        """
        if reason := refusal(model):
            raise UserError(reason)
        if path not in (None, *PATHS):
            raise UserError(f"no path '{path}' for a stream; there are: {', '.join(PATHS)}")
        if level not in LEVELS:
            raise unknown("level of a stream", level, LEVELS)
        self._prepared, level_of = LEVELS[level]
        self.level = level_of(model.level)
        self.path = path or ("modules" if obstacle(model) else "fused")
        self.model = PATHS[self.path](model)
        self._name = name
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
        carried = (self._network_state, self._level_state, self._levels, self._filter_state)
        return sum(array.nbytes for array in arrays(carried))

    @torch.inference_mode()
    def feed(self, chunk: Tensor) -> Tensor:
        """The next samples, (B, 1, n >= 1) -> the estimate's final samples, (B, S, m >= 0).

        UserError for another shape, another B than before, or samples that are not finite; that
        chunk is skipped, and the stream continues with the next one.
        """
        self._check(chunk)
        rate = self.model.sample_rate
        chunk, filter_state = self._prepared(chunk, rate, self._filter_state)
        level, level_state = self.level.step(chunk, rate, self._level_state)
        levels = level.expand(chunk.shape)
        levels = levels if self._levels is None else torch.cat([self._levels, levels], -1)
        estimate = self._advance(chunk / level, levels, last=False)
        self._n_in += chunk.shape[-1]
        self._filter_state, self._level_state = filter_state, level_state
        return estimate

    @torch.inference_mode()
    def flush(self) -> Tensor:
        """End the signal: the estimate of its last samples, (B, S, m). The next one starts anew.

        feed and flush together return as many samples as were fed.
        """
        if self._levels is None:
            return torch.zeros(1, self.model.n_sources, 0)
        n_rest = self.model.padded_length(self._n_in) - self._n_in
        padding = self._levels.new_zeros(*self._levels.shape[:2], n_rest)
        estimate = self._advance(padding, self._levels, last=True)
        self._restart()
        return estimate

    def _restart(self) -> None:
        self._network_state = self._level_state = self._filter_state = None
        self._levels: Tensor | None = None  # of samples fed and not yet out, (B, 1, n)
        self._n_in = 0

    def _advance(self, x: Tensor, levels: Tensor, last: bool) -> Tensor:
        """An error leaves the state as it was."""
        x, state = self.model.network(x, self._network_state, last)
        x = x[..., : levels.shape[-1]]
        level, levels = levels.tensor_split([x.shape[-1]], -1)
        estimate = check_finite(x * level, self._name)
        self._network_state, self._levels = state, levels
        return estimate

    def _check(self, chunk: Tensor) -> None:
        if not isinstance(chunk, Tensor):
            raise UserError(f"a chunk is a torch.Tensor, not {type(chunk).__name__}")
        if chunk.dim() != 3 or chunk.shape[1] != 1 or 0 in chunk.shape:
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
