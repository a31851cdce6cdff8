"""What the models that work on compressed spectra have in common (SEMamba, MP-SENet).

    noisy ─ level ─► FrontEnd.analyse ─► encoder ─► between ─┬─► mask x mag ─┬─► synthesise ─►
                                                             └─► phase ──────┘

They look at whole recordings (norms over time, both directions), so that they cannot stream.
"""

from typing import Any

import torch
from torch import Tensor

from speechlab.audio.spectrum import FrontEnd, Spectrum
from speechlab.layers.dense import Codec, Encoder, MagnitudeDecoder, PhaseDecoder
from speechlab.models.base import Model


class SpectralModel(Model):
    """(B, 1, T) -> (B, 1, T), any T >= 1, with the level taken out and put back inside.

    A subclass has what is `between` encoder and decoders; its configuration has `front_end`,
    `sample_rate` and `normalize`.
    """

    needs_whole = "its norms and layers look at the whole signal"
    domain = "compressed_spectrum"
    long_recordings = "overlap"

    def __init__(self, config: Any, n_channels: int, codec: Codec) -> None:
        super().__init__(config)
        self.front_end: FrontEnd = config.front_end
        self.encoder = Encoder(n_channels, codec)
        self.mask_decoder = MagnitudeDecoder(n_channels, self.front_end.n_freqs, codec)
        self.phase_decoder = PhaseDecoder(n_channels, codec)

    @property
    def hop_length(self) -> int:
        """Samples between two frames."""
        return self.front_end.hop_length

    def between(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder gives, (B, C, L, F') -> what mask and phase decoder get, the same."""
        raise NotImplementedError

    def network(self, noisy: Spectrum) -> Spectrum:
        """Compressed spectra at unit level, (B, F, L) each -> the estimate's."""
        return self.decode(*self.between(self.encoder(self.stacked(noisy))), noisy)

    def stacked(self, noisy: Spectrum) -> Tensor:
        """What the encoder takes, (B, 2, L, F)."""
        return torch.stack(noisy, 1).transpose(2, 3)

    def decode(self, for_mask: Tensor, for_phase: Tensor, noisy: Spectrum) -> Spectrum:
        """The decoders' estimate: a mask on the magnitude, and a phase of its own."""
        mask, phase = self.mask_decoder(for_mask), self.phase_decoder(for_phase)  # (B, F, L)
        return Spectrum(mask * noisy.mag, phase.to(noisy.phase.dtype))

    def spectrum(self, noisy: Tensor) -> Spectrum:
        """noisy: (B, 1, T) -> compressed mag and phase of the estimate at unit level, (B, F, L)."""
        return self.spectrum_of((noisy * self.gain(noisy))[:, 0])

    def gain(self, noisy: Tensor) -> Tensor:
        """What noisy (B, 1, T) is multiplied by to be at unit level, (B, 1, 1).

        Multiplied, as published, and not divided: in the first frame, which is mirrored at the
        signal's start, each phase is 0 or π, and the last bit of the samples decides whether π or
        -π, which a network takes for opposites.
        """
        return self.level.gain(noisy, self.sample_rate)

    def spectrum_of(self, noisy: Tensor) -> Spectrum:
        """The same of noisy (B, T) that is at unit level already."""
        return self.network(self.front_end.analyse(noisy))

    def forward(self, noisy: Tensor) -> Tensor:
        """noisy: (B, 1, T) -> estimate (B, 1, T). UserError for another shape or T = 0."""
        self.check_shape(noisy)
        gain = self.gain(noisy)  # (B, 1, 1)
        spectrum = self.spectrum_of((noisy * gain)[:, 0])
        return self.front_end.synthesise(spectrum, noisy.shape[-1])[:, None] / gain
