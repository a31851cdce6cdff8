"""A long signal in chunks that overlap, and their estimates joined to one again.

    blocks ─► pieces: length, the last `overlap` of it again in the next ─► estimates ─► joined
    blocks ─► in_order: the last speech again in the next, estimates in one order ─────► joined

In the middle of an overlap one estimate is faded into the other; what lies before that is out of
sight of the next chunk's beginning, and what lies behind of the last one's end.

Several sources come out of each chunk in an order of its own. A chunk of `in_order` therefore
begins with what is remembered, whose order is known: with as much of it as holds half of *each*
source's energy there, an overlap at the least and half a chunk at the most. Remembered is where
each source last talked, with the pauses cut short. So a pause of any length is bridged, and a
source that has been silent lately is heard again.

What one estimate has of another talker would pass for speech of the first; so who talks, and which
estimate is whose, is told from `unmixed` estimates. What fails is noise within 10 dB of a talker:
it passes for speech, and where it lasts longer than half a chunk, nothing else is remembered. And
so do estimates with much of the other talkers and pauses of 20 s. Measured in 10 minutes of read
speech, chunks of 30 s, five times: with -14 dB of each other, three talkers were never exchanged;
with -10 dB, two were up to once and three up to twice; with -6 dB, two up to 4 times.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlab.losses.waveform import pit, reordered

OVERLAP_S = 4.0  # seconds that two chunks share
FADE_S = 0.5  # seconds in the middle of these, over which one goes over into the other
FRAME_S = 0.032  # seconds over which a level is taken, to tell a pause, or two talkers apart
PAUSE_DB = 10.0  # below its usual level: a source does not talk
MARGIN_S = 0.25  # seconds of a pause that stay on either side of speech
UNHEARD_DB = 20.0  # below the loudest: a channel in which nobody has talked
LEAST = 1e-20  # power of a sample that counts as none
INVERTED = 0.1  # of full agreement, and of the opposite sign: less than that is noise
ALIKE = 0.01  # of a correlation: estimates nearer to each other than this are not told apart
SHARE = 0.5  # of each source's remembered energy that a chunk hears again


class Piece(NamedTuple):
    samples: Tensor  # (C, n)
    is_first: bool
    is_last: bool
    n_shared: int  # samples, with a neighbour


def pieces(blocks: Iterable[Tensor], length: int, overlap: int) -> Iterator[Piece]:
    """Blocks (C, n) -> pieces of `length` that share `overlap` samples, the last one shorter."""
    held, is_first = None, True
    for block in blocks:
        held = block if held is None else torch.cat([held, block], -1)
        while held.shape[-1] > length:
            yield Piece(held[:, :length], is_first, False, overlap)
            held, is_first = held[:, length - overlap :], False
    if held is not None and held.shape[-1]:
        yield Piece(held, is_first, True, overlap)


def joined(estimates: Iterable[tuple[Tensor, bool]], overlap: int, fade: int) -> Iterator[Tensor]:
    """Estimates (..., n) of pieces, each with its `is_last` -> one signal, in blocks.

    fade: samples in the middle of the overlap, at most a quarter of it, that both make.
    """
    ramp = tail = None
    for chunk, is_last in estimates:
        if tail is not None:
            ramp = _ramp(overlap, fade, chunk) if ramp is None else ramp
            shared = torch.lerp(tail, chunk[..., :overlap], ramp)
            chunk = torch.cat([shared, chunk[..., overlap:]], -1)
        n_settled = chunk.shape[-1] - (0 if is_last else overlap)
        settled, tail = chunk.tensor_split([n_settled], -1)
        yield settled


def _ramp(overlap: int, fade: int, like: Tensor) -> Tensor:
    """From 0 to 1 in the middle of an overlap, (overlap,)."""
    place = torch.arange(overlap, device=like.device) - overlap / 2 + 0.5
    return (0.5 + place / min(fade, overlap // 4)).clamp(0, 1).to(like.dtype)


class Cut(NamedTuple):
    """How `in_order` cuts a signal, in samples. An overlap is whole frames."""

    length: int  # of a chunk
    overlap: int  # at the least
    frame: int
    margin: int  # of a pause, on either side of speech

    @classmethod
    def of(cls, chunk_s: float, sample_rate: int) -> "Cut":
        """Chunks of so many seconds: at most half of one is what has been heard before."""
        frame = max(1, round(FRAME_S * sample_rate))
        overlap_s = min(OVERLAP_S, chunk_s / 4)
        overlap = max(1, round(overlap_s * sample_rate / frame)) * frame
        margin = round(min(MARGIN_S, overlap_s / 4) * sample_rate)
        return cls(max(2 * overlap, round(chunk_s * sample_rate)), overlap, frame, margin)


class Memory(NamedTuple):
    """The last speech and what was made of it; its last `overlap` samples are the recording's."""

    mixture: Tensor  # (C, n)
    estimates: Tensor  # (C, S, n), in order
    n_again: int  # samples at its end that the next chunk begins with


