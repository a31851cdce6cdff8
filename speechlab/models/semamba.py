"""SEMamba, advanced: Mamba over time and over frequency (arXiv 2405.06573).

    mag, phase ─ Encoder ─► (B, C, L, F') ─ n_blocks x TFBlock ─┬─► MagnitudeDecoder ─ mask x mag
                                                                └─► PhaseDecoder ────── phase

A TFBlock has a sequence layer along the L frames (one sequence per frequency), then another along
the F' frequencies (one sequence per frame).

| code       | meaning                                      | published                       |
|------------|----------------------------------------------|---------------------------------|
| d_model, C | channels from encoder to decoders            | hid_feature 64                  |
| n_blocks   | TFBlocks                                     | num_tfmamba 4                   |
| layer      | sizes of the sequence layers                 | d_state 16, d_conv 4, expand 4  |
| F, F'      | frequency bins of the STFT and in the blocks | 201, 100                        |

Published: Mamba in both directions (2,258,769 parameters) and a forward-only one (1.41M, which is
expand 2 and no fusion: 1,408,849). Other values of `sequence_layer` are ours; the Conformer of the
paper's comparison is `mpsenet_conformer`. With direction "forward" the model still needs the whole
recording, for its convolutions and norms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from speechlab.audio.spectrum import FrontEnd
from speechlab.config import Count, SampleRate, Size
from speechlab.layers.bidirectional import Direction, a_few_at_once, sequence_layer
from speechlab.models.spectral import SpectralModel

LAYER = {"d_state": 16, "d_conv": 4, "expand": 4}


@dataclass(frozen=True)
class SEMambaAdvancedConfig:
    """All that is needed to build a SEMambaAdvanced."""

    d_model: Size = 64
    n_blocks: Count = 4
    # the sequence layers (speechlab.layers.bidirectional)
    sequence_layer: Literal["mamba", "mamba2", "transformer"] = "mamba"
    direction: Direction = "both"  # along time and along frequency
    layer: Mapping[str, Any] = field(default_factory=lambda: dict(LAYER))
    # signal
    front_end: FrontEnd = field(default_factory=FrontEnd)
    sample_rate: SampleRate = 16000  # Hz
    normalize: Literal["rms", "none"] = "rms"


class SEMambaAdvanced(SpectralModel):
    """(B, 1, T) -> (B, 1, T): a mask for the magnitudes and new phases."""

    def __init__(self, config: SEMambaAdvancedConfig | None = None) -> None:
        config = config or SEMambaAdvancedConfig()
        super().__init__(config, config.d_model, "transposed")
        self.blocks = nn.ModuleList(TFBlock(config) for _ in range(config.n_blocks))


class TFBlock(nn.Module):
    """A sequence layer along time, then one along frequency: (B, C, L, F) -> (B, C, L, F)."""

    def __init__(self, config: SEMambaAdvancedConfig) -> None:
        super().__init__()
        arguments = (config.sequence_layer, config.d_model, config.direction)
        self.time = sequence_layer(*arguments, **config.layer)
        self.frequency = sequence_layer(*arguments, **config.layer)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = x.permute(0, 3, 2, 1).flatten(0, 1)  # (B F, L, C)
        x = a_few_at_once(self.time, x).unflatten(0, (b, -1))  # (B, F, L, C)
        x = x.transpose(1, 2).flatten(0, 1)  # (B L, F, C)
        x = a_few_at_once(self.frequency, x).unflatten(0, (b, -1))  # (B, L, F, C)
        return x.permute(0, 3, 1, 2)  # (B, C, L, F)


CONFIGS = {
    "bidirectional": SEMambaAdvancedConfig(),
    "one_directional": SEMambaAdvancedConfig(direction="forward", layer=LAYER | {"expand": 2}),
    "mamba2": SEMambaAdvancedConfig(sequence_layer="mamba2"),
    "transformer": SEMambaAdvancedConfig(
        sequence_layer="transformer", layer={"n_heads": 4, "d_hidden": 256}
    ),
}
