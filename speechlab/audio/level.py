"""The level of a signal: what a waveform model divides its input by and multiplies back.

Each function maps the next chunk of noisy (B, 1, n), the sample rate (Hz) and its own state (None
at the start) to a level that broadcasts with the chunk, always positive, so that silence passes,
and to the next state. `running` and `none` give a signal in chunks the levels of the whole.
"""

import math
from collections.abc import Callable

import torch
from scipy.signal import lfilter
from torch import Tensor

FLOOR = 1e-3  # full scale is 1; CleanUNet's, so that silence divides by something
LEAST = 1e-8  # so that digital silence divides by something: no recording is as soft

# The constants of `running`, chosen on the dev pairs (results/LOG.md).
BLOCK_S = 0.03  # seconds over which a power is taken
MEMORY_S = 3.0  # seconds in which what was heard counts for 1 / e
GAIN = 0.6  # -4.4 dB, by which loud blocks of speech lie above its mean level
PRIOR_RMS = 0.2  # assumed before anything is heard: loud, as a level too low overdrives the model
PRIOR_S = 0.2  # seconds in which the square of that assumption fades to 1 / e
LEAST_RMS = 0.02  # the level never sinks below: a pause is not made as loud as speech

State = tuple[Tensor, ...]


def utterance_level(
    noisy: Tensor, sample_rate: int, state: State | None = None
) -> tuple[Tensor, State]:
    """Standard deviation of the whole signal + FLOOR, (B, 1, 1): CleanUNet's normalisation."""
    correction = min(1, noisy.shape[-1] - 1)  # unbiased, but defined for a single sample too
    return noisy.std(-1, correction=correction, keepdim=True) + FLOOR, ()


def running_level(
    noisy: Tensor, sample_rate: int, state: State | None = None
) -> tuple[Tensor, State]:
    """Level of what was loud so far, (B, 1, n); no gradient passes through it.

    The signal is cut into blocks, each with its mean power p. The level is the root of
    sum(w p^2) / sum(w p), w fading with MEMORY_S: each block counts as much as it has power. So
    the level rises with the first word after any pause, sinks slowly, and scales with the signal;
    a minute of room noise weighs less than one loud block. The last block counts with what is
    there of it. GAIN makes it the RMS of speech, on average. To its square come those of a prior
    level, which fades with PRIOR_S, and of LEAST_RMS, which stays.

    State, float64: samples so far (), energy of the unfinished block and the sums of p^2 and p of
    those before, (B, 1, 1) each. The level of a day is as exact as that of a second.
    """
    noisy = noisy.detach()
    block = round(BLOCK_S * sample_rate)
    if state is None:
        zero = noisy.new_zeros(noisy.shape[0], 1, 1, dtype=torch.float64)
        state = zero.sum(), zero, zero, zero
    n_before, unfinished, *sums = state
    offset, length = int(n_before) % block, noisy.shape[-1]
    n_done, rest = divmod(offset + length, block)
    squares = noisy.new_zeros(noisy.shape[0], 1, (n_done + 1) * block, dtype=torch.float64)
    squares[..., offset : offset + length] = noisy.double().square()
    squares[..., :1] += unfinished
    energy = squares.unflatten(-1, (n_done + 1, block)).cumsum(-1)  # (B, 1, blocks, block)
    power = energy / block
    squared, plain = (
        _faded(power[..., :-1, -1] ** k, before) for k, before in zip((2, 1), sums, strict=True)
    )
    mean = (squared[..., None] + power**2) / (plain[..., None] + power).clamp_min(1e-30)
    mean = mean.flatten(-2)[..., offset : offset + length]
    seconds = (n_before + torch.arange(length, device=noisy.device)) / sample_rate
    prior = PRIOR_RMS**2 * torch.exp(-seconds / PRIOR_S)
    level = (GAIN**2 * mean + prior + LEAST_RMS**2).sqrt()
    unfinished = energy[..., -1, rest - 1, None] if rest else torch.zeros_like(unfinished)
    state = n_before + length, unfinished, squared[..., -1:], plain[..., -1:]
    return level.to(noisy.dtype), state


def _faded(values: Tensor, before: Tensor) -> Tensor:
    """Sums of the blocks before each block, fading: (B, 1, n), (B, 1, 1) -> (B, 1, n + 1)."""
    if not values.shape[-1]:
        return before
    keep = math.exp(-BLOCK_S / MEMORY_S)
    later, _ = lfilter([keep], [1, -keep], values.cpu(), zi=keep * before.cpu().numpy())
    return torch.cat([before, torch.from_numpy(later).to(before.device)], -1)


def rms_level(noisy: Tensor, sample_rate: int, state: State | None = None) -> tuple[Tensor, State]:
    """Root mean square of the whole signal, (B, 1, 1): SEMamba's and MP-SENet's normalisation."""
    return 1 / rms_gain(noisy), ()


def rms_gain(noisy: Tensor) -> Tensor:
    """What noisy (B, 1, T) is multiplied by to have a root mean square of 1, (B, 1, 1).

    To the last bit as the published systems compute it on one thread, whatever the batch and the
    number of threads: see `SpectralModel.gain` for why. PyTorch shares a sum of one row among the
    threads, and adds in another order; of two rows each has its thread.
    """
    n_examples, _, length = noisy.shape
    squares = noisy.square()
    rows = squares.expand(2, -1, -1) if n_examples == 1 else squares
    energy = rows.sum(-1, keepdim=True)[:n_examples]
    return (length / energy.clamp_min(length * LEAST**2)).sqrt()


def no_level(noisy: Tensor, sample_rate: int, state: State | None = None) -> tuple[Tensor, State]:
    """One, (1, 1, 1): the signal as it is."""
    return noisy.new_ones(1, 1, 1), ()


LEVELS: dict[str, Callable[..., tuple[Tensor, State]]] = {
    "utterance": utterance_level,
    "running": running_level,
    "rms": rms_level,
    "none": no_level,
}
