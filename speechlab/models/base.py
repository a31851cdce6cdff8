"""What every model has: configuration, rates, costs, one check of its input.

    Model          noisy (B, 1, T) -> estimate (B, S, T)
    ChunkedModel   a Model whose `network` takes a signal in chunks and carries a state
    check_finite   every door checks estimates with it: files, streams, scores

Callers read these properties. They do not ask for a model's class.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.audio.level import LEVELS, Level
from speechlab.config import Range, check
from speechlab.errors import UserError
from speechlab.layers.channels import Group
from speechlab.models.macs import macs_per_second

LONGEST_HOP = 2**20  # samples; an input is padded to whole hops
MOST_OVERLAP = 64  # frames that a sample is in; a spectrogram is as many times its signal
StateLeak = Annotated[float, Range(0.1, 86_400)] | None  # seconds to 1/e of a state; None: no leak


def check_hop(hop_length: int) -> None:
    """UserError for strides that together skip more than LONGEST_HOP samples."""
    if hop_length > LONGEST_HOP:
        raise UserError(
            f"the strides of all levels give a hop of more than {LONGEST_HOP} samples; "
            "choose fewer levels or a smaller stride"
        )


def check_overlap(n_fft: int, hop_length: int) -> None:
    """UserError for frames that overlap more than MOST_OVERLAP times."""
    if n_fft > MOST_OVERLAP * hop_length:
        raise UserError(
            f"hop_length must be n_fft / {MOST_OVERLAP} or more, not {hop_length} of {n_fft}"
        )


def leak(config: Any, hop_length: int) -> dict[str, float]:
    """The argument `leak` of Mamba layers with a frame per `hop_length` samples; none if off."""
    if config.state_leak_s is None:
        return {}
    return {"leak": hop_length / config.sample_rate / config.state_leak_s}


class Model(nn.Module):
    """noisy (B, 1, T) -> estimate (B, S, T), any T >= 1; the level is handled inside.

    config: all that is needed to build the model again. It has `sample_rate` (Hz) and, where the
    level can be chosen, `normalize`, a name in `LEVELS`.
    """

    n_sources = 1  # S: 1 enhances, more separates
    hop_length = 1  # samples between two frames
    look_ahead: int | None = None  # samples of future that an output sample needs; None: all
    needs_whole: str | None = None  # why the model cannot stream with any level, or None
    domain: Literal["waveform", "log_spectrum", "compressed_spectrum"] = "waveform"
    # How a long recording is processed:
    #   chunks    one chunk after another; `network` carries its state
    #   one_pass  chunks of `chunk_s` that overlap; the level is carried
    #   overlap   the same chunks, in one pass for each norm over the whole recording
    #   whole     all samples at once; a separator also takes overlapping chunks
    long_recordings: Literal["chunks", "one_pass", "overlap", "whole"] = "whole"
    chunk_s = 30.0  # seconds of a chunk that overlaps; spectral models then take about 3 GB

    def __init__(self, config: Any) -> None:
        """UserError for a setting of a wrong type or outside its range."""
        super().__init__()
        if is_dataclass(config):  # that of a test may be None
            check(config)
        self.config = config
        self.level = LEVELS[getattr(config, "normalize", "none")]

    @property
    def sample_rate(self) -> int:
        """Hz"""
        return self.config.sample_rate

    @property
    def device(self) -> torch.device:
        """That of its weights; its input must be there."""
        return next((weight.device for weight in self.parameters()), torch.device("cpu"))

    def macs(self, seconds: float) -> float:
        """Multiply-accumulates for so many seconds of input, counted as `models.macs` explains."""
        return seconds * macs_per_second(self, seconds)

    def layer_rates(self) -> Iterator[tuple[nn.Module, float]] | None:
        """Each layer and its applications per second; None where a forward pass shows them."""
        return None

    def channel_groups(self) -> dict[str, Group]:
        """Channels that can only be removed together, by name (`layers.channels`).

        UserError for a model that does not list them.
        """
        raise UserError(f"{type(self).__name__} lists no channel groups, so it cannot be pruned")

    def narrowed(self, widths: Mapping[str, int]) -> Any:
        """The configuration of this model with other widths of all its channel groups, by name."""
        raise UserError(f"{type(self).__name__} lists no channel groups, so it cannot be pruned")

    def check_shape(self, noisy: Tensor) -> None:
        """UserError for a shape other than (B, 1, T) with T >= 1."""
        if noisy.dim() != 3 or noisy.shape[1] != 1 or noisy.shape[2] == 0:
            name, shape = type(self).__name__, tuple(noisy.shape)
            raise UserError(f"{name} takes (B, 1, T) with T >= 1 samples, not {shape}")


def check_finite(estimate: Tensor, name: str = "") -> Tensor:
    """The estimate. UserError where it holds NaN or infinity; name: of the input, for the error."""
    if not estimate.isfinite().all():
        reason = "the model gave NaN or infinite samples; choose another checkpoint"
        raise UserError(f"{name}: {reason}" if name else reason)
    return estimate


def arrays(state: Any) -> Iterator[Tensor | np.ndarray]:
    """All tensors and arrays of a state: nested tuples."""
    if isinstance(state, Tensor | np.ndarray):
        yield state
    for part in state if isinstance(state, tuple) else ():
        yield from arrays(part)


def with_level(model: Model, level: Level) -> Model:
    """The model with another level, and the same layers; the given model stays as it is."""
    model = copy.copy(model)  # of the module alone
    model.level = level
    return model


class ChunkedModel(Model):
    """A whole signal is one chunk, so offline and streamed output are the same.

    A subclass has `frame_length`, `padded_length(length)` and `network(x, state, last)`. Where its
    configuration has a `direction`, "both" cannot stream.
    """

    @property
    def needs_whole(self) -> str | None:
        """Why the model cannot stream with any level, or None."""
        both = getattr(self.config, "direction", "forward") == "both"
        return "its layers see both directions" if both else None

    def refuse_part(self, state: Any, last: bool) -> None:
        """UserError for a part of a signal, if the model needs all of it."""
        if self.needs_whole and not (last and state is None):
            raise UserError(f"{type(self).__name__} needs whole signals: {self.needs_whole}")

    @property
    def look_ahead(self) -> int | None:
        """Samples of future that an output sample needs; None where it needs all of them."""
        streams = self.level.causal and not self.needs_whole
        return self.frame_length - 1 if streams else None

    @property
    def long_recordings(self) -> str:
        """`whole` where both directions are seen."""
        return "whole" if self.needs_whole else "chunks"

    def forward(self, noisy: Tensor) -> Tensor:
        """noisy: (B, 1, T) -> estimate (B, S, T). UserError for another shape or T = 0."""
        self.check_shape(noisy)
        length = noisy.shape[-1]
        level = self.level.of(noisy, self.sample_rate)  # (B, 1, 1) or (B, 1, T)
        x = F.pad(noisy / level, (0, self.padded_length(length) - length))
        x, _ = self.network(x, None, last=True)  # (B, S, T or more)
        return x[..., :length] * level
