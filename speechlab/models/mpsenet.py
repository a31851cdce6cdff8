"""MP-SENet: magnitude and phase denoised side by side (arXiv 2308.08926), Transformer version.

    mag, phase ─ encoder ─► n_blocks x (time, frequency) ─┬─► mask decoder ─► mask x mag
                                                          └─► phase decoder ─► phase

`axes` "named" is what the paper describes. Published weights were trained with attention and GRU
turned ("published", see `layers.time_frequency`) and need that: `load` sets it
for them, and `load(path, axes="named")` overrides it. Turned layers mix the items of a batch, and
`network` does as they do. What has the caller's signals (`forward`, `spectrum`, `spectrum_of`)
gives a turned model its items one by one: each is enhanced as it is alone.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from speechlab.audio.spectrum import FrontEnd, Spectrum
from speechlab.errors import UserError
from speechlab.layers.time_frequency import Axes, Normed, TimeFrequency, TransformerBlock
from speechlab.models.spectral import SpectralModel


@dataclass(frozen=True)
class MPSENetConfig:
    """All that is needed to build an MP-SENet."""

    d_model: int = 64  # channels from encoder to decoders
    n_blocks: int = 4  # each along time and along frequency
    n_heads: int = 4
    axes: Axes = "named"
    # signal
    front_end: FrontEnd = field(default_factory=lambda: FrontEnd(offsets="mpsenet"))
    sample_rate: int = 16000  # Hz
    normalize: Literal["rms", "none"] = "rms"


class TimeFrequencyModel(SpectralModel):
    """A spectral model of blocks along time and frequency; its configuration has `axes`."""

    blocks: nn.ModuleList

    def between(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder gives, (B, C, L, F') -> what mask and phase decoder get, the same."""
        for block in self.blocks:
            x = block(x)
        return x, x

    def spectrum_of(self, noisy: Tensor) -> Spectrum:
        """noisy at unit level, (B, T) -> mag and phase of the estimate, (B, F, L)."""
        if self.config.axes == "named":
            return super().spectrum_of(noisy)
        items = map(super().spectrum_of, noisy.split(1))
        return Spectrum(*map(torch.cat, zip(*items, strict=True)))


class MPSENet(TimeFrequencyModel):
    """(B, 1, T) -> (B, 1, T), any T >= 1, with the level taken out and put back inside."""

    def __init__(self, config: MPSENetConfig | None = None) -> None:
        config = config or MPSENetConfig()
        check(config)
        super().__init__(config, config.d_model, "subpixel")
        self.blocks = nn.ModuleList(transformers(config) for _ in range(config.n_blocks))


def transformers(config: Any, normed: Normed = "all") -> TimeFrequency:
    """A block of one transformer along time and one along frequency."""
    options = config.d_model, config.n_heads, config.axes, normed
    return TimeFrequency(TransformerBlock(*options), TransformerBlock(*options))


def check(config: Any) -> None:
    """UserError for sizes that build no model."""
    sizes = {name: value for name, value in vars(config).items() if type(value) is int}
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{type(config).__name__}.{name} must be 1 or more, not {value}")
    if config.front_end.n_fft % 4:
        raise UserError(f"n_fft must be a multiple of 4, not {config.front_end.n_fft}")
