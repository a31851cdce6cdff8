"""Losses: functions, estimate first, reference second, (B, S, T) each -> values (B,).

One value per example, independent of the batch; lower is better. Several sources give their mean.
Half precision is computed in single. Values and gradients are finite, also for silence. A NaN stays
in its example, where the training loop finds it.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from speechlab.audio.stft import stft

Loss = Callable[[Tensor, Tensor], Tensor]

RESOLUTIONS = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))  # n_fft, hop, window: samples
POWER_MIN = 1e-7  # of a time-frequency bin, as published; keeps logarithm and root finite
LOG_RESOLUTION = (512, 256, 512)  # n_fft, hop, window of `log_magnitude`: samples
COMPRESSION = 0.3  # power of the magnitudes in `compressed_spectrum`
COMPLEX_SHARE = 0.3  # weight of the complex distance in the sum
COMPRESSED_RESOLUTION = (512, 128, 512)  # n_fft, hop, window: samples
COMPRESSED_MIN = 1e-4  # power of a bin at unit level (-70 dB or so); bounds the gradient
RATIO_MIN = 1e-10  # share of an energy that counts as none: SI-SDR ends at 100 dB
SILENCE = 1e-16  # power of a sample that counts as none: -160 dB of full scale
ERROR_MIN = 1e-3  # share of the reference's energy where the SNR saturates: 30 dB


def l1(estimate: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference of the samples, 0 or more, in units of full scale."""
    estimate, reference = _signals(estimate, reference)
    return (estimate - reference).abs().mean((-2, -1))


BANDS: dict[str, Callable[[Tensor], Tensor]] = {  # mag (..., F, L) -> the compared part
    "full": lambda mag: mag,
    # the second half of the frames, all bins: "high" in CleanUNet's published code
    "high_as_published": lambda mag: mag[..., mag.shape[-1] // 2 :],
    "high": lambda mag: mag[..., mag.shape[-2] // 2 :, :],  # upper half of the bins: 4 to 8 kHz
}


def multi_resolution_stft(estimate: Tensor, reference: Tensor, band: str = "full") -> Tensor:
    """Half the spectral convergence plus half the log-magnitude distance, 0 or more, no unit.

    Means over three resolutions (Yamamoto et al. 2020, arXiv 1910.11480, with the weights of
    CleanUNet, arXiv 2202.07790). Spectral convergence is a ratio per signal; the published code
    takes one of the whole batch. It is large (up to thousands) for a silent reference and a loud
    estimate. band: a name in BANDS.
    """
    estimate, reference = _signals(estimate, reference)
    values = []
    for resolution in RESOLUTIONS:
        est, ref = (BANDS[band](_magnitude(x, resolution)) for x in (estimate, reference))
        error, level = (torch.linalg.vector_norm(x, dim=(-2, -1)) for x in (ref - est, ref))
        distance = (ref.log() - est.log()).abs().mean((-2, -1))
        values.append(0.5 * error / level + 0.5 * distance)  # (B, S)
    return torch.stack(values).mean(0).mean(-1)


def _magnitude(waveform: Tensor, resolution: tuple[int, int, int]) -> Tensor:
    """(B, S, T) -> (B, S, F, L), never zero; below the floor the gradient is zero."""
    spec = torch.view_as_real(stft(waveform, *resolution))
    return spec.square().sum(-1).clamp(min=POWER_MIN).sqrt()


def log_magnitude(estimate: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference of log(1 + magnitude), 0 or more: the loss of the basic SEMamba.

    Its notes say L1 on the magnitude; the network's input and output are log(1 + magnitude).
    """
    estimate, reference = _signals(estimate, reference)
    est, ref = (_magnitude(x, LOG_RESOLUTION).log1p() for x in (estimate, reference))
    return (est - ref).abs().mean((-3, -2, -1))


def compressed_spectrum(estimate: Tensor, reference: Tensor) -> Tensor:
    """Squared distance of compressed spectra, 0 or more: 0.7 magnitude + 0.3 complex.

    Power-law compression (0.3) of Braun and Tashev 2021, arXiv 2009.12286: soft bands, important
    for hearing, count nearly as much as loud ones. The best estimate is a mean; of the logarithm's
    absolute distance it is the median: silence. Both signals are divided by the reference's RMS,
    so that soft examples count as much.
    """
    estimate, reference = _signals(estimate, reference)
    level = reference.square().mean(-1, keepdim=True).add(SILENCE).sqrt()
    (est, est_mag), (ref, ref_mag) = (_compressed(x / level) for x in (estimate, reference))
    apart = (est - ref).square().sum(-1).mean((-2, -1)), (est_mag - ref_mag).square().mean((-2, -1))
    return (COMPLEX_SHARE * apart[0] + (1 - COMPLEX_SHARE) * apart[1]).mean(-1)


def _compressed(waveform: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S, T) -> compressed spectrum (B, S, F, L, 2) and its magnitude (B, S, F, L)."""
    spec = torch.view_as_real(stft(waveform, *COMPRESSED_RESOLUTION))
    power = spec.square().sum(-1) + COMPRESSED_MIN
    scale = power ** ((COMPRESSION - 1) / 2)
    return spec * scale[..., None], power ** (COMPRESSION / 2)


def snr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Negative SNR in dB, saturating at 30 dB (Wisdom et al. 2021, arXiv 2011.00803).

    Depends on gain and sign, as L1, and weighs loud and soft examples alike. For a silent reference
    it is the estimate's level above -100 dB of full scale.
    """
    estimate, reference = _signals(estimate, reference)
    error, power = (x.square().mean(-1) for x in (estimate - reference, reference))
    floor = ERROR_MIN * power + RATIO_MIN
    return 10 * ((error + floor).log10() - (power + RATIO_MIN).log10()).mean(-1)


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Negative scale-invariant SDR in dB, -100 to 100 (Le Roux et al. 2019, arXiv 1811.02508).

    No mean is removed, as in `evaluation.metrics`. A silent estimate has 0 dB; a silent reference
    has 100 dB and zero gradient.
    """
    estimate, reference = _signals(estimate, reference)
    power = reference.square().mean(-1, keepdim=True)
    target = (estimate * reference).mean(-1, keepdim=True) / (power + SILENCE) * reference
    floor = RATIO_MIN * estimate.square().mean(-1) + SILENCE
    signal, noise = (x.square().mean(-1) + floor for x in (target, estimate - target))
    return 10 * (noise.log10() - signal.log10()).mean(-1)


def si_snr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Negative SI-SDR in dB of signals without their means (Luo and Mesgarani 2019)."""
    estimate, reference = (x - x.mean(-1, keepdim=True) for x in _signals(estimate, reference))
    return si_sdr(estimate, reference)


def _signals(estimate: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Checked, since unequal shapes would broadcast; in float32, since half precision overflows."""
    if estimate.ndim != 3 or estimate.shape != reference.shape:
        shapes = f"estimate {tuple(estimate.shape)} and reference {tuple(reference.shape)}"
        raise ValueError(f"{shapes} are not both (B, S, T)")
    dtype = torch.promote_types(torch.promote_types(estimate.dtype, reference.dtype), torch.float32)
    return estimate.to(dtype), reference.to(dtype)


LOSSES: dict[str, Loss] = {  # names in an experiment
    "l1": l1,
    "snr": snr,
    "si_sdr": si_sdr,
    "si_snr": si_snr,
    "compressed_spectrum": compressed_spectrum,
    "log_magnitude": log_magnitude,
    **{f"stft_{band}": partial(multi_resolution_stft, band=band) for band in BANDS},
}
