"""Separated sources of a long mixture in one order, over all chunks and channels.

    blocks ─► in_order: chunks that begin with remembered speech ─► estimates for `joined`

A model gives the sources of each chunk in any order. So a chunk of `in_order` begins with
remembered speech whose order is known. The memory holds the newest speech of each source, with
pauses cut short. A chunk repeats as much of it as holds half of *each* source's energy there: at
least an overlap, at most half a chunk. So a pause of any length is bridged, and a source that was
silent lately is heard again.

Leakage of another speaker in an estimate would count as speech of the first. So the speech and the
order are found on `unmixed` estimates.

Limits. Noise within 10 dB of a speaker counts as speech; where it lasts longer than half a chunk,
nothing else is remembered. Strong leakage together with pauses of 20 s also fails. Measured on 10
minutes of read speech, chunks of 30 s, five runs: with leakage of -14 dB, three speakers were never
exchanged; with -10 dB, two speakers up to once and three up to twice; with -6 dB, two up to 4
times.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlab.inference.overlap_add import OVERLAP_S
from speechlab.losses.pit import best_permutation, reordered

FRAME_S = 0.032  # seconds of a frame, of which a level is taken
PAUSE_DB = 10.0  # below its usual level a source is silent
MARGIN_S = 0.25  # seconds of a pause that are kept on either side of speech
UNHEARD_DB = 20.0  # below the loudest channel: a channel without speech so far
LEAST = 1e-20  # power of a sample that counts as none
INVERTED = 0.1  # of full agreement: disagreement above it inverts an estimate; less is noise
ALIKE = 0.01  # of a correlation: closer estimates are treated as equal
SHARE = 0.5  # of each source's remembered energy that a chunk repeats


class Cut(NamedTuple):
    """How `in_order` cuts a signal, in samples. An overlap is a whole number of frames."""

    length: int  # of a chunk
    overlap: int  # the least that two chunks share
    frame: int
    margin: int  # of a pause, kept on either side of speech

    @classmethod
    def of(cls, chunk_s: float, sample_rate: int) -> "Cut":
        """Chunks of `chunk_s` seconds, of which at most half repeats earlier samples."""
        frame = max(1, round(FRAME_S * sample_rate))
        overlap_s = min(OVERLAP_S, chunk_s / 4)
        overlap = max(1, round(overlap_s * sample_rate / frame)) * frame
        margin = round(min(MARGIN_S, overlap_s / 4) * sample_rate)
        return cls(max(2 * overlap, round(chunk_s * sample_rate)), overlap, frame, margin)


class Memory(NamedTuple):
    """The newest speech and its estimates; its last `overlap` samples are the recording's last."""

    mixture: Tensor  # (C, n)
    estimates: Tensor  # (C, S, n), in order
    n_again: int  # samples at its end with which the next chunk begins


def in_order(
    separated: Callable[[Tensor], Tensor], blocks: Iterable[Tensor], cut: Cut
) -> Iterator[tuple[Tensor, bool]]:
    """Blocks (C, n) of a mixture -> estimates (C, S, n) for `joined`, sources in one order.

    separated: a chunk (C, n) -> (C, S, n), the sources of each channel in any order. The estimate
    of a signal of one chunk and channel is that of `separated`. Memory use does not grow with the
    signal.
    """
    memory = waiting = None
    for block in blocks:
        waiting = block if waiting is None else torch.cat([waiting, block], -1)
        while (n_new := cut.length - (memory.n_again if memory else 0)) < waiting.shape[-1]:
            new, waiting = waiting.tensor_split([n_new], -1)
            estimates = _ordered(separated, new, memory, cut)
            memory = _remembered(new, estimates, memory, cut)
            yield estimates, False
    if waiting is not None and waiting.shape[-1]:
        yield _ordered(separated, waiting, memory, cut), True


def _ordered(
    separated: Callable[[Tensor], Tensor], new: Tensor, memory: Memory | None, cut: Cut
) -> Tensor:
    """New samples (C, n) -> estimates (C, S, overlap + n); of the first chunk (C, S, n)."""
    if memory is None:
        estimates = separated(new)
        return reordered(estimates, across_channels(estimates, cut.frame))
    again, known = memory.mixture[:, -memory.n_again :], memory.estimates[..., -memory.n_again :]
    estimates = separated(torch.cat([again, new], -1))
    order, sign = along_time(estimates[..., : memory.n_again], known, cut.frame)
    estimates = reordered(estimates, order) * sign[..., None]
    before = memory.estimates.square().mean((1, 2))
    estimates = reordered(estimates, across_channels(estimates, cut.frame, before))
    return estimates[..., memory.n_again - cut.overlap :]


