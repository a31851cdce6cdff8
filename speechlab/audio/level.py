"""The level of a signal: a model divides its input by it and multiplies its estimate by it.

    level = LEVELS["running"]
    level.of(noisy, sample_rate)            of a whole signal (B, 1, T)
    level.of_blocks(blocks)                 of a whole signal in blocks (C, n)
    level.step(chunk, sample_rate, state)   of the next samples of a signal

A level is always positive, so that silence passes, and broadcasts with the signal.

| name      | the level is                                   | causal | published with    |
|-----------|------------------------------------------------|--------|-------------------|
| utterance | standard deviation of the whole signal + FLOOR | no     | CleanUNet         |
| rms       | root mean square of the whole signal           | no     | SEMamba, MP-SENet |
| running   | level of the loud parts so far                 | yes    | –                 |
| none      | one                                            | yes    | separators        |

`GUARDED` has the levels of streams that recover from a glitch, `audio/robust.py` those of files.
"""

import math
from collections.abc import Iterable

import torch
from scipy.signal import lfilter
from torch import Tensor

from speechlab.errors import UserError

FLOOR = 1e-3  # full scale is 1; CleanUNet's, so that silence divides by something
LEAST = 1e-8  # so that digital silence divides by something: no recording is as soft

# The constants of `running`, chosen on the dev pairs (results/LOG.md).
BLOCK_S = 0.03  # seconds over which a power is taken
MEMORY_S = 3.0  # seconds after which a block's weight has fallen to 1 / e
GAIN = 0.6  # -4.4 dB: loud blocks of speech are that much above its mean level
PRIOR_RMS = 0.2  # assumed before the first sample: loud, as a level too low overdrives the model
PRIOR_S = 0.2  # seconds in which the square of that assumption fades to 1 / e
LEAST_RMS = 0.02  # the level never sinks below: a pause is not made as loud as speech

# Of a glitch in a stream: a knock, a plug, a lost packet.
JUDGED_S = 0.6  # seconds after which a block is compared with its surroundings
EARLIER, LATER = round(0.5 / BLOCK_S), round(JUDGED_S / BLOCK_S)  # blocks around it
GLITCH_BLOCKS = 8  # at most so many, 0.24 s; more are speech
GLITCH_DB = 15.0  # above the surroundings; speech is below (results/LOG.md, 2026-11-30)

State = tuple[Tensor, ...]