def in_order(
    separated: Callable[[Tensor], Tensor], blocks: Iterable[Tensor], cut: Cut
) -> Iterator[tuple[Tensor, bool]]:
    """Blocks (C, n) of a mixture -> estimates (C, S, n) for `joined`, each source in one place.

    separated: a chunk (C, n) -> (C, S, n), the sources of each in any order. A signal of one chunk
    and channel comes out as `separated` gave it. Memory does not grow with the signal.
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
    """New samples (C, n) -> estimates (C, S, overlap + n); of the first (C, S, n)."""
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

    Returns (C, S) as `pit`, and the sign, 1 or -1, of each estimate in that order: for a model may
    invert an estimate, which a training by SI-SDR does not notice; noise inverts none. Best is
    the largest sum of inner products without their signs, which is the least squared difference
    with them. So speech decides, a source that is silent has no say, and the gain of a chunk
    changes nothing. Frames far above the usual count no more than others, lest a slammed door
    decides; usual is the power above which are frames with half of all level.
    """
    estimates, known = (_framed(x - x.mean(-1, keepdim=True), frame) for x in (estimates, known))
    power = known.square().mean((1, 3))  # (C, L)
    ranked = power.sort(-1).values
    level = ranked.sqrt().cumsum(-1)
    usual = ranked.gather(-1, (level >= level[:, -1:] / 2).int().argmax(-1, keepdim=True))
    weight = (power + usual).clamp_min(LEAST).rsqrt()[:, None, :, None]
    estimates, known = (unmixed((x * weight).flatten(2)) for x in (estimates, known))
    agreement = estimates @ known.mT  # (C, S, S)
    order = pit(-agreement.abs()).permutation
    matched = agreement.gather(1, order[:, None]).squeeze(1)  # (C, S)
    most = reordered(estimates, order).norm(dim=-1) * known.norm(dim=-1)
    return order, 1 - 2 * (matched < -INVERTED * most).to(matched)


def unmixed(estimates: Tensor) -> Tensor:
    """Estimates (C, S, n) less what each has of the others, at the level they have.

    Symmetric orthogonalisation (Löwdin 1950, doi 10.1063/1.1747632): of all sets without
    correlations the nearest one, and as much the same for estimates in any order.
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

    Returns (C, S) as `pit`, of levels from frame to frame, for between microphones waveforms shift.
    before: power of each channel in what came before, in order, (C,); then only channels that
    were silent there are moved, which had nothing to agree with but noise.
    """
    power = estimates.square().mean((1, 2)) if before is None else before
    loudest = power.argmax()
    floor = math.inf if before is None else power[loudest] * 10 ** (-UNHEARD_DB / 10)
    moved = power <= floor
    moved[loudest] = False
    levels = _framed(estimates, frame).square().mean(-1).sqrt()  # (C, S, L)
    order = pit(-levels @ levels[loudest].mT).permutation
    as_it_is = torch.arange(order.shape[1], device=order.device)
    return torch.where(moved[:, None], order, as_it_is)


def _remembered(new: Tensor, estimates: Tensor, memory: Memory | None, cut: Cut) -> Memory:
    """What was last heard of each source, with the new samples and the estimates of `_ordered`.

    A source talks in frames that are not soft beside its usual level, which is the mean of its
    frames' powers, weighted by power: however long it is silent, that is its level in speech. Of
    its frames, and those about them, the newest are kept, in all sources half a chunk.
    """
    mixture = new
    if memory is not None:
        mixture = torch.cat([memory.mixture, new], -1)
        estimates = torch.cat([memory.estimates[..., : -cut.overlap], estimates], -1)
    parts = unmixed(estimates)
    power = _framed(parts, cut.frame).square().mean((0, 3))  # (S, L)
    usual = power.square().sum(-1, keepdim=True) / power.sum(-1, keepdim=True).clamp_min(LEAST)
    talks = power > usual * 10 ** (-PAUSE_DB / 10)
    margin = cut.margin // cut.frame
    about = F.max_pool1d(talks.float(), 2 * margin + 1, stride=1, padding=margin) > 0
    n_newer = about.flip(-1).cumsum(-1).flip(-1)
    about &= n_newer <= (cut.length // 2 - cut.overlap) // (cut.frame * len(about))
    kept = about.any(0)
    kept[-(cut.overlap // cut.frame) :] = True
    n_whole = kept.numel() * cut.frame
    kept = kept.repeat_interleave(cut.frame)
    mixture, estimates, parts = (x[..., -n_whole:][..., kept] for x in (mixture, estimates, parts))
    energy = parts.double().square().sum(0).flip(-1).cumsum(-1)  # (S, n), from the end on
    enough = (energy >= SHARE * energy[:, -1:]).all(0)
    n_again = max(cut.overlap, 1 + int(enough.int().argmax()))
    return Memory(mixture, estimates, n_again)


def _framed(x: Tensor, frame: int) -> Tensor:
    """(..., n) -> its whole frames, counted from the end, (..., L, frame)."""
    n_frames = x.shape[-1] // frame
    return x[..., x.shape[-1] - n_frames * frame :].unflatten(-1, (n_frames, frame))
