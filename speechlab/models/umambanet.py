"""U-Mamba-Net: U-nets and Mamba in turn, for noisy reverberant speakers (arXiv 2412.18217).

    encoded ─► [ conv & norm ─► x + U-net(x) ─► x + Mamba(x) ] x n_blocks ─ PReLU, 1x1 ─► masks

    U-net:  x ─ conv ↓ ─┬─ conv ↓ ─┬─ conv ↓ ─ conv ↑ ─ + ─ conv ↑ ─ + ─ conv ↑ ─►   depth 3
                        │          └───── summed ───────┘            │
                        └──────────────── summed ────────────────────┘

| code             | meaning                                                  | paper            |
|------------------|----------------------------------------------------------|------------------|
| d_model          | channels between the parts                               | F; 64, 128, 192  |
| n_blocks         | blocks of conv & norm, then the parts in `block`         | R                |
| block            | "unet", "mamba": x + part(x), in this order              | both, in turn    |
| depth            | strided convolutions of a U-net, and as many back        | L                |
| upsampling       | "transposed" conv; or "nearest", "linear" and a conv     | T-Conv           |
| n_filters        | channels of encoder and decoder                          | –                |
| hop_length       | samples per frame of the encoding, `stride`              | –                |

The paper gives: encoder, blocks, PReLU and convolution, masks, decoder; the order within a block
and both residuals; skips summed at equal depth; F = 128 at 8 kHz; PIT SI-SNR as loss; 2.5 GMACs
(without the length of the input) and a size "20 % smaller" (without the other model's name). There
is no public code. The following fields are chosen here; results/LOG.md has the experiments:

- kernel_size, stride, n_filters, encoder_activation: windows, hop, width and ReLU of the encoder.
- norm: "frame" is LayerNorm of the channels of a frame, "global" of all frames at once. No bias
  precedes it, so that the sources scale with the mixture.
- n_blocks, depth, unet_kernel_size, growth: MACs of 4 s and size are near the published ones.
  `growth` multiplies the channels at each level down.
- unet_norm, unet_activation: after each convolution of a U-net but the last, before the sum.
  Without a norm the levels multiply, Mamba's output grows with about the cube, and a training on
  recorded speech ended in infinities. "global" as in SuDoRM-RF's U-net.
- The outermost skip of a U-net, input to output, is the residual around it: summed once.
- direction, layer: of Mamba; "both" sums a forward and a backward one, which is better in rooms
  and exceeds the published MACs. No norm before it.
- mask_activation; the 1x1 kernels of conv & norm and of the masks.

Initialisation: PyTorch's for convolutions, mamba-ssm's for Mamba. U-nets see both directions, so
the model needs whole signals.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.config import Count, Range, SampleRate, Size
from speechlab.errors import UserError
from speechlab.layers.bidirectional import BothWays, Direction, OneDirection
from speechlab.layers.dual_path import GlobalLayerNorm
from speechlab.layers.mixers import Mamba
from speechlab.layers.stacks import check_options
from speechlab.models.base import check_hop
from speechlab.models.masking import Activation, MaskConvolution, MaskingModel


@dataclass(frozen=True)
class UMambaNetConfig:
    """All that is needed to build a U-Mamba-Net."""

    # encoder and decoder
    n_filters: Size = 128
    kernel_size: Size = 16  # samples
    stride: Size = 8  # samples
    encoder_activation: Activation = "relu"
    # separator
    d_model: Size = 128
    n_blocks: Count = 2
    block: Annotated[tuple[Literal["unet", "mamba"], ...], Range(1, 16)] = ("unet", "mamba")
    norm: Literal["frame", "global"] = "frame"
    mask_activation: Activation = "relu"
    # U-net
    depth: Annotated[int, Range(1, 16)] = 5  # levels below the frame rate of the encoding
    unet_kernel_size: Size = 5  # frames of the input level; odd
    unet_stride: Size = 2
    # channels of a level / channels of the level above
    growth: Annotated[float, Range(0.01, 10)] = 1.0
    unet_norm: Literal["none", "frame", "global"] = "global"
    unet_activation: Literal["none", "relu", "prelu"] = "prelu"
    upsampling: Literal["transposed", "nearest", "linear"] = "transposed"
    # Mamba, per direction
    direction: Direction = "forward"
    layer: Mapping[str, Any] = field(
        default_factory=lambda: {"d_state": 16, "d_conv": 4, "expand": 2}
    )
    # signal
    n_sources: Count = 2
    sample_rate: SampleRate = 8000  # Hz


class UMambaNet(MaskingModel):
    """(B, 1, T) -> (B, S, T), any T >= 1."""

    needs_whole = "its U-nets see both directions"

    def __init__(self, config: UMambaNetConfig | None = None) -> None:
        config = config or UMambaNetConfig()
        super().__init__(config)
        _check(config)
        widths = (config.n_filters, *[config.d_model] * config.n_blocks)
        self.blocks = nn.Sequential(*(Block(n_in, config) for n_in in widths[:-1]))
        self.mask = MaskConvolution(config.d_model, config)

    def masks(self, encoded: Tensor) -> Tensor:
        """(B, N, L) -> (B, S, N, L)"""
        return self.mask(self.blocks(encoded))


class Block(nn.Module):
    """1x1 conv -> norm, then x + part(x) for each part: (B, C, L) -> (B, D, L)."""

    def __init__(self, n_in: int, config: UMambaNetConfig) -> None:
        super().__init__()
        self.conv = nn.Conv1d(n_in, config.d_model, 1, bias=False)
        self.norm = NORMS[config.norm](config.d_model)
        self.parts = nn.ModuleList(PARTS[name](config) for name in config.block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        for part in self.parts:
            x = x + part(x)
        return x


class UNet(nn.Module):
    """Strided convs down, as many up, skips summed: (B, D, L) -> (B, D, L), any L >= 1.

    L frames become ceil(L / stride) a level deeper; on the way up each level has its length again.
    """

    def __init__(self, config: UMambaNetConfig) -> None:
        super().__init__()
        levels = range(config.depth + 1)
        widths = [max(1, round(config.d_model * config.growth**i)) for i in levels]
        up = UPSAMPLINGS[config.upsampling]
        self.down = nn.ModuleList(DownLayer(*pair, config) for pair in pairwise(widths))
        self.up = nn.ModuleList(up(*pair, config) for pair in pairwise(reversed(widths)))
        self.after = nn.ModuleList(_after(width, config) for width in reversed(widths[1:-1]))

    def forward(self, x: Tensor) -> Tensor:
        n_frames, skips = x.shape[-1], []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        x = skips.pop()
        *inner, outermost = self.up
        for layer, after, skip in zip(inner, self.after, reversed(skips), strict=True):
            x = after(layer(x, skip.shape[-1])) + skip
        return outermost(x, n_frames)


class DownLayer(nn.Module):
    """Strided conv -> norm -> activation: (B, C, L) -> (B, C', ceil(L / stride))."""

    def __init__(self, n_in: int, n_out: int, config: UMambaNetConfig) -> None:
        super().__init__()
        kernel = config.unet_kernel_size
        self.conv = nn.Conv1d(n_in, n_out, kernel, config.unet_stride, padding=kernel // 2)
        self.after = _after(n_out, config)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.conv(x))


class TransposedUp(nn.Module):
    """Transposed conv: (B, C, ceil(L / stride)) -> (B, C', L)."""

    def __init__(self, n_in: int, n_out: int, config: UMambaNetConfig) -> None:
        super().__init__()
        kernel, stride = config.unet_kernel_size, config.unet_stride
        self.conv = nn.ConvTranspose1d(n_in, n_out, kernel, stride, padding=kernel // 2)

    def forward(self, x: Tensor, n_frames: int) -> Tensor:
        return self.conv(x, output_size=[n_frames])


class InterpolatedUp(nn.Module):
    """Nearest or linear interpolation, then a conv: as `TransposedUp`."""

    def __init__(self, n_in: int, n_out: int, config: UMambaNetConfig) -> None:
        super().__init__()
        kernel = config.unet_kernel_size
        self.conv = nn.Conv1d(n_in, n_out, kernel, padding=kernel // 2)
        self.stride, self.mode = config.unet_stride, config.upsampling

    def forward(self, x: Tensor, n_frames: int) -> Tensor:
        finer = F.interpolate(x, scale_factor=self.stride, mode=self.mode)
        return self.conv(finer[..., :n_frames])


class MambaLayer(nn.Module):
    """Mamba along the frames: (B, D, L) -> (B, D, L)."""

    def __init__(self, config: UMambaNetConfig) -> None:
        super().__init__()
        kind, n_mambas = DIRECTIONS[config.direction]
        self.layer = kind(*(Mamba(config.d_model, **config.layer) for _ in range(n_mambas)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)  # Mamba's are (B, L, D)


class FrameNorm(nn.LayerNorm):
    """LayerNorm of the channels of each frame: (B, C, L) -> the same shape."""

    def __init__(self, n_channels: int) -> None:
        super().__init__(n_channels, eps=1e-8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


PARTS: dict[str, Callable[[UMambaNetConfig], nn.Module]] = {"unet": UNet, "mamba": MambaLayer}
UPSAMPLINGS = {"transposed": TransposedUp, "nearest": InterpolatedUp, "linear": InterpolatedUp}
DIRECTIONS = {"forward": (OneDirection, 1), "both": (BothWays, 2)}  # wrapper, number of Mambas
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "frame": FrameNorm,
    "global": GlobalLayerNorm,
}
UNET_ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "prelu": nn.PReLU}


def _after(n_channels: int, config: UMambaNetConfig) -> nn.Sequential:
    """Norm and activation of a convolution within a U-net."""
    activation = UNET_ACTIVATIONS[config.unet_activation]
    return nn.Sequential(NORMS[config.unet_norm](n_channels), activation())


def _check(config: UMambaNetConfig) -> None:
    kernel, stride = config.unet_kernel_size, config.unet_stride
    if stride > kernel:
        gaps = f"unet_stride {stride} skips frames between those that a convolution reads"
        raise UserError(f"{gaps}; it must be at most unet_kernel_size, {kernel}")
    check_hop(config.stride * stride**config.depth)
    check_options("mamba", [config.layer])


MAIN = UMambaNetConfig()
CONFIGS = {
    "f64": replace(MAIN, n_filters=64, d_model=64),
    "f128": MAIN,
    "f192": replace(MAIN, n_filters=192, d_model=192),
    "without_mamba": replace(MAIN, block=("unet",)),
    "without_unet": replace(MAIN, block=("mamba",)),
    "two_unets": replace(MAIN, block=("unet", "unet", "mamba")),
    "both_directions": replace(MAIN, direction="both"),
    "one_block": replace(MAIN, n_blocks=1),
    "three_blocks": replace(MAIN, n_blocks=3),
    "depth_3": replace(MAIN, depth=3),
    "depth_7": replace(MAIN, depth=7),
    "nearest": replace(MAIN, upsampling="nearest"),
    "linear": replace(MAIN, upsampling="linear"),
    "tiny": replace(MAIN, n_filters=16, d_model=12, depth=3, kernel_size=8, stride=4),
}
