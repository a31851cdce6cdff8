"""The level of a signal: what a waveform model divides its input by and multiplies back.

Each function maps the next chunk of noisy (B, 1, n), the sample rate (Hz) and its own state (None
at the start) to a level that broadcasts with the chunk, always positive, so that silence passes,
and to the next state. `running` and `none` give a signal in chunks the levels of the whole.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# What `running` assumes before it has heard anything, chosen on the dev pairs (results/LOG.md).
# Short and loud: a level guessed too low overdrives the model at the first words.
PRIOR_RMS = 0.2  # full scale is 1
PRIOR_S = 0.1  # seconds of signal that the prior weighs

State = tuple[Tensor, ...]


def utterance_level(
    noisy: Tensor, sample_rate: int, state: State | None = None
) -> tuple[Tensor, State]:
    """Standard deviation of the whole signal + 1e-3, (B, 1, 1): CleanUNet's normalisation."""
    correction = min(1, noisy.shape[-1] - 1)  # unbiased, but defined for a single sample too
    return noisy.std(-1, correction=correction, keepdim=True) + 1e-3, ()


def running_level(
    noisy: Tensor, sample_rate: int, state: State | None = None
) -> tuple[Tensor, State]:
    """RMS of all samples so far and of PRIOR_S seconds at the prior level, (B, 1, n).

    State: the energy and the number of samples so far, with the prior's, (B, 1, 1) and () in
    float64: the level of a day is as exact as that of a second.
    """
    if state is None:
        count = torch.tensor(PRIOR_S * sample_rate, dtype=torch.float64, device=noisy.device)
        state = (count * PRIOR_RMS**2).expand(noisy.shape[0], 1, 1), count
    before, n_before = state
    steps = torch.arange(1, noisy.shape[-1] + 1, dtype=torch.float64, device=noisy.device)
    energy = noisy.double().square().cumsum(-1) + before
    count = n_before + steps
    after = energy[..., -1:] if noisy.shape[-1] else before
    return (energy / count).sqrt().to(noisy.dtype), (after, n_before + noisy.shape[-1])


def no_level(noisy: Tensor, sample_rate: int, state: State | None = None) -> tuple[Tensor, State]:
    """One, (1, 1, 1): the signal as it is."""
    return noisy.new_ones(1, 1, 1), ()


LEVELS: dict[str, Callable[..., tuple[Tensor, State]]] = {
    "utterance": utterance_level,
    "running": running_level,
    "none": no_level,
}
