"""Base of the models on compressed spectra (SEMamba, MP-SENet).

    noisy ─ level ─► FrontEnd.analyse ─► encoder ─► between ─┬─► mask x mag ─┬─► synthesise ─►
                                                             └─► phase ──────┘

Norms over time and layers in both directions need the whole recording: they cannot stream.
"""

from typing import Any

import torch
from torch import Tensor, nn

from speechlab.audio.spectrum import FrontEnd, Spectrum
from speechlab.config import Widths
from speechlab.layers.dense import N_WIDTHS, Codec, Encoder, MagnitudeDecoder, PhaseDecoder
from speechlab.layers.stacks import check_number
from speechlab.models.base import Model, check_overlap


class SpectralModel(Model):
    """(B, 1, T) -> (B, 1, T), any T >= 1; the level is handled inside.

    A subclass has `blocks`, between encoder and decoders. Its configuration has `front_end`,
    `sample_rate` and `normalize`.
    """

    needs_whole = "its norms and layers look at the whole signal"
    domain = "compressed_spectrum"
    long_recordings = "overlap"
    blocks: nn.ModuleList

    def __init__(
        self,
        config: Any,
        n_channels: int,
        codec: Codec,
        widths: tuple[Widths, Widths, Widths] = ((), (), ()),
    ) -> None:
        """widths: of the convolutions of encoder, mask decoder and phase decoder (`layers.dense`).

        Empty: n_channels each.
        """
        super().__init__(config)
        self.front_end: FrontEnd = config.front_end
        check_overlap(self.front_end.n_fft, self.front_end.hop_length)
        for of_part in widths:
            check_number("channels of encoder or decoder", of_part, N_WIDTHS)
        encode, mask, phase = widths
        self.encoder = Encoder(n_channels, codec, encode)
        self.mask_decoder = MagnitudeDecoder(n_channels, self.front_end.n_freqs, codec, mask)
        self.phase_decoder = PhaseDecoder(n_channels, codec, phase)

    @property
    def hop_length(self) -> int:
        """Samples between two frames."""
        return self.front_end.hop_length

    def between(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder output (B, C, L, F') -> inputs of mask and phase decoder, the same shape."""
        for block in self.blocks:
            x = block(x)
        return x, x

    def network(self, noisy: Spectrum) -> Spectrum:
        """Compressed spectra at unit level, (B, F, L) each -> the estimate's."""
        return self.decode(*self.between(self.encoder(self.stacked(noisy))), noisy)

    def stacked(self, noisy: Spectrum) -> Tensor:
        """Input of the encoder, (B, 2, L, F)."""
        return torch.stack(noisy, 1).transpose(2, 3)

    def decode(self, for_mask: Tensor, for_phase: Tensor, noisy: Spectrum) -> Spectrum:
        """The decoders' estimate: a mask on the magnitude, and a new phase."""
        mask, phase = self.mask_decoder(for_mask), self.phase_decoder(for_phase)  # (B, F, L)
        return Spectrum(mask * noisy.mag, phase.to(noisy.phase.dtype))

    def spectrum(self, noisy: Tensor) -> Spectrum:
        """noisy: (B, 1, T) -> compressed mag and phase of the estimate at unit level, (B, F, L)."""
        return self.spectrum_of((noisy * self.gain(noisy))[:, 0])

    def gain(self, noisy: Tensor) -> Tensor:
        """Factor (B, 1, 1) that brings noisy (B, 1, T) to unit level.

        The published code multiplies and does not divide. That matters: the first frame is mirrored
        at the signal's start, so each phase is 0 or π. There the last bit of the samples decides
        between π and -π, which are opposites to a network.
        """
        return self.level.gain(noisy, self.sample_rate)

    def spectrum_of(self, noisy: Tensor) -> Spectrum:
        """The same for noisy (B, T) at unit level."""
        return self.network(self.front_end.analyse(noisy))

    def forward(self, noisy: Tensor) -> Tensor:
        """noisy: (B, 1, T) -> estimate (B, 1, T). UserError for another shape or T = 0."""
        self.check_shape(noisy)
        gain = self.gain(noisy)  # (B, 1, 1)
        spectrum = self.spectrum_of((noisy * gain)[:, 0])
        return self.front_end.synthesise(spectrum, noisy.shape[-1])[:, None] / gain
