"""A file made ready for a model: its offset out, at a level that one bang does not change.

    survey = Survey.of(blocks, sample_rate)      one pass over a signal in blocks (C, n)
    survey.offset                                what to subtract, or None
    survey.level(name)                           what to divide by, or None: the published level
    Softened(blocks, survey.gains, survey.length)     short loud events no louder than the rest

The robust level is the published one, but for three kinds of files (results/LOG.md, 2026-11-30):

- a short loud event, such as a bang: it counts with the power of the seconds around it;
- long silence: blocks GATE_DB below the loud ones do not count;
- soft input: below -40 dBFS, FLOOR shrinks with the level.

Where less than REST_S remain without events and silence, the level is the published one: one word
in a second of noise is no bang.

A separator also gets the event itself `Softened`: the peak of its input, its norms over time and
the gains of its estimates would follow a bang.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from speechlab.audio.files import rechunk
from speechlab.audio.level import BLOCK_S, FLOOR, LEAST, unlike
from speechlab.audio.offset import PIECE_S, Offset, baseline

AROUND = round(2.0 / BLOCK_S)  # blocks before and after an event
EVENT_BLOCKS = round(0.5 / BLOCK_S)  # it is at most so long
GATE_DB = 40.0  # below the mean of the powers, weighted by themselves
SOFT = 10.0  # the level is at least so many times the floor
NEGLIGIBLE = 0.02  # of the level: a smaller offset stays, it changes no estimate
BLOCK_LEAST = 128  # samples: below 4 kHz blocks are longer, so that memory stays a small share
TOGETHER = 250  # blocks judged at once; more take more memory

REST_S = 1.0  # seconds
FLOORS = {"utterance": FLOOR, "rms": 0.0}  # of the levels that have a robust form


@dataclass(frozen=True)
class Survey:
    """Of each block of a signal: number of samples (L,); mean and variance, (C, L), float64.

    ends: lowest and highest sample, (C, 2, L) float32.
    """

    counts: Tensor
    means: Tensor
    variances: Tensor
    ends: Tensor

    @classmethod
    def of(cls, blocks: Iterable[Tensor], sample_rate: int) -> "Survey":
        """Of blocks (C, n); reads them once."""
        length = max(BLOCK_LEAST, round(BLOCK_S * sample_rate))
        n_samples, means, variances, ends = 0, [], [], []
        for second in rechunk(blocks, 32 * length):
            for part in second.double().split(second.shape[-1] // length * length or length, -1):
                x = part.unflatten(-1, (-1, min(length, part.shape[-1])))  # (C, blocks, length)
                # copies are smaller: an array of a tensor keeps all of the tensor
                means.append(x.mean(-1).numpy().copy())
                variances.append(x.var(-1, correction=0).numpy().copy())
                ends.append(torch.stack(x.aminmax(dim=-1), -2).float().numpy().copy())
                n_samples += part.shape[-1]
        if not n_samples:
            nothing = torch.zeros(1, 1, dtype=torch.float64)
            return cls(nothing[0], nothing, nothing, nothing[:, None].expand(1, 2, 1))
        whole = [np.concatenate(x, -1) for x in (means, variances, ends)]
        counts = torch.full(whole[0].shape[-1:], length, dtype=torch.float64)
        counts[-1] = n_samples - length * (len(counts) - 1)
        return cls(counts, *map(torch.from_numpy, whole))

    @cached_property
    def offset(self) -> Offset | None:
        """The offset of each channel, 0 where it is negligible; None where it is in all."""
        found = self._baseline(self.counts.expand_as(self.means))
        powers = self._powers(found)
        found = self._baseline(self.counts * (_without_events(powers) == powers))
        level = self._judged(self._powers(found))[0].sqrt()  # (C,)
        largest = np.abs(found.offsets).max(-1)
        kept = largest > NEGLIGIBLE * level.numpy()
        return Offset(found.centres, found.offsets * kept[:, None]) if kept.any() else None

    def level(self, name: str) -> Tensor | None:
        """The level (C, 1, 1) after `offset`; None where it is the published level `name`."""
        power, robust, _ = self._judged(self._powers(self.offset))
        level, floor = power.sqrt(), FLOORS[name]
        if not (robust | (level < SOFT * floor)).any():
            return None
        level = level + (level / SOFT).clamp_max(floor)
        return level.clamp_min(LEAST).float()[:, None, None]

    @property
    def length(self) -> int:
        """Samples of a block; the last one may have fewer."""
        return int(self.counts[0])

    @cached_property
    def gains(self) -> Tensor:
        """Of each block, (C, L): 1, or such that an event has at most the power and the peak of the
        loudest block of the rest.
        """
        powers = self._powers(self.offset)
        _, robust, rest = self._judged(powers)
        lowest, highest = (self.ends - self._centres(self.offset)[:, None]).unbind(1)
        peaks = torch.maximum(highest, -lowest).square()
        shares = [(x * rest).amax(-1, keepdim=True) / x.clamp_min(1e-30) for x in (powers, peaks)]
        gains = torch.minimum(*shares).clamp_max(1).sqrt()
        return gains.where(robust[:, None] & ~rest, torch.ones(())).float()

    def _baseline(self, weights: Tensor) -> Offset:
        return baseline(self.means, self.counts, weights, round(PIECE_S / BLOCK_S))

    def _centres(self, offset: Offset | None) -> Tensor:
        """The offset in the middle of each block, (C, L); without one the mean, (C, 1)."""
        if offset:
            return offset.at((self.counts.cumsum(0) - self.counts / 2).numpy())
        return (self.means * self.counts).sum(-1, keepdim=True) / self.counts.sum().clamp_min(1)

    def _powers(self, offset: Offset | None) -> Tensor:
        """Mean powers of the blocks around the offset or the mean, (C, L)."""
        return self.variances + (self.means - self._centres(offset)).square()

    def _judged(self, powers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Power of each channel, (C,), and whether events or silence are left out of it, (C,).

        Also whether each block is no part of an event, (C, L).
        """
        judged = _without_events(powers)
        loud = judged.square().sum(-1, keepdim=True) / judged.sum(-1, keepdim=True).clamp_min(1e-30)
        counted = (judged > 10 ** (-GATE_DB / 10) * loud) * self.counts
        rest = judged == powers
        robust = (~rest | (counted == 0)).any(-1) & (
            (counted * rest).sum(-1) >= REST_S / BLOCK_S * self.counts.max()
        )
        whole = (powers * self.counts).sum(-1) / self.counts.sum().clamp_min(1)
        power = (judged * counted).sum(-1) / counted.sum(-1).clamp_min(1)
        return torch.where(robust, power, whole), robust, rest


