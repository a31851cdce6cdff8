"""MP-SENet in three versions: magnitude and phase are estimated in parallel (arXiv 2308.08926).

    mag, phase ─ encoder ─► n_blocks x (time, frequency) ─┬─► mask decoder ─► mask x mag
                                                          └─► phase decoder ─► phase

| class            | blocks                     | source                                       |
|------------------|----------------------------|----------------------------------------------|
| MPSENet          | transformers               | arXiv 2308.08926, published weights          |
| MPSENetConformer | Conformers                 | arXiv 2305.13686, the first, short version   |
| MPSENetMamba     | two branches, one of Mamba | StrangeAlex/VK_SE_task, published weights    |

`axes` "named" is what the papers describe. Published weights were trained with the axes of
attention and GRU exchanged ("published", see `layers.time_frequency`). `load` sets that for them,
and `load(path, axes="named")` overrides it. Layers with exchanged axes mix the items of a batch, as
in the published code: `network` mixes them. `forward`, `spectrum` and `spectrum_of` take the
caller's signals and give such a model one item at a time, so each is enhanced as it is alone.

The Conformer version uses SEMamba's codec (dense convolutions that see frames before and after) and
a front end that adds nothing to magnitude and phase. No weights and no reference tensors are
published. Key names, wiring, dropout and the error of `axes` follow the authors' public code, and
the parameter count is the published one: weights trained with that code load as
`system="mpsenet_conformer"`. The level is assumed: the RMS of the utterance, as in later versions.

The Mamba version separates the branches of magnitude and phase:

    encoder ─ shared blocks ─┬─ 1x1 conv ─ Mamba blocks ───────┐ cross-   ┌─► mask decoder
                             └─ 1x1 conv ─ transformer blocks ─┘ attention └─► phase decoder

With named axes the cross-attention is over all points of the spectrogram; see
`layers.time_frequency.CrossAttention` for its cost. Only the query of attention is normalised, as
published. Mamba always runs along the named axes, forward in time and upward in frequency.

| size  | shared         | branches | Mamba               |
|-------|----------------|----------|---------------------|
| large | 6 transformers | 6 and 6  | one per axis        |
| small | 2 Mambas       | 2 and 2  | one for both axes   |
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from speechlab.audio.spectrum import FrontEnd, Spectrum
from speechlab.config import Count, Range, SampleRate, Size
from speechlab.errors import UserError
from speechlab.layers.conformer import ConformerBlock
from speechlab.layers.dense import Codec
from speechlab.layers.mixers import Mamba
from speechlab.layers.time_frequency import (
    Axes,
    CrossAttention,
    Normed,
    TimeFrequency,
    TransformerBlock,
    along_axes,
)
from speechlab.models.spectral import SpectralModel


@dataclass(frozen=True)
class MPSENetConfig:
    """All that is needed to build an MP-SENet."""

    d_model: Size = 64  # channels from encoder to decoders
    n_blocks: Count = 4  # each along time and along frequency
    n_heads: Count = 4
    axes: Axes = "named"
    # signal
    front_end: FrontEnd = field(default_factory=lambda: FrontEnd(offsets="mpsenet"))
    sample_rate: SampleRate = 16000  # Hz
    normalize: Literal["rms", "none"] = "rms"


@dataclass(frozen=True)
class MPSENetConformerConfig:
    """All that is needed to build an MP-SENet with Conformer blocks."""

    d_model: Size = 64  # channels from encoder to decoders
    n_blocks: Count = 4  # each along time and along frequency
    n_heads: Count = 4
    expand: Count = 4  # of the feed-forward layers
    kernel_size: Size = 31  # frames or bins, odd
    dropout: Annotated[float, Range(0, 0.99)] = 0.2  # while training
    axes: Axes = "named"
    # signal
    front_end: FrontEnd = field(default_factory=FrontEnd)
    sample_rate: SampleRate = 16000  # Hz
    normalize: Literal["rms", "none"] = "rms"


@dataclass(frozen=True)
class MPSENetMambaConfig:
    """All that is needed to build an MP-SENet with a Mamba branch."""

    d_model: Size = 64  # channels from encoder to decoders
    n_shared_blocks: Count = 6
    n_branch_blocks: Count = 6  # in either branch
    shared: Literal["transformer", "mamba"] = "transformer"  # kind of the shared blocks
    mamba: Literal["per_axis", "both_axes"] = "per_axis"  # both_axes: the same weights along both
    n_heads: Count = 4
    axes: Axes = "named"  # of transformers and cross-attention
    # signal
    front_end: FrontEnd = field(default_factory=lambda: FrontEnd(offsets="mpsenet"))
    sample_rate: SampleRate = 16000  # Hz
    normalize: Literal["rms", "none"] = "rms"


class TimeFrequencyModel(SpectralModel):
    """A spectral model of blocks along time and frequency; its configuration has `axes`."""

    def __init__(self, config: Any, n_channels: int, codec: Codec) -> None:
        super().__init__(config, n_channels, codec)
        if self.front_end.n_fft % 4:
            raise UserError(f"n_fft must be a multiple of 4, not {self.front_end.n_fft}")

    def spectrum_of(self, noisy: Tensor) -> Spectrum:
        """noisy at unit level, (B, T) -> mag and phase of the estimate, (B, F, L)."""
        if self.config.axes == "named":
            return super().spectrum_of(noisy)
        items = map(super().spectrum_of, noisy.split(1))
        return Spectrum(*map(torch.cat, zip(*items, strict=True)))


class MPSENet(TimeFrequencyModel):
    """(B, 1, T) -> (B, 1, T), any T >= 1, level handled inside."""

    def __init__(self, config: MPSENetConfig | None = None) -> None:
        config = config or MPSENetConfig()
        super().__init__(config, config.d_model, "subpixel")
        self.blocks = nn.ModuleList(_transformers(config) for _ in range(config.n_blocks))


class MPSENetConformer(TimeFrequencyModel):
    """(B, 1, T) -> (B, 1, T), any T >= 1, level handled inside."""

    def __init__(self, config: MPSENetConformerConfig | None = None) -> None:
        config = config or MPSENetConformerConfig()
        super().__init__(config, config.d_model, "transposed")
        if config.kernel_size % 2 == 0:
            raise UserError(f"kernel_size must be odd, not {config.kernel_size}")
        self.blocks = nn.ModuleList(_conformers(config) for _ in range(config.n_blocks))


class MPSENetMamba(TimeFrequencyModel):
    """(B, 1, T) -> (B, 1, T), any T >= 1, level handled inside."""

    def __init__(self, config: MPSENetMambaConfig | None = None) -> None:
        config = config or MPSENetMambaConfig()
        super().__init__(config, config.d_model, "subpixel")
        kinds = {"transformer": partial(_transformers, normed="query"), "mamba": MambaBlock}

        def blocks(kind: str, count: int) -> nn.ModuleList:
            return nn.ModuleList(kinds[kind](config) for _ in range(count))

        self.blocks = blocks(config.shared, config.n_shared_blocks)
        self.mag_conv = nn.Conv2d(config.d_model, config.d_model, 1)
        self.phase_conv = nn.Conv2d(config.d_model, config.d_model, 1)
        self.mag_branch = blocks("mamba", config.n_branch_blocks)
        self.phase_branch = blocks("transformer", config.n_branch_blocks)
        self.cross_attention = CrossAttention(config.d_model, config.n_heads, config.axes)

    @property
    def chunk_s(self) -> float:
        """Seconds of a chunk; the cost of named axes grows with the square of the length."""
        return 10.0 if self.config.axes == "named" else super().chunk_s

    def between(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder output (B, C, L, F') -> inputs of mask and phase decoder, the same shape."""
        x, _ = super().between(x)
        mag, phase = self.mag_conv(x), self.phase_conv(x)
        for mag_block, phase_block in zip(self.mag_branch, self.phase_branch, strict=True):
            mag, phase = mag_block(mag), phase_block(phase)
        return self.cross_attention(mag, phase)


