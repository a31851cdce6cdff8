"""MP-SENet with a Mamba branch for the magnitude (StrangeAlex/VK_SE_task).

    encoder ─ shared blocks ─┬─ 1x1 conv ─ Mamba blocks ───────┐ cross-   ┌─► mask decoder
                             └─ 1x1 conv ─ transformer blocks ─┘ attention └─► phase decoder

All else, `axes` included, is `models.mpsenet`. Named axes make the cross-attention one
over all points of the spectrogram, see `layers.time_frequency.CrossAttention` for its cost.
Of what attention sees only the query is normed, as published. Mamba runs along the axes that it
claims in either case, forward in time and upward in frequency.

| size  | shared         | branches | Mamba               |
|-------|----------------|----------|---------------------|
| large | 6 transformers | 6 and 6  | one per axis        |
| small | 2 Mambas       | 2 and 2  | one for both axes   |
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor, nn

from speechlab.audio.spectrum import FrontEnd
from speechlab.layers.mixers import Mamba
from speechlab.layers.time_frequency import Axes, CrossAttention, along_axes
from speechlab.models.mpsenet import TimeFrequencyModel, check, transformers


@dataclass(frozen=True)
class MPSENetMambaConfig:
    """All that is needed to build an MP-SENet with a Mamba branch."""

    d_model: int = 64  # channels from encoder to decoders
    n_shared_blocks: int = 6
    n_branch_blocks: int = 6  # in either branch
    shared: Literal["transformer", "mamba"] = "transformer"  # kind of the shared blocks
    mamba: Literal["per_axis", "both_axes"] = "per_axis"  # both_axes: the same weights along both
    n_heads: int = 4
    axes: Axes = "named"  # of transformers and cross-attention
    # signal
    front_end: FrontEnd = field(default_factory=lambda: FrontEnd(offsets="mpsenet"))
    sample_rate: int = 16000  # Hz
    normalize: Literal["rms", "none"] = "rms"


class MPSENetMamba(TimeFrequencyModel):
    """(B, 1, T) -> (B, 1, T), any T >= 1, with the level taken out and put back inside."""

    def __init__(self, config: MPSENetMambaConfig | None = None) -> None:
        config = config or MPSENetMambaConfig()
        check(config)
        super().__init__(config, config.d_model, "subpixel")
        kinds = {"transformer": partial(transformers, normed="query"), "mamba": MambaBlock}

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
        """Seconds at once of a longer recording; named axes cost their square."""
        return 10.0 if self.config.axes == "named" else super().chunk_s

    def between(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder gives, (B, C, L, F') -> what mask and phase decoder get, the same."""
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


CONFIGS = {
    "large": MPSENetMambaConfig(),
    "small": MPSENetMambaConfig(
        n_shared_blocks=2, n_branch_blocks=2, shared="mamba", mamba="both_axes"
    ),
}
