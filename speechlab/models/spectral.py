"""What the models that work on compressed spectra have in common (SEMamba, MP-SENet).

    noisy ─ level ─► FrontEnd.analyse ─ mag, phase ─► network ─ mag, phase ─► synthesise ─► estimate

They look at whole recordings (norms over time, both directions), so that they cannot stream.
"""

from typing import Any

from torch import Tensor, nn

from speechlab.errors import UserError
from speechlab.models.level import LEVELS
from speechlab.spectra import FrontEnd, Spectrum


class SpectralModel(nn.Module):
    """(B, 1, T) -> (B, 1, T), any T >= 1, with the level taken out and put back inside.

    A subclass has `network`; its configuration has `front_end`, `sample_rate` and `normalize`.
    """

    look_ahead = None  # samples of future that an output sample needs: all of them

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.front_end: FrontEnd = config.front_end
        self.level = LEVELS[config.normalize]

    @property
    def sample_rate(self) -> int:
        """Hz"""
        return self.config.sample_rate

    def network(self, noisy: Spectrum) -> Spectrum:
        """Compressed spectra at unit level, (B, F, L) each -> the estimate's."""
        raise NotImplementedError

    def spectrum(self, noisy: Tensor) -> Spectrum:
        """noisy: (B, 1, T) -> compressed mag and phase of the estimate at unit level, (B, F, L)."""
        level, _ = self.level(noisy, self.sample_rate)
        return self.network(self.front_end.analyse((noisy / level)[:, 0]))

    def forward(self, noisy: Tensor) -> Tensor:
        """noisy: (B, 1, T) -> estimate (B, 1, T). UserError for another shape or T = 0."""
        if noisy.dim() != 3 or noisy.shape[1] != 1 or noisy.shape[2] == 0:
            name, shape = type(self).__name__, tuple(noisy.shape)
            raise UserError(f"{name} takes (B, 1, T) with T >= 1 samples, not {shape}")
        level, _ = self.level(noisy, self.sample_rate)  # (B, 1, 1)
        estimate = self.front_end.synthesise(self.spectrum(noisy), noisy.shape[-1])
        return estimate[:, None] * level

    def macs(self, seconds: float) -> float:
        """Multiply-accumulates for so many seconds of input, by the rule of `complexity`."""
        from speechlab.complexity import macs_per_second  # brings pandas

        return seconds * macs_per_second(self)