def along_time(estimates: Tensor, known: Tensor, frame: int) -> tuple[Tensor, Tensor]:
    """The order of each channel's estimates that agrees best with known ones, both (C, S, n).

    Returns the order (C, S), and the sign, 1 or -1, of each estimate in that order: a
    model trained with SI-SDR may invert an estimate. Noise does not change a sign.

    The best order has the largest sum of absolute inner products, which is the least squared
    difference once the signs are known. So speech decides, silent sources do not, and the gain of a
    chunk has no effect. Frames far above the usual power are scaled down, so that one loud event
    does not dominate. The usual power is that above which frames have half of the total level.
    """
    estimates, known = (_framed(x - x.mean(-1, keepdim=True), frame) for x in (estimates, known))
    power = known.square().mean((1, 3))  # (C, L)
    ranked = power.sort(-1).values
    level = ranked.sqrt().cumsum(-1)
    usual = ranked.gather(-1, (level >= level[:, -1:] / 2).int().argmax(-1, keepdim=True))
    weight = (power + usual).clamp_min(LEAST).rsqrt()[:, None, :, None]
    estimates, known = (unmixed((x * weight).flatten(2)) for x in (estimates, known))
    agreement = estimates @ known.mT  # (C, S, S)
    order = best_permutation(-agreement.abs())
    matched = agreement.gather(1, order[:, None]).squeeze(1)  # (C, S)
    most = reordered(estimates, order).norm(dim=-1) * known.norm(dim=-1)
    return order, 1 - 2 * (matched < -INVERTED * most).to(matched)


def unmixed(estimates: Tensor) -> Tensor:
    """Estimates (C, S, n) without the leakage of the others, at their levels.

    Symmetric orthogonalisation (Löwdin 1950, doi 10.1063/1.1747632) gives the nearest set without
    correlations. The order of the estimates does not matter.
    """
    wide = estimates.double()
    levels = wide.norm(dim=-1, keepdim=True).clamp_min(LEAST**0.5)  # (C, S, 1)
    correlations = (wide / levels) @ (wide / levels).mT  # (C, S, S)
    values, vectors = torch.linalg.eigh(correlations.nan_to_num())
    roots = (values.clamp_min(0) + ALIKE).rsqrt()
    across = (vectors * roots[:, None]) @ vectors.mT
    return (levels * across / levels.mT).to(estimates) @ estimates


def across_channels(estimates: Tensor, frame: int, before: Tensor | None = None) -> Tensor:
    """The order of each channel's estimates (C, S, n) that agrees with the loudest channel's.

    Returns the order (C, S). Frame levels are compared, since waveforms are shifted
    between microphones. before: power of each channel in the earlier chunks, (C,). With it, only
    channels that were silent so far are reordered: they had only noise to agree with.
    """
    power = estimates.square().mean((1, 2)) if before is None else before
    loudest = power.argmax()
    floor = math.inf if before is None else power[loudest] * 10 ** (-UNHEARD_DB / 10)
    moved = power <= floor
    moved[loudest] = False
    levels = _framed(estimates, frame).square().mean(-1).sqrt()  # (C, S, L)
    order = best_permutation(-levels @ levels[loudest].mT)
    as_it_is = torch.arange(order.shape[1], device=order.device)
    return torch.where(moved[:, None], order, as_it_is)


def _remembered(new: Tensor, estimates: Tensor, memory: Memory | None, cut: Cut) -> Memory:
    """The memory with the new samples and the estimates of `_ordered`.

    A source is active in frames within PAUSE_DB of its usual level. That is the power-weighted mean
    of the frames' powers: the level of its speech, however long it is silent. The newest active
    frames are kept, with their margins, half a chunk for all sources together.
    """
    mixture = new
    if memory is not None:
        mixture = torch.cat([memory.mixture, new], -1)
        estimates = torch.cat([memory.estimates[..., : -cut.overlap], estimates], -1)
    parts = unmixed(estimates)
    power = _framed(parts, cut.frame).square().mean((0, 3))  # (S, L)
    usual = power.square().sum(-1, keepdim=True) / power.sum(-1, keepdim=True).clamp_min(LEAST)
    active = power > usual * 10 ** (-PAUSE_DB / 10)
    margin = cut.margin // cut.frame
    near = F.max_pool1d(active.float(), 2 * margin + 1, stride=1, padding=margin) > 0
    n_newer = near.flip(-1).cumsum(-1).flip(-1)
    near &= n_newer <= (cut.length // 2 - cut.overlap) // (cut.frame * len(near))
    kept = near.any(0)
    kept[-(cut.overlap // cut.frame) :] = True
    n_whole = kept.numel() * cut.frame
    kept = kept.repeat_interleave(cut.frame)
    mixture, estimates, parts = (x[..., -n_whole:][..., kept] for x in (mixture, estimates, parts))
    energy = parts.double().square().sum(0).flip(-1).cumsum(-1)  # (S, n), from the end on
    enough = (energy >= SHARE * energy[:, -1:]).all(0)
    n_again = max(cut.overlap, 1 + int(enough.int().argmax()))
    return Memory(mixture, estimates, n_again)


def _framed(x: Tensor, frame: int) -> Tensor:
    """(..., n) -> its complete frames, counted from the end, (..., L, frame)."""
    n_frames = x.shape[-1] // frame
    return x[..., x.shape[-1] - n_frames * frame :].unflatten(-1, (n_frames, frame))
