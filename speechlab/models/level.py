"""The level of a signal: what a waveform model divides its input by and multiplies back.

Each function maps noisy (B, 1, T) and the sample rate (Hz) to a level that broadcasts with it,
always positive, so that silence passes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

PRIOR_RMS = 0.06  # full scale is 1; about the level of speech recordings, -24 dB
PRIOR_S = 0.5  # seconds of signal that the prior weighs


def utterance_level(noisy: Tensor, sample_rate: int) -> Tensor:
    """Standard deviation of the whole signal + 1e-3, (B, 1, 1): CleanUNet's normalisation."""
    correction = min(1, noisy.shape[-1] - 1)  # unbiased, but defined for a single sample too
    return noisy.std(-1, correction=correction, keepdim=True) + 1e-3


def running_level(noisy: Tensor, sample_rate: int) -> Tensor:
    """RMS of all samples so far and of half a second at the prior level, (B, 1, T).

    Causal, summed in float64: the level of a day is as exact as that of a second.
    """
    n_prior = PRIOR_S * sample_rate
    energy = noisy.double().square().cumsum(-1) + n_prior * PRIOR_RMS**2
    count = torch.arange(1, noisy.shape[-1] + 1, device=noisy.device) + n_prior
    return (energy / count).sqrt().to(noisy.dtype)


def no_level(noisy: Tensor, sample_rate: int) -> Tensor:
    """One, (1, 1, 1): the signal as it is."""
    return noisy.new_ones(1, 1, 1)


LEVELS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "utterance": utterance_level,
    "running": running_level,
    "none": no_level,
}
