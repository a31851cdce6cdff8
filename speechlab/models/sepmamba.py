"""SepMamba: a waveform U-Net with Mamba at every level, for two speakers (arXiv 2410.20997).

    mixture ─► conv, ReLU, Mamba ─► … ─► transposed conv, ReLU ─► 1x1 conv, ReLU, Mamba ─► sources
                             └─ skip, concatenated ────────────┘           (by a transposed conv)

| code         | meaning                                                      | published         |
|--------------|--------------------------------------------------------------|-------------------|
| channels     | outputs of the strided conv of each level, outermost first   | dim, 2 dim, 4 dim |
| kernel_sizes | of each level, in frames of the level outside, or in samples | 16, 16, 16        |
| n_blocks     | blocks x + Mamba(LayerNorm(x)) of each stack                 | 4 or 3; causal 2x |
| direction    | "both": a forward plus a backward stack; "forward": one      | both              |
| hop_length   | samples per frame of the innermost level, stride ** n_levels | 8                 |

Direct regression: no mask, no filterbank and, as published, no level. All mixtures of the published
training have a peak of 0.9, and far from that the model fails. For inputs of any level, train with
`normalize` "utterance", or with "running" for streams.

Convolutions are not padded, so the published output has 2 floor(T / 2) samples. Here it is as long
as the input, and a last sample that no frame covers is 0. An input shorter than a frame (106
samples), which the published code refuses, is padded with zeros.

Multiply-accumulates, by the rule of `models.macs`: 11.96 G a second for S, 34.42 G for M,
bidirectional or causal. The paper gives 12.46 and 37.0 without a rule. With transposed convolutions
counted per output sample, as profilers do, the count would be 12.76 and 37.58.

Initialisation: PyTorch's for convolutions; for the blocks of each stack mamba-ssm's `_init_weights`
with as many layers as the stack has, in the published order of random draws.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise, repeat
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.config import Count, Layers, SampleRate, Size, Sizes, Widths
from speechlab.errors import UserError
from speechlab.layers.bidirectional import N_DIRECTIONS, BothWays, Direction
from speechlab.layers.channels import (
    Group,
    inner_groups,
    inputs,
    narrowed_layers,
    outer_members,
    outputs,
)
from speechlab.layers.conv import strided, transposed
from speechlab.layers.mixers import Mamba
from speechlab.layers.stacks import Block, Stack, check_number, check_options, init_residual
from speechlab.models.base import ChunkedModel, StateLeak, check_hop, leak

State = tuple[Any, ...]  # nested tuples of tensors; None before the first chunk
Settings = Iterator[Mapping[str, Any]]  # of one Mamba after the other


@dataclass(frozen=True)
class SepMambaConfig:
    """All that is needed to build a SepMamba."""

    # convolutions, one number per level, outermost level first
    channels: Sizes = (64, 128, 256)
    kernel_sizes: Sizes = (16, 16, 16)
    stride: Size = 2
    # Mamba: of every level, in each direction
    n_blocks: Count = 4
    direction: Direction = "both"
    layer: Mapping[str, Any] = field(
        default_factory=lambda: {"d_state": 16, "d_conv": 4, "expand": 2}
    )
    # widths of a pruned model; if empty, those of `channels` and `layer`
    up_channels: Widths = ()  # outputs of the transposed conv to each level but the innermost
    decode_channels: Widths = ()  # outputs of the 1x1 conv of the same levels, outermost first
    layers: Layers = ()  # of each Mamba: encoder from outside, decoder from inside; forward first
    # signal
    n_sources: Count = 2
    sample_rate: SampleRate = 8000  # Hz
    normalize: Literal["utterance", "running", "none"] = "none"
    state_leak_s: StateLeak = None  # with direction "forward"


class SepMamba(ChunkedModel):
    """mixture (B, 1, T) -> sources (B, S, T), any T >= 1, in no particular order.

    Causal up to `look_ahead` samples with direction "forward" and `normalize` "running" or "none";
    "utterance" divides by the standard deviation of the whole signal.
    """

    def __init__(self, config: SepMambaConfig | None = None) -> None:
        config = config or SepMambaConfig()
        super().__init__(config)
        _check(config)
        channels, layers = config.channels, _settings(config)
        up, decode = (w or channels[:-1] for w in (config.up_channels, config.decode_channels))
        convs = zip(pairwise((1, *channels)), config.kernel_sizes, strict=True)
        self.encoder = nn.ModuleList(EncoderLayer(*c, k, config, layers) for c, k in convs)
        inner = (*decode[1:], channels[-1])
        convs = zip(inner, up, channels[:-1], decode, config.kernel_sizes[1:], strict=True)
        self.decoder = nn.ModuleList(DecoderLayer(*c, config, layers) for c in [*convs][::-1])
        outermost = (*decode, channels[-1])[0]
        self.out = nn.ConvTranspose1d(
            outermost, config.n_sources, config.kernel_sizes[0], config.stride
        )

    def channel_groups(self) -> dict[str, Group]:
        """Level 0 is the outermost, layer 0 the first Mamba in the order of `config.layers`.

        encode_i: outputs of a strided conv and the Mambas behind it, and its skip; up_i: outputs of
        a transposed conv; decode_i: outputs of a 1x1 conv and the Mambas behind it; those inside a
        Mamba: d_inner0, d_state0, dt_rank0, …
        """
        groups, n_inner = {}, len(self.decoder)
        for i, layer in enumerate(self.encoder):
            path = f"decoder.{n_inner - i}"  # of the transposed conv of this level
            below = inputs(self, f"{path}.up" if i else "out")
            encode = outputs(self, f"encoder.{i}.down") + outer_members(self, f"encoder.{i}.mamba")
            n_skip, path = layer.down.out_channels, f"decoder.{n_inner - 1 - i}"
            if i == n_inner:
                groups[f"encode_{i}"] = Group(n_skip, encode + below)
                break
            encode += inputs(self, f"encoder.{i + 1}.down") + inputs(self, f"{path}.fusion")
            up = outputs(self, f"{path}.up") + inputs(self, f"{path}.fusion", offset=n_skip)
            decode = outputs(self, f"{path}.fusion") + outer_members(self, f"{path}.mamba") + below
            fusion = self.get_submodule(f"{path}.fusion")
            groups[f"encode_{i}"] = Group(n_skip, encode)
            groups[f"up_{i}"] = Group(fusion.in_channels - n_skip, up)
            groups[f"decode_{i}"] = Group(fusion.out_channels, decode)
        return groups | inner_groups(self)

    def narrowed(self, widths: Mapping[str, int]) -> SepMambaConfig:
        levels = range(len(self.encoder))
        return replace(
            self.config,
            channels=tuple(widths[f"encode_{i}"] for i in levels),
            up_channels=tuple(widths[f"up_{i}"] for i in levels[:-1]),
            decode_channels=tuple(widths[f"decode_{i}"] for i in levels[:-1]),
            layers=narrowed_layers(self, widths),
        )

    @property
    def n_sources(self) -> int:
        """S, speakers in the output."""
        return self.config.n_sources

    @property
    def hop_length(self) -> int:
        """Samples between two frames of the innermost level."""
        return self.config.stride ** len(self.encoder)

    @property
    def frame_length(self) -> int:
        """Samples of input of a frame of the innermost level; the first output needs them all."""
        length = 1
        for kernel in reversed(self.config.kernel_sizes):
            length = (length - 1) * self.config.stride + kernel
        return length

    def padded_length(self, length: int) -> int:
        """`length`, or that of one frame if that is longer."""
        return max(length, self.frame_length)

    def network(self, x: Tensor, state: State | None, last: bool) -> tuple[Tensor, State]:
        """All but the level, on the next chunk: (B, 1, n) -> sources (B, S, m) and the state.

        The output ends where later input would change it. With `last`, which needs a signal of a
        `padded_length`, it has all remaining samples. A whole signal is one chunk: offline and
        streaming are the same computation. UserError for a part of a signal with direction "both".

        State: of each layer, the encoder's from the outermost, the decoder's from the innermost;
        the overlap of the last transposed convolution; frames (B, C, n) of each level but the
        innermost that wait for the decoder.
        """
        self.refuse_part(state, last)
        nothing = (None,) * len(self.decoder)
        down, up, overlap, waiting = state or ((None, *nothing), nothing, None, nothing)
        downs, ups, skips, queues = [], [], [], []
        for layer, before in zip(self.encoder, down, strict=True):
            x, after = layer(x, before)  # (B, C, L), L halved
            downs.append(after)
            skips.append(x)
        queued = zip(waiting, skips[:-1], strict=True)
        skips = [x if queue is None else torch.cat([queue, x], -1) for queue, x in queued]
        for layer, before in zip(self.decoder, up, strict=True):
            skip = skips.pop()
            x, after = layer(x, skip, before, last)  # (B, C, L), L doubled
            ups.append(after)
            queues.append(skip[..., x.shape[-1] :].clone())
        x, overlap = transposed(self.out, x, overlap, last)  # (B, S, m)
        if last:  # zeros for the samples after the last frame of the outermost level
            n_rest = downs[0][0].shape[-1]
            x = F.pad(x, (0, n_rest - self.config.kernel_sizes[0] + self.config.stride))
        return x, (tuple(downs), tuple(ups), overlap, tuple(reversed(queues)))


class EncoderLayer(nn.Module):
    """Strided conv -> ReLU -> Mamba: (B, C, L) -> (B, C', 1 + (L - k) / s)."""

    def __init__(
        self, n_in: int, n_out: int, kernel_size: int, config: SepMambaConfig, layers: Settings
    ) -> None:
        super().__init__()
        self.down = nn.Conv1d(n_in, n_out, kernel_size, config.stride)
        self.mamba = MAMBAS[config.direction](n_out, config.n_blocks, layers)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """x: the next samples. State: samples of unfinished frames, state of the blocks."""
        tail, between = state or (None, None)
        x, tail = strided(self.down, x, tail)
        if x.shape[-1]:
            x, between = _along_time(self.mamba, F.relu(x), between)
        return x, (tail, between)


class DecoderLayer(nn.Module):
    """Transposed conv -> ReLU -> 1x1 conv with the skip -> ReLU -> Mamba: (B, C, L) -> skip's."""

    def __init__(
        self,
        n_in: int,
        n_up: int,
        n_skip: int,
        n_out: int,
        kernel_size: int,
        config: SepMambaConfig,
        layers: Settings,
    ) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(n_in, n_up, kernel_size, config.stride)
        self.fusion = nn.Conv1d(n_skip + n_up, n_out, 1)
        self.mamba = MAMBAS[config.direction](n_out, config.n_blocks, layers)

    def forward(
        self, x: Tensor, skip: Tensor, state: State | None = None, last: bool = True
    ) -> tuple[Tensor, State]:
        """x: the next frames; skip (B, C', n): the waiting frames of the outer level.

        Returns the frames that are final; with `last`, as many as the skip, padded with zeros.
        State: the overlap, state of the blocks.
        """
        overlap, between = state or (None, None)
        x, overlap = transposed(self.up, x, overlap, last)
        x = F.relu(x)
        if last:
            x = F.pad(x, (0, skip.shape[-1] - x.shape[-1]))
        if x.shape[-1]:
            x = F.relu(self.fusion(torch.cat([skip[..., : x.shape[-1]], x], 1)))
            x, between = _along_time(self.mamba, x, between)
        return x, (overlap, between)


def _settings(config: SepMambaConfig) -> Settings:
    """In the order of `config.layers`, each with the leak of its level."""
    layers, n_levels = iter(config.layers or repeat(config.layer)), len(config.channels)
    for level in (*range(1, n_levels + 1), *range(n_levels - 1, 0, -1)):
        for _ in range(config.n_blocks * N_DIRECTIONS[config.direction]):
            yield {**next(layers), **leak(config, config.stride**level)}


def _stack(d_model: int, n_blocks: int, layers: Settings) -> Stack:
    """Blocks with residuals and no last norm; takes their settings off `layers`."""
    blocks = [Block(Mamba(d_model, **next(layers)), d_model) for _ in range(n_blocks)]
    return Stack(blocks, None, None).apply(partial(init_residual, n_layers=n_blocks))


def _both_ways(d_model: int, n_blocks: int, layers: Settings) -> BothWays:
    return BothWays(_stack(d_model, n_blocks, layers), _stack(d_model, n_blocks, layers))


MAMBAS = {"forward": _stack, "both": _both_ways}


def _along_time(mamba: nn.Module, x: Tensor, state: State | None) -> tuple[Tensor, State | None]:
    """(B, C, L) -> (B, C, L) and the state; None for a layer without one."""
    x = x.transpose(1, 2)  # (B, L, C)
    y, state = mamba(x, state) if isinstance(mamba, Stack) else (mamba(x), None)
    return y.transpose(1, 2), state


def _check(config: SepMambaConfig) -> None:
    widths, kernels = config.channels, config.kernel_sizes
    if len(widths) != len(kernels):
        lists = f"channels {widths}, kernel_sizes {kernels}"
        raise UserError(f"SepMamba needs a width and a kernel size for each level, not {lists}")
    check_hop(config.stride ** len(widths))
    if config.stride > min(kernels):
        raise UserError(
            f"stride {config.stride} is not in 1 to the least of kernel_sizes {kernels}"
        )
    check_options("mamba", [config.layer, *config.layers])
    if config.state_leak_s is not None and config.direction == "both":
        raise UserError('state_leak_s is for direction "forward"; leave it out')
    n_inner, n_directions = len(widths) - 1, N_DIRECTIONS[config.direction]
    check_number("up_channels", config.up_channels, n_inner)
    check_number("decode_channels", config.decode_channels, n_inner)
    check_number("layers", config.layers, (2 * n_inner + 1) * config.n_blocks * n_directions)


CONFIGS = {
    "sepmamba_s": SepMambaConfig(),
    "sepmamba_s_causal": SepMambaConfig(n_blocks=8, direction="forward"),
    "sepmamba_m": SepMambaConfig(channels=(128, 256, 512), n_blocks=3),
    "sepmamba_m_causal": SepMambaConfig(channels=(128, 256, 512), n_blocks=6, direction="forward"),
}
