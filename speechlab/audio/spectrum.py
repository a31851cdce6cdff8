"""Compressed spectra: magnitudes to a power below 1, and phases; and their inverse.

    waveform (..., T) ─ stft ─► mag ** compress, phase: (..., F, L) each ─ istft ─► (..., T)

Compression reduces the range between quiet and loud bins, as hearing does (SEMamba, arXiv
2405.06573; MP-SENet, arXiv 2308.08926). Published implementations add different offsets before root
and arctangent:

| offsets    | mag                     | phase                         | of                    |
|------------|-------------------------|-------------------------------|-----------------------|
| none       | the absolute value      | the angle                     | SEMamba               |
| mpsenet    | sqrt(re² + im² + 1e-9)  | atan2(im + 1e-10, re + 1e-5)  | MP-SENet              |
| reanalysis | sqrt(re² + im² + 1e-10) | atan2(im + 1e-10, re + 1e-10) | SEMamba's consistency |

MP-SENet's Conformer version has no offsets.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from speechlab.audio.stft import istft, stft
from speechlab.config import Range, Size

OFFSETS = {  # added to the power, the imaginary and the real part
    "mpsenet": (1e-9, 1e-10, 1e-5),
    "reanalysis": (1e-10, 1e-10, 1e-10),
}


class Spectrum(NamedTuple):
    mag: Tensor  # (..., F, L), compressed
    phase: Tensor  # (..., F, L), radians

    @property
    def parts(self) -> Tensor:
        """Real and imaginary part of the compressed spectrum, (..., F, L, 2)."""
        return torch.stack([self.mag * self.phase.cos(), self.mag * self.phase.sin()], -1)


@dataclass(frozen=True)
class FrontEnd:
    """STFT and compression; lengths in samples."""

    n_fft: Size = 400  # 25 ms at 16 kHz
    hop_length: Size = 100
    win_length: Size = 400
    compress: Annotated[float, Range(0.01, 10)] = 0.3  # power of the magnitude
    offsets: Literal["none", "mpsenet", "reanalysis"] = "none"

    @property
    def n_freqs(self) -> int:
        return self.n_fft // 2 + 1

    def analyse(self, waveform: Tensor) -> Spectrum:
        """(..., T) -> (..., F, L) with L = 1 + T // hop_length frames."""
        spec = stft(waveform, self.n_fft, self.hop_length, self.win_length)
        if self.offsets == "none":  # equal to the published code to the last bit
            return Spectrum(spec.abs() ** self.compress, spec.angle())
        power, imaginary, real = OFFSETS[self.offsets]
        re, im = torch.view_as_real(spec).unbind(-1)
        mag = (re.square() + im.square() + power).sqrt() ** self.compress
        return Spectrum(mag, torch.atan2(im + imaginary, re + real))

    def synthesise(self, spectrum: Spectrum, n_samples: int | None = None) -> Tensor:
        """(..., F, L) -> (..., T), T = n_samples or else (L - 1) * hop_length."""
        if n_samples is None:
            n_samples = (spectrum.mag.shape[-1] - 1) * self.hop_length
        spec = torch.polar(spectrum.mag ** (1 / self.compress), spectrum.phase)
        return istft(spec, self.n_fft, self.hop_length, self.win_length, n_samples)

    def reanalyse(self, spectrum: Spectrum, offsets: str) -> Spectrum:
        """The spectrum of its waveform: unchanged only if the spectrum is consistent."""
        return replace(self, offsets=offsets).analyse(self.synthesise(spectrum))