def _without_events(powers: Tensor) -> Tensor:
    """Powers (C, L), those of short loud events replaced: see `unlike`."""
    around = torch.nn.functional.pad(powers, (AROUND, AROUND))
    judged = torch.empty_like(powers)
    for i in range(0, powers.shape[-1], TOGETHER):
        window = around[:, i : i + TOGETHER + 2 * AROUND]
        judged[:, i : i + TOGETHER] = unlike(window, AROUND, AROUND, EVENT_BLOCKS)
    return judged


@dataclass(frozen=True)
class Prepared:
    """Blocks (C, n) without their offset, at unit level; can be iterated as often as `blocks`."""

    blocks: Iterable[Tensor]
    offset: Offset | None
    level: Tensor | None  # (C, 1, 1)

    def __iter__(self) -> Iterator[Tensor]:
        blocks = self.offset.added(self.blocks, -1) if self.offset else iter(self.blocks)
        return blocks if self.level is None else (block / self.level[:, 0] for block in blocks)

    def restored(self, estimate: Iterable[Tensor]) -> Iterator[Tensor]:
        """The estimate of these blocks at the level and with the offset of the original."""
        level = self.level
        blocks = iter(estimate) if level is None else (block * level[:, 0] for block in estimate)
        return self.offset.added(blocks, 1) if self.offset else blocks


@dataclass(frozen=True)
class Softened:
    """Blocks (C, n) of a whole signal times `gains` (C, L), each of which lasts `length` samples.

    They can be iterated as often as `blocks`.
    """

    blocks: Iterable[Tensor]
    gains: Tensor
    length: int

    def __iter__(self) -> Iterator[Tensor]:
        return (block * gains for block, gains in self._with_gains(self.blocks))

    def restored(self, estimates: Iterable[Tensor]) -> Iterator[Tensor]:
        """Estimates (C, S, n) of these blocks at the level of the original."""
        return (block / gains[:, None] for block, gains in self._with_gains(estimates))

    def _with_gains(self, blocks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each block with the gains (C, n) of its samples."""
        n_before = 0
        for block in blocks:
            n_after = n_before + block.shape[-1]
            yield block, self.gains[:, torch.arange(n_before, n_after) // self.length]
            n_before = n_after