class MambaBlock(nn.Module):
    """x + Mamba(norm(x)) along time, then along frequency, with one norm for both.

    (B, C, L, F) -> the same shape.
    """

    def __init__(self, config: MPSENetMambaConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        n_scans = {"per_axis": 2, "both_axes": 1}[config.mamba]
        self.scans = nn.ModuleList(Mamba(config.d_model) for _ in range(n_scans))

    def forward(self, x: Tensor) -> Tensor:
        time, freq = self.scans[0], self.scans[-1]
        return along_axes(x, lambda x: time(self.norm(x))[0], lambda x: freq(self.norm(x))[0])


def _transformers(
    config: MPSENetConfig | MPSENetMambaConfig, normed: Normed = "all"
) -> TimeFrequency:
    """A block of one transformer along time and one along frequency."""
    options = config.d_model, config.n_heads, config.axes, normed
    return TimeFrequency(TransformerBlock(*options), TransformerBlock(*options))


def _conformers(config: MPSENetConformerConfig) -> TimeFrequency:
    """A block of one Conformer along time and one along frequency."""
    options = config.d_model, config.n_heads, config.axes
    sizes = config.expand, config.kernel_size, config.dropout
    return TimeFrequency(ConformerBlock(*options, *sizes), ConformerBlock(*options, *sizes))


MAMBA_CONFIGS = {
    "large": MPSENetMambaConfig(),
    "small": MPSENetMambaConfig(
        n_shared_blocks=2, n_branch_blocks=2, shared="mamba", mamba="both_axes"
    ),
}
