"""The offset (DC) of a signal, which models were not trained with.

A file: `baseline`, the mean of every PIECE_S, interpolated. It is subtracted before a model and
added to its estimate. A stream: `high_pass`, which removes it for good.

The high-pass is of first order, -3 dB at CUTOFF_HZ. It has no delay. Its phase leads by
atan(CUTOFF_HZ / f): 3.4 degrees at 50 Hz, 1.7 at 100 Hz, 0.2 at 1 kHz. An offset that begins
suddenly is 1 / e of itself after 53 ms.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor

from speechlab.errors import UserError

CUTOFF_HZ = 3.0
CEILING = 2.0  # of full scale: samples beyond it are set to it before the high-pass
GLITCHES = 0.25  # of the samples of a file
PIECE_S = 2.0  # seconds of a mean; an offset may drift over a long recording

State = tuple[Tensor, ...]


def high_pass(chunk: Tensor, sample_rate: int, state: State | None = None) -> tuple[Tensor, State]:
    """The next samples (B, 1, n) without their offset, and the next state; None at the start.

    Chunks of any lengths give the samples of the whole. A signal begins as if after silence;
    digital silence stays silence. State: of the filter, (B, 1, 1) float64, which does not drift.
    """
    keep = math.exp(-2 * math.pi * CUTOFF_HZ / sample_rate)
    gain = (1 + keep) / 2  # so that the highest frequency passes unchanged
    x = chunk.detach().cpu().double()
    if not x.shape[-1]:
        return chunk, state or (torch.zeros(*x.shape[:2], 1, dtype=torch.float64),)
    before = x.new_zeros(*x.shape[:2], 1) if state is None else state[0]
    y, after = lfilter([gain, -gain], [1, -keep], x.numpy(), zi=before.numpy())
    return torch.from_numpy(y).to(chunk), (torch.from_numpy(after),)


def filtered(chunk: Tensor, sample_rate: int, state: State | None = None) -> tuple[Tensor, State]:
    """`high_pass` of samples that are at most CEILING."""
    return high_pass(chunk.clamp(-CEILING, CEILING), sample_rate, state)


@dataclass
class Glitches:
    """Counts the samples of a signal that are beyond a ceiling, where they are cut."""

    name: str  # of the signal
    ceiling: float  # of full scale
    n_beyond: int = 0
    n_samples: int = 0

    def add(self, block: Tensor) -> None:
        """The next samples, of any shape."""
        self.n_beyond += int(block.abs().gt(self.ceiling).sum())
        self.n_samples += block.numel()

    def check(self) -> None:
        """UserError for more than GLITCHES of the samples: the signal has another scale."""
        if self.n_beyond > GLITCHES * self.n_samples:
            raise UserError(
                f"{self.name}: {self.n_beyond} of {self.n_samples} samples are beyond "
                f"{self.ceiling:g} times full scale; divide it by its peak, or use the level "
                "published"
            )


@dataclass(frozen=True)
class Filtered:
    """Blocks (C, n) as the level "robust" of a stream has them: see `filtered`.

    name: of the signal, for the UserError of `Glitches`.
    """

    blocks: Iterable[Tensor]
    sample_rate: int
    name: str

    def __iter__(self) -> Iterator[Tensor]:
        state, glitches = None, Glitches(self.name, CEILING)
        for block in self.blocks:
            glitches.add(block)
            chunk, state = filtered(block[:, None], self.sample_rate, state)
            yield chunk[:, 0]
        glitches.check()


@dataclass(frozen=True)
class Offset:
    """Offsets (C, P) at the `centres` (P,) of pieces, in samples; linear between them."""

    centres: np.ndarray
    offsets: np.ndarray

    def at(self, samples: np.ndarray) -> Tensor:
        """(n,) positions in samples -> (C, n) float64."""
        rows = [np.interp(samples, self.centres, channel) for channel in self.offsets]
        return torch.from_numpy(np.stack(rows))

    def added(self, blocks: Iterable[Tensor], sign: int) -> Iterator[Tensor]:
        """Blocks (C, n) of a whole signal with the offset added or, with sign -1, subtracted."""
        n_before = 0
        for block in blocks:
            n_after = n_before + block.shape[-1]
            offset = self.at(np.arange(n_before, n_after) + 0.5)
            yield (block.double() + sign * offset).to(block)
            n_before = n_after


def baseline(means: Tensor, counts: Tensor, weights: Tensor, n_together: int) -> Offset:
    """The offset of a signal, from its blocks.

    means: of blocks, (C, L).
    counts: samples of each block, (L,).
    weights: samples that count, (C, L); where none of a piece does, all do.
    n_together: blocks of a piece; the last one has up to twice as many.

    A mean is exact in float64.
    """
    n_pieces = max(1, len(counts) // n_together)
    edges = torch.tensor([n_together * i for i in range(n_pieces)] + [len(counts)])
    sizes = edges.diff().tolist()
    ends = torch.stack([x.sum() for x in counts.split(sizes)]).cumsum(0)
    centres = (ends + torch.nn.functional.pad(ends, (1, 0))[:-1]) / 2
    offsets = []
    for x, n, w in zip(
        means.split(sizes, -1), counts.split(sizes), weights.split(sizes, -1), strict=True
    ):
        kept = torch.where(w.any(-1, keepdim=True), w, n)
        offsets.append((x * kept).sum(-1) / kept.sum(-1).clamp_min(1))
    return Offset(centres.numpy(), torch.stack(offsets, -1).numpy())
