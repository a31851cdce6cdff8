"""CleanUMamba: a causal waveform U-Net with a sequence mixer at the bottom (arXiv 2410.11062).

    noisy ─ level ─► k4 s2 conv, ReLU, 1x1 conv, GLU ─► … ─► d_model ─ mixers ─► … ─► estimate
                          │ skip (added)                                  ▲
                          └──────────► 1x1 conv, GLU, transposed k4 s2 conv, ReLU

| code          | meaning                                                             | paper |
|---------------|---------------------------------------------------------------------|-------|
| n_levels      | strided convolutions in the encoder, as many transposed ones        | E     |
| down_channels | outputs of the strided conv of each level, outermost first          | H     |
| skip_channels | outputs of each level, which the skip carries to the decoder        | H     |
| up_channels   | inputs of the transposed conv of each level, outermost first        | H     |
| layers        | arguments of each mixer at the bottom (`layers.mixers`)   | N     |
| hop_length    | samples per frame at the bottom, stride ** n_levels                 |       |
| frame_length  | samples of input that one frame at the bottom depends on            |       |

An unpruned model has one width per level in all three lists; pruning changes each separately.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.config import Range, SampleRate, Size, Sizes
from speechlab.errors import UserError
from speechlab.layers.channels import (
    Group,
    inner_groups,
    inputs,
    narrowed_layers,
    outer_members,
    outputs,
)
from speechlab.layers.conv import strided, transposed
from speechlab.layers.stacks import STACKS, check_options, init_residual
from speechlab.models.base import ChunkedModel, StateLeak, check_hop, leak

State = tuple[Any, ...]  # nested tuples of tensors; None before the first chunk
Layers = Annotated[tuple[dict[str, Any], ...], Range(1, 256)]  # settings of each layer
LEAKING = ("mamba", "mamba2", "mamba_s4")  # mixers with a leak


@dataclass(frozen=True)
class CleanUMambaConfig:
    """All that is needed to build a CleanUMamba."""

    # encoder and decoder, one number per level, outermost level first
    down_channels: Sizes = (64, 128, 256, 512, 768, 768, 768, 768)
    skip_channels: Sizes = (64, 128, 256, 512, 768, 768, 768, 768)
    up_channels: Sizes = (64, 128, 256, 512, 768, 768, 768, 768)
    kernel_size: Size = 4
    stride: Size = 2
    # bottleneck
    mixer: Literal["mamba", "mamba2", "mamba_s4", "lstm", "mha"] = "mamba"
    d_model: Size = 512
    layers: Layers = ({"d_state": 64, "expand": 4},) * 3
    state_leak_s: StateLeak = None  # of the Mambas; noise suppression then lasts in long streams
    # signal
    sample_rate: SampleRate = 16000  # Hz
    normalize: Literal["utterance", "running", "none"] = "utterance"


class CleanUMamba(ChunkedModel):
    """(B, 1, T) -> (B, 1, T), any T >= 1; the level is handled inside.

    Causal up to `look_ahead` samples with `normalize` "running" or "none"; "utterance" divides
    by the standard deviation of the whole signal, as in the published training.
    """

    def __init__(self, config: CleanUMambaConfig | None = None) -> None:
        config = config or CleanUMambaConfig()
        super().__init__(config)
        _check(config)
        pairs = [_level(config, i) for i in range(len(config.skip_channels))]
        self.encoder = nn.ModuleList(down for down, _ in pairs)
        self.decoder = nn.ModuleList(up for _, up in reversed(pairs))
        deepest = config.skip_channels[-1]
        self.conv_in = nn.Conv1d(deepest, config.d_model, 1)
        layers = [{**layer, **leak(config, self.hop_length)} for layer in config.layers]
        self.bottleneck = STACKS[config.mixer](config.mixer, config.d_model, layers)
        self.conv_out = nn.Conv1d(config.d_model, deepest, 1)
        self.apply(_rescale_convolution)
        self.bottleneck.apply(partial(init_residual, n_layers=len(config.layers)))

    @property
    def hop_length(self) -> int:
        """Samples between two frames at the bottleneck."""
        return self.config.stride ** len(self.encoder)

    @property
    def frame_length(self) -> int:
        """Samples of input of one bottleneck frame; the first output needs all of them."""
        return self.padded_length(1)

    def padded_length(self, length: int) -> int:
        """The smallest length >= `length` that every strided convolution divides exactly."""
        kernel, stride = self.config.kernel_size, self.config.stride
        for _ in self.encoder:
            length = 1 + max(0, -(-(length - kernel) // stride))
        for _ in self.encoder:
            length = (length - 1) * stride + kernel
        return length

    def layer_rates(self) -> Iterator[tuple[nn.Module, float]]:
        """Each layer and its applications per second; of a transposed one, per input position.

        Some layers of this model are used by their weights only, so `macs` cannot observe calls.
        """
        rate = float(self.sample_rate)
        for down, up in zip(self.encoder, reversed(self.decoder), strict=True):
            rate /= self.config.stride
            for layer in (down, up):
                yield from ((module, rate) for module in layer.modules())
        for layer in (self.conv_in, self.bottleneck, self.conv_out):
            yield from ((module, rate) for module in layer.modules())

    def channel_groups(self) -> dict[str, Group]:
        """The paper's groups; level 0 is the outermost, layer 0 the first of the bottleneck.

        encode_down_i: outputs of a strided conv; decode_mix_i: inputs of a transposed conv;
        skip_conn_i: outputs of a level, its skip and what is added to it; d_model; those inside a
        layer, for Mamba d_inner0, d_state0, dt_rank0, …
        """
        config, n_levels, groups = self.config, len(self.encoder), {}
        for i in range(n_levels):
            encoder, decoder = f"encoder.{i}", f"decoder.{n_levels - 1 - i}"
            down = outputs(self, f"{encoder}.down") + inputs(self, f"{encoder}.mix")
            mix = outputs(self, f"{decoder}.mix", halves=2) + inputs(self, f"{decoder}.up")
            skip = outputs(self, f"{encoder}.mix", halves=2) + inputs(self, f"{decoder}.mix")
            innermost = i == n_levels - 1
            skip += inputs(self, "conv_in" if innermost else f"encoder.{i + 1}.down")
            skip += outputs(self, "conv_out" if innermost else f"decoder.{n_levels - 2 - i}.up")
            groups[f"encode_down_{i}"] = Group(config.down_channels[i], down)
            groups[f"decode_mix_{i}"] = Group(config.up_channels[i], mix)
            groups[f"skip_conn_{i}"] = Group(config.skip_channels[i], skip)
        outer = outputs(self, "conv_in") + inputs(self, "conv_out")
        groups["d_model"] = Group(config.d_model, outer + outer_members(self, "bottleneck"))
        return groups | inner_groups(self)

    def narrowed(self, widths: Mapping[str, int]) -> CleanUMambaConfig:
        levels = range(len(self.encoder))
        return replace(
            self.config,
            down_channels=tuple(widths[f"encode_down_{i}"] for i in levels),
            skip_channels=tuple(widths[f"skip_conn_{i}"] for i in levels),
            up_channels=tuple(widths[f"decode_mix_{i}"] for i in levels),
            d_model=widths["d_model"],
            layers=narrowed_layers(self, widths),
        )

    def network(self, x: Tensor, state: State | None, last: bool) -> tuple[Tensor, State]:
        """All but the level, on the next chunk of a signal: (B, 1, n) -> (B, 1, m) and the state.

        The output ends where later input would change it. With `last`, which needs a signal of a
        `padded_length`, it has all remaining samples. A whole signal is one chunk: offline and
        streaming are the same computation.
        """
        nothing = (None,) * len(self.encoder)
        down, between, up, waiting = state or (nothing, None, nothing, nothing)
        skips, tails = [], []
        for layer, tail, queue in zip(self.encoder, down, waiting, strict=True):
            x, tail = layer(x, tail)  # (B, C, L), L halved
            skips.append(x if queue is None else torch.cat([queue, x], -1))
            tails.append(tail)
        if x.shape[-1]:
            x = self.conv_in(x).transpose(1, 2)  # (B, L, d_model)
            x, between = self.bottleneck(x, between)
            x = self.conv_out(x.transpose(1, 2))  # (B, C, L)
        overlaps, queues = [], []
        for layer, overlap, skip in zip(self.decoder, up, reversed(skips), strict=True):
            length = x.shape[-1]
            x, overlap = layer(x + skip[..., :length], overlap, last)  # (B, C, L), L doubled
            overlaps.append(overlap)
            queues.append(skip[..., length:])
        return x, (tuple(tails), between, tuple(overlaps), tuple(reversed(queues)))


class EncoderLayer(nn.Module):
    """Strided conv -> ReLU -> 1x1 conv -> GLU: (B, C, L) -> (B, C', 1 + (L - k) / s)."""

    def __init__(self, n_in: int, n_down: int, n_out: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.down = nn.Conv1d(n_in, n_down, kernel_size, stride)
        self.mix = nn.Conv1d(n_down, 2 * n_out, 1)

    def forward(self, x: Tensor, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: the next samples. Returns the completed frames and the remaining samples."""
        x, tail = strided(self.down, x, tail)
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.mix.out_channels // 2, 0), tail
        return F.glu(self.mix(F.relu(x)), 1), tail


class DecoderLayer(nn.Module):
    """1x1 conv -> GLU -> transposed conv (-> ReLU): (B, C, L) -> (B, C', (L - 1) s + k)."""

    def __init__(
        self, n_in: int, n_up: int, n_out: int, kernel_size: int, stride: int, activation: nn.Module
    ) -> None:
        super().__init__()
        self.mix = nn.Conv1d(n_in, 2 * n_up, 1)
        self.up = nn.ConvTranspose1d(n_up, n_out, kernel_size, stride)
        self.activation = activation

    def forward(
        self, x: Tensor, overlap: Tensor | None = None, last: bool = True
    ) -> tuple[Tensor, Tensor]:
        """x: the next frames. Returns the samples that are final; with `last`, all."""
        frames = F.glu(self.mix(x), 1) if x.shape[-1] else x
        y, overlap = transposed(self.up, frames, overlap, last)
        return self.activation(y), overlap


def _level(config: CleanUMambaConfig, i: int) -> tuple[EncoderLayer, DecoderLayer]:
    """Encoder and decoder layer of level i, built in the published order of random draws."""
    outer = config.skip_channels[i - 1] if i else 1
    inner, conv = config.skip_channels[i], (config.kernel_size, config.stride)
    down = EncoderLayer(outer, config.down_channels[i], inner, *conv)
    activation = nn.ReLU() if i else nn.Identity()  # the last layer writes the waveform
    return down, DecoderLayer(inner, config.up_channels[i], outer, *conv, activation)


def _check(config: CleanUMambaConfig) -> None:
    widths = (config.down_channels, config.skip_channels, config.up_channels)
    if len(set(map(len, widths))) != 1:
        raise UserError(f"CleanUMamba needs one width per level in all three lists, not {widths}")
    if config.stride > config.kernel_size:
        raise UserError(f"stride {config.stride} is not in 1 to kernel_size {config.kernel_size}")
    check_hop(config.stride ** len(widths[0]))
    check_options(config.mixer, config.layers)
    if config.state_leak_s is not None and config.mixer not in LEAKING:
        mixers = ", ".join(LEAKING)
        raise UserError(f"state_leak_s is for {mixers}, not for {config.mixer}; leave it out")


def _rescale_convolution(module: nn.Module) -> None:
    """CleanUNet's initialisation: weights and bias divided by sqrt(10 std(weight))."""
    if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
        with torch.no_grad():
            scale = (10 * module.weight.std()).sqrt()
            module.weight /= scale
            module.bias /= scale


def _unpruned(first: int, last: int, n_levels: int) -> dict[str, tuple[int, ...]]:
    """One width per level, doubled from `first` and capped at `last`."""
    widths = tuple(min(first * 2**i, last) for i in range(n_levels))
    return {"down_channels": widths, "skip_channels": widths, "up_channels": widths}


def ablation_config(mixer: str = "mamba") -> CleanUMambaConfig:
    """The 442K size of the paper's mixer comparison (table 1), with any mixer."""
    layer = {
        "mamba": {"d_state": 16},
        "mamba2": {"d_state": 16, "d_head": 16},
        "mamba_s4": {"n_channels": 16},
        "lstm": {},
        "mha": {"n_heads": 4, "d_hidden": 128},
    }[mixer]
    return CleanUMambaConfig(**_unpruned(32, 64, 8), mixer=mixer, d_model=64, layers=(layer,) * 3)


def tiny_config(mixer: str = "mamba") -> CleanUMambaConfig:
    """A size that trains in minutes on two processor cores: the default of the study."""
    ablation = ablation_config(mixer)
    small = {"d_state": 8} if mixer == "mamba" else ablation.layers[0]
    return CleanUMambaConfig(**_unpruned(16, 24, 6), mixer=mixer, d_model=32, layers=(small,) * 2)


CONFIGS = {
    "e8": CleanUMambaConfig(**_unpruned(64, 768, 8)),
    "e6": CleanUMambaConfig(**_unpruned(64, 768, 6)),
    "ablation": ablation_config(),
    "tiny": tiny_config(),
}