class Level:
    """A level that is known from the samples so far: `causal`."""

    causal = True
    divides = True  # False: the signal stays as it is

    def of(self, noisy: Tensor, sample_rate: int) -> Tensor:
        """Of a whole signal noisy (B, 1, T): (B, 1, 1), or (B, 1, T) for a level that changes."""
        return self.step(noisy, sample_rate)[0]

    def gain(self, noisy: Tensor, sample_rate: int) -> Tensor:
        """1 / level: noisy (B, 1, T) times that is at unit level."""
        return 1 / self.of(noisy, sample_rate)

    def of_blocks(self, blocks: Iterable[Tensor]) -> Tensor:
        """Of a whole signal in blocks (C, n): (C, 1, 1), one value per channel.

        blocks: a list or a `Recording`, since the caller needs them again; UserError for an
        iterator. Defined for levels with one value per signal.
        """
        raise NotImplementedError

    def step(
        self, chunk: Tensor, sample_rate: int, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Of the next samples (B, 1, n), and the next state; None at the start of a signal.

        Chunks of any lengths have the levels of the whole. Defined for causal levels.
        """
        raise NotImplementedError


class NoLevel(Level):
    """One, (1, 1, 1): the signal as it is."""

    divides = False

    def of_blocks(self, blocks: Iterable[Tensor]) -> Tensor:
        first = next(iter(repeatable(blocks)), torch.ones(1, 0))
        return first.new_ones(len(first), 1, 1)

    def step(
        self, chunk: Tensor, sample_rate: int, state: State | None = None
    ) -> tuple[Tensor, State]:
        return chunk.new_ones(1, 1, 1), ()


class KnownLevel(Level):
    """A level of the whole signal that was computed before: (C, 1, 1) for chunks (C, 1, n)."""

    def __init__(self, level: Tensor) -> None:
        self.level = level

    def step(
        self, chunk: Tensor, sample_rate: int, state: State | None = None
    ) -> tuple[Tensor, State]:
        return self.level, ()


class UtteranceLevel(Level):
    """Standard deviation of the whole signal + FLOOR: CleanUNet's normalisation."""

    causal = False

    def of(self, noisy: Tensor, sample_rate: int) -> Tensor:
        correction = min(1, noisy.shape[-1] - 1)  # unbiased, but defined for a single sample too
        return noisy.std(-1, correction=correction, keepdim=True) + FLOOR

    def of_blocks(self, blocks: Iterable[Tensor]) -> Tensor:
        """Sums of squares in float64, of deviations from each block's own mean.

        These are then joined (Chan et al. 1979): no difference of large numbers, whatever the
        offset and the length.
        """
        count, mean, squares = 0, torch.tensor(0.0), torch.tensor(0.0)
        for block in repeatable(blocks):
            if not (n := block.shape[-1]):
                continue
            block = block.double()
            own = block.mean(-1)  # (C,)
            offset = own - mean
            squares = squares + (block - own[:, None]).square().sum(-1)
            squares = squares + offset.square() * (count * n / (count + n))
            mean = mean + offset * (n / (count + n))
            count += n
        deviation = (squares / max(1, count - 1)).sqrt()
        return (deviation.float() + FLOOR)[:, None, None]


class RmsLevel(Level):
    """Root mean square of the whole signal: SEMamba's and MP-SENet's normalisation."""

    causal = False

    def of(self, noisy: Tensor, sample_rate: int) -> Tensor:
        return 1 / self.gain(noisy, sample_rate)

    def gain(self, noisy: Tensor, sample_rate: int) -> Tensor:
        """To the last bit as the published systems compute it on one thread.

        That holds for every batch and number of threads; `SpectralModel.gain` says why it matters.
        PyTorch shares a sum of one row among the threads, and adds in another order. Of two rows
        each has its thread.
        """
        n_examples, _, length = noisy.shape
        squares = noisy.square()
        rows = squares.expand(2, -1, -1) if n_examples == 1 else squares
        energy = rows.sum(-1, keepdim=True)[:n_examples]
        return (length / energy.clamp_min(length * LEAST**2)).sqrt()

    def of_blocks(self, blocks: Iterable[Tensor]) -> Tensor:
        """Sums in float64: the value of `of` but for the last bits."""
        count, squares = 0, torch.tensor(0.0, dtype=torch.float64)
        for block in repeatable(blocks):
            squares = squares + block.double().square().sum(-1, keepdim=True)
            count += block.shape[-1]
        rms = (squares / max(1, count)).sqrt().clamp_min(LEAST).float()  # (C, 1)
        return rms[..., None]


class RunningLevel(Level):
    """Level of the loud parts so far, (B, 1, n); no gradient passes through it.

    The signal is cut into blocks, each with its mean power p. The level is the root of
    sum(w p^2) / sum(w p), w fading with MEMORY_S: each block counts as much as it has power. So
    the level rises with the first word after any pause, sinks slowly, and scales with the signal;
    a minute of room noise weighs less than one loud block. An unfinished block counts with the
    samples that it has. GAIN makes the level the RMS of speech, on average. The squares of two
    other levels are added to its square: of a prior level, which fades with PRIOR_S, and of
    LEAST_RMS, which stays.
    """

    def step(
        self, chunk: Tensor, sample_rate: int, state: State | None = None
    ) -> tuple[Tensor, State]:
        """State, float64: samples so far (), energy of the unfinished block, and the sums of p^2
        and p of the blocks before, (B, 1, 1) each. The level of a day is as exact as that of a
        second.
        """
        noisy = chunk.detach()
        noisy = noisy.cpu() if noisy.device.type == "mps" else noisy  # MPS has no float64
        block = round(BLOCK_S * sample_rate)
        if state is None:
            zero = noisy.new_zeros(noisy.shape[0], 1, 1, dtype=torch.float64)
            state = zero.sum(), zero
        n_before, unfinished, *sums = state
        offset, length = int(n_before) % block, noisy.shape[-1]
        n_done, rest = divmod(offset + length, block)
        squares = noisy.new_zeros(noisy.shape[0], 1, (n_done + 1) * block, dtype=torch.float64)
        squares[..., offset : offset + length] = noisy.double().square()
        squares[..., :1] += unfinished
        energy = squares.unflatten(-1, (n_done + 1, block)).cumsum(-1)  # (B, 1, blocks, block)
        power = energy / block
        squared, plain, after = self._sums(power[..., :-1, -1], tuple(sums))
        mean = (squared[..., None] + power**2) / (plain[..., None] + power).clamp_min(1e-30)
        mean = mean.flatten(-2)[..., offset : offset + length]
        seconds = (n_before + torch.arange(length, device=noisy.device)) / sample_rate
        prior = PRIOR_RMS**2 * torch.exp(-seconds / PRIOR_S)
        level = (GAIN**2 * mean + prior + LEAST_RMS**2).sqrt()
        unfinished = energy[..., -1, rest - 1, None] if rest else torch.zeros_like(unfinished)
        return level.to(chunk), (n_before + length, unfinished, *after)

    def _sums(self, powers: Tensor, before: State) -> tuple[Tensor, Tensor, State]:
        """Fading sums of p^2 and p before each block and after the last, (B, 1, n + 1) each.

        powers: of the next complete blocks, (B, 1, n). The state is the sums at the last block.
        """
        before = before or (powers.new_zeros(len(powers), 1, 1),) * 2
        sums = [_faded(powers**k, past) for k, past in zip((2, 1), before, strict=True)]
        return *sums, tuple(x[..., -1:] for x in sums)


class GuardedLevel(RunningLevel):
    """`RunningLevel` that recovers from a glitch of 0.1 s within a second: the same without one.

    Each block counts with its power for JUDGED_S. Then the second around it is known: a block far
    above it (`unlike`) counts from there on with the power of its surroundings.
    """

    def _sums(self, powers: Tensor, before: State) -> tuple[Tensor, Tensor, State]:
        """State: the sums of the judged blocks, and the powers of the blocks around the next one.

        (B, 1, 1), (B, 1, 1) and (B, 1, EARLIER + LATER).
        """
        silence = powers.new_zeros(len(powers), 1, EARLIER + LATER)
        *sums, around = before or (silence[..., :1], silence[..., :1], silence)
        around = torch.cat([around, powers], -1)
        judged = unlike(around, EARLIER, LATER, GLITCH_BLOCKS)
        keep = math.exp(-BLOCK_S / MEMORY_S)
        weights = keep ** torch.arange(LATER, 0, -1, dtype=powers.dtype, device=powers.device)
        recent = around[..., EARLIER:].unfold(-1, LATER, 1)  # (B, 1, n + 1, LATER)
        old = [_faded(keep**LATER * judged**k, x) for k, x in zip((2, 1), sums, strict=True)]
        total = [x + (recent**k) @ weights for k, x in zip((2, 1), old, strict=True)]
        after = (*(x[..., -1:] for x in old), around[..., powers.shape[-1] :].clone())
        return *total, after


def unlike(powers: Tensor, earlier: int, later: int, n_loud: int) -> Tensor:
    """Powers (..., n + earlier + later) -> (..., n): those in the middle, without short events.

    The usual power is the one that `n_loud` blocks around exceed. Where a block or its neighbour is
    more than GLITCH_DB above it, the block has at most the usual power. Around a block are
    `earlier` blocks before it and `later` after it.
    """
    n_middle = powers.shape[-1] - earlier - later
    if n_middle < 1:
        return powers[..., :0]
    windows = powers.unfold(-1, earlier + later + 1, 1)
    usual = windows.kthvalue(earlier + later + 1 - n_loud).values
    own, near = windows[..., earlier], windows[..., earlier - 1 : earlier + 2].amax(-1)
    return torch.where(near > 10 ** (GLITCH_DB / 10) * usual, torch.minimum(own, usual), own)


LEVELS: dict[str, Level] = {
    "utterance": UtteranceLevel(),
    "running": RunningLevel(),
    "rms": RmsLevel(),
    "none": NoLevel(),
}
GUARDED = {LEVELS["running"]: GuardedLevel()}  # causal level -> the same without glitches


def guarded(level: Level) -> Level:
    """The level that recovers from glitches, where there is one; else the level itself."""
    return GUARDED.get(level, level)


def repeatable(blocks: Iterable[Tensor]) -> Iterable[Tensor]:
    """The blocks; UserError for an iterator, which ends after one pass."""
    if iter(blocks) is blocks:
        raise UserError("the level of the whole needs the blocks twice; pass them as a list")
    return blocks


def _faded(values: Tensor, before: Tensor) -> Tensor:
    """Sums of the blocks before each block, fading: (B, 1, n), (B, 1, 1) -> (B, 1, n + 1)."""
    if not values.shape[-1]:
        return before
    keep = math.exp(-BLOCK_S / MEMORY_S)
    later, _ = lfilter([keep], [1, -keep], values.cpu(), zi=keep * before.cpu().numpy())
    return torch.cat([before, torch.from_numpy(later).to(before.device)], -1)
