"""MP-SENet with Conformer blocks: its first, short version (arXiv 2305.13686).

As `models.mpsenet`, but for Conformer blocks, SEMamba's codec (dense convolutions that
see frames before and after) and a front end that adds nothing to magnitude and phase. No weights
are published and no reference tensors exist. Key names, wiring, dropout and the slip of `axes`
are those of the authors' public code, the parameter count is the published one: weights trained
with that code load as `system="mpsenet_conformer"`. Assumed is the level, the RMS of the
utterance, as in all later versions.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from speechlab.audio.spectrum import FrontEnd
from speechlab.errors import UserError
from speechlab.layers.conformer import ConformerBlock
from speechlab.layers.time_frequency import Axes, TimeFrequency
from speechlab.models.mpsenet import TimeFrequencyModel, check


@dataclass(frozen=True)
class MPSENetConformerConfig:
    """All that is needed to build an MP-SENet with Conformer blocks."""

    d_model: int = 64  # channels from encoder to decoders
    n_blocks: int = 4  # each along time and along frequency
    n_heads: int = 4
    expand: int = 4  # of the feed-forward layers
    kernel_size: int = 31  # frames or bins, odd
    dropout: float = 0.2  # while training
    axes: Axes = "named"
    # signal
    front_end: FrontEnd = field(default_factory=FrontEnd)
    sample_rate: int = 16000  # Hz
    normalize: Literal["rms", "none"] = "rms"


class MPSENetConformer(TimeFrequencyModel):
    """(B, 1, T) -> (B, 1, T), any T >= 1, with the level taken out and put back inside."""

    def __init__(self, config: MPSENetConformerConfig | None = None) -> None:
        config = config or MPSENetConformerConfig()
        check(config)
        if config.kernel_size % 2 == 0:
            raise UserError(f"kernel_size must be odd, not {config.kernel_size}")
        if not 0 <= config.dropout < 1:
            raise UserError(f"dropout must be at least 0 and less than 1, not {config.dropout}")
        super().__init__(config, config.d_model, "transposed")
        self.blocks = nn.ModuleList(_conformers(config) for _ in range(config.n_blocks))


def _conformers(config: MPSENetConformerConfig) -> TimeFrequency:
    options = config.d_model, config.n_heads, config.axes
    sizes = config.expand, config.kernel_size, config.dropout
    return TimeFrequency(ConformerBlock(*options, *sizes), ConformerBlock(*options, *sizes))
