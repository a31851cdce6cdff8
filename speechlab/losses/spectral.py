"""Losses between compressed spectra: magnitude, phase, complex, consistency, and the score of a
discriminator.

Estimate first, reference second, one value an example (B,), lower is better: what the generators
of SEMamba (arXiv 2405.06573) and MP-SENet (arXiv 2308.08926) are trained on. Spectra are
`Spectrum(mag, phase)` of `audio.spectrum`, (B, F, L) each, waveforms (B, T). A value is the one
that the example would have alone; a NaN stays in its example. Values and gradients are finite,
on silence and on zero bins too.

The two differ at the edges of the phase differences:

| edges       | of F bins and L frames compared           | in       |
|-------------|-------------------------------------------|----------|
| raw         | F and L: the first one enters as it is    | SEMamba  |
| differences | F - 1 and L - 1: nothing but differences  | MP-SENet |
"""

import math
from typing import Literal

import torch
from torch import Tensor

from speechlab.audio.spectrum import FrontEnd, Spectrum

Edges = Literal["raw", "differences"]
BINS, FRAMES = -2, -1  # axes of a spectrum


def magnitude(estimate: Spectrum, reference: Spectrum) -> Tensor:
    """Mean square difference of the compressed magnitudes, 0 or more."""
    return _mean((_pair(estimate.mag, reference.mag)).square())


def phase(estimate: Spectrum, reference: Spectrum, edges: Edges) -> Tensor:
    """Instantaneous phase + group delay + instantaneous angular frequency, 0 to 3 pi, radians.

    Ai and Ling 2023, arXiv 2211.15974; 3 pi / 2 for random phases.
    """
    instantaneous = instantaneous_phase(estimate, reference)
    delay = group_delay(estimate, reference, edges)
    return instantaneous + delay + angular_frequency(estimate, reference, edges)


def instantaneous_phase(estimate: Spectrum, reference: Spectrum) -> Tensor:
    """Mean wrapped phase error, 0 to pi, radians."""
    return _mean(anti_wrapped(_pair(estimate.phase, reference.phase)))


def group_delay(estimate: Spectrum, reference: Spectrum, edges: Edges) -> Tensor:
    """The same for phase differences from bin to bin."""
    return _of_differences(estimate, reference, BINS, edges)


def angular_frequency(estimate: Spectrum, reference: Spectrum, edges: Edges) -> Tensor:
    """The same for phase differences from frame to frame."""
    return _of_differences(estimate, reference, FRAMES, edges)


def complex_spectrum(estimate: Spectrum, reference: Spectrum) -> Tensor:
    """Twice the mean square difference of real and imaginary parts, compressed, 0 or more.

    The mean is over both parts, so twice it is the mean squared distance in the complex plane.
    """
    return 2 * _mean(_pair(estimate.parts, reference.parts).square())


def time(estimate: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference of the waveforms (B, T), 0 or more."""
    return _mean(_pair(estimate, reference).abs())


def consistency(estimate: Spectrum, front_end: FrontEnd, offsets: str) -> Tensor:
    """`complex_spectrum` between a spectrum and that of its waveform, 0 or more.

    offsets: of the second, as in `audio.spectrum`: "reanalysis" for SEMamba, "mpsenet" for
    MP-SENet; with "none" the gradient of a silent waveform is not finite.
    """
    return complex_spectrum(estimate, front_end.reanalyse(estimate, offsets))


def metric(score: Tensor) -> Tensor:
    """Squared distance of a discriminator's score (B,) to 1, the best: MetricGAN's generator.

    Fu et al. 2019, arXiv 1905.04874.
    """
    return (score - 1).square()


def anti_wrapped(angle: Tensor) -> Tensor:
    """|x - 2 pi round(x / 2 pi)|: distance of an angle to 0, 0 to pi."""
    turn = 2 * math.pi
    return (angle - turn * (angle / turn).round()).abs()


def _of_differences(estimate: Spectrum, reference: Spectrum, axis: int, edges: Edges) -> Tensor:
    error = _pair(estimate.phase, reference.phase)
    apart = error.diff(dim=axis)  # the difference of errors is the error of differences
    if edges == "raw":
        apart = torch.cat([error.narrow(axis, 0, 1), apart], axis)
    elif edges != "differences":
        raise ValueError(f"no edges '{edges}'; there are: raw, differences")
    elif not apart.shape[axis]:  # one frame has none
        return error.sum((BINS, FRAMES)) * 0
    return _mean(anti_wrapped(apart))


def _pair(estimate: Tensor, reference: Tensor) -> Tensor:
    """Their difference, in float32; unequal shapes would broadcast."""
    if estimate.shape != reference.shape or estimate.ndim < 2:
        shapes = f"estimate {tuple(estimate.shape)} and reference {tuple(reference.shape)}"
        raise ValueError(f"{shapes} are not equal, with a batch")
    dtype = torch.promote_types(torch.promote_types(estimate.dtype, reference.dtype), torch.float32)
    return estimate.to(dtype) - reference.to(dtype)


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)
