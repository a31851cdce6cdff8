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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from typing import Any, Literal

from torch import Tensor, nn

from speechlab.audio.spectrum import FrontEnd
from speechlab.config import Count, Layers, SampleRate, Size, Widths
from speechlab.layers.bidirectional import (
    CAUSAL,
    Direction,
    a_few_at_once,
    n_layers,
    sequence_layer,
)
from speechlab.layers.channels import (
    Group,
    Members,
    inner_groups,
    inputs,
    narrowed_layers,
    outer_members,
    outputs,
)
from speechlab.layers.dense import N_WIDTHS, unit_outputs
from speechlab.layers.stacks import check_number
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
    # widths of a pruned model; if empty, those of `d_model` and `layer`
    encoder_channels: Widths = ()  # outputs of the 1x1 conv and the four convs of the dense block
    mask_channels: Widths = ()  # outputs of those four convs and the transposed one, of the mask
    phase_channels: Widths = ()  # the same of the phase
    layers: Layers = ()  # of each layer: of a block along time, along frequency; forward first
    # signal
    front_end: FrontEnd = field(default_factory=FrontEnd)
    sample_rate: SampleRate = 16000  # Hz
    normalize: Literal["rms", "none"] = "rms"


class SEMambaAdvanced(SpectralModel):
    """(B, 1, T) -> (B, 1, T): a mask for the magnitudes and new phases."""

    def __init__(self, config: SEMambaAdvancedConfig | None = None) -> None:
        config = config or SEMambaAdvancedConfig()
        widths = config.encoder_channels, config.mask_channels, config.phase_channels
        super().__init__(config, config.d_model, "transposed", widths)
        n = n_layers(config.sequence_layer, config.direction)
        check_number("layers", config.layers, 2 * config.n_blocks * n)
        layers = iter(config.layers or repeat(config.layer))
        self.blocks = nn.ModuleList(TFBlock(config, layers) for _ in range(config.n_blocks))

    def channel_groups(self) -> dict[str, Group]:
        """Those of convolutions, then d_model, then those inside each mixer.

        encode_0 to encode_4: outputs of the 1x1 conv and of the dense block; mask_0 to mask_4,
        phase_0 to phase_4: outputs of the dense block and of the transposed conv; d_inner0, …:
        mixers in the order of `config.layers`. UserError for other sequence layers.
        """
        if self.config.sequence_layer not in CAUSAL:
            return super().channel_groups()
        encoder = self.encoder.dense.readers("encoder.dense")
        encoder[-1] += inputs(self, "encoder.down.conv")
        paths = ["encoder.widen", *(f"encoder.dense.layers.{i}" for i in range(len(encoder) - 1))]
        written = [unit_outputs(self, path) for path in paths]
        groups = _groups(self, "encode", written, encoder)
        outer = unit_outputs(self, "encoder.down") + outer_members(self, "blocks")
        ends = {
            "mask": outputs(self, "mask_decoder.up"),
            "phase": unit_outputs(self, "phase_decoder", "up"),
        }
        last = {"mask": ("narrow.0",), "phase": ("real", "imaginary")}
        for name, end in ends.items():
            path = f"{name}_decoder"
            first, *dense = self.get_submodule(f"{path}.dense").readers(f"{path}.dense")
            dense[-1] += inputs(self, f"{path}.up")
            dense.append(sum((inputs(self, f"{path}.{layer}") for layer in last[name]), ()))
            written = [
                unit_outputs(self, f"{path}.dense.layers.{i}") for i in range(len(dense) - 1)
            ]
            groups |= _groups(self, name, [*written, end], dense)
            outer += first
        groups["d_model"] = Group(self.config.d_model, outer)
        return groups | inner_groups(self)

    def narrowed(self, widths: Mapping[str, int]) -> SEMambaAdvancedConfig:
        convs = {
            f"{part}_channels": tuple(widths[f"{name}_{i}"] for i in range(N_WIDTHS))
            for part, name in {"encoder": "encode", "mask": "mask", "phase": "phase"}.items()
        }
        layers = narrowed_layers(self, widths)
        return replace(self.config, d_model=widths["d_model"], layers=layers, **convs)


def _groups(
    model: nn.Module, name: str, written: Sequence[Members], read: Sequence[Members]
) -> dict[str, Group]:
    """Groups `name`_0, …: what each layer writes and which layers read it."""
    sizes = (model.get_parameter(first.name).shape[first.dim] for first, *_ in written)
    parts = enumerate(zip(sizes, written, read, strict=True))
    return {f"{name}_{i}": Group(size, ours + theirs) for i, (size, ours, theirs) in parts}


class TFBlock(nn.Module):
    """A sequence layer along time, then one along frequency: (B, C, L, F) -> (B, C, L, F)."""

    def __init__(self, config: SEMambaAdvancedConfig, layers: Iterator[Mapping[str, Any]]) -> None:
        """layers: settings of one layer after the other."""
        super().__init__()
        arguments = (config.sequence_layer, config.d_model, config.direction)
        n = n_layers(config.sequence_layer, config.direction)
        self.time = sequence_layer(*arguments, list(islice(layers, n)))
        self.frequency = sequence_layer(*arguments, list(islice(layers, n)))

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
