"""Dense convolutional encoder and decoders of the spectral models.

    mag, phase (B, 2, L, F) ─ Encoder ─► (B, C, L, F') ─ blocks ─► MagnitudeDecoder ─► mask
                                                           └─────► PhaseDecoder ────► phase

F' is about half of F. SEMamba (arXiv 2405.06573) and MP-SENet (arXiv 2308.08926, and its shorter
Conformer version) have the same structure and differ in three places:

| codec      | context of dense convs    | F -> F'    | back to F                       | of  |
|------------|---------------------------|------------|---------------------------------|-----|
| transposed | frames before and after   | 201 -> 100 | transposed convolution          | (1) |
| subpixel   | this frame and one before | 201 -> 101 | twice the channels, interleaved | (2) |

(1) SEMamba and MP-SENet Conformer, (2) MP-SENet and MP-SENet + Mamba.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.layers.channels import Member, Members, outputs

Codec = Literal["transposed", "subpixel"]
DILATIONS = (1, 2, 4, 8)  # in time, of the convolutions of a dense block
N_WIDTHS = len(DILATIONS) + 1  # of an encoder or decoder: the dense block, and one convolution


class ConvUnit(nn.Module):
    """Padding -> Conv2d -> InstanceNorm2d -> PReLU: (B, C, L, F) -> (B, C', L', F')."""

    def __init__(
        self, n_in: int, n_out: int, kernel: tuple[int, int], n_before: int = 0, **options: object
    ) -> None:
        """n_before: frames of zeros before the first; options: those of nn.Conv2d."""
        super().__init__()
        self.n_before = n_before
        self.conv = nn.Conv2d(n_in, n_out, kernel, **options)
        self.norm = nn.InstanceNorm2d(n_out, affine=True)
        self.activation = nn.PReLU(n_out)

    def forward(self, x: Tensor) -> Tensor:
        if self.n_before:  # padding copies, so only where needed
            x = F.pad(x, (0, 0, self.n_before, 0))
        return self.activation(self.norm(self.conv(x)))


class DenseBlock(nn.Module):
    """Convolutions, each on the outputs of all earlier ones: (B, C, L, F) -> (B, C', L, F)."""

    def __init__(self, n_in: int, widths: Sequence[int], codec: Codec) -> None:
        """widths: outputs of each convolution."""
        super().__init__()
        self.layers = nn.ModuleList()
        for n_out, dilation in zip(widths, DILATIONS, strict=True):
            n_taps, around, before = (3, dilation, 0) if codec == "transposed" else (2, 0, dilation)
            options = {"padding": (around, 1), "dilation": (dilation, 1), "n_before": before}
            self.layers.append(ConvUnit(n_in, n_out, (n_taps, 3), **options))
            n_in += n_out

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.layers
        seen, x = x, first(x)
        for layer in others:
            seen = torch.cat([x, seen], 1)  # the newest first
            x = layer(seen)
        return x

    def readers(self, path: str) -> list[Members]:
        """Inputs of this block at `path` that read its input, then each convolution's output."""
        convs = [layer.conv for layer in self.layers]
        widths = [convs[0].in_channels, *(conv.out_channels for conv in convs)]
        read: list[Members] = [() for _ in widths]
        for i in range(len(convs)):
            offset = 0
            for j in range(i, -1, -1):  # the newest first
                read[j] += (Member(f"{path}.layers.{i}.conv.weight", 1, offset=offset),)
                offset += widths[j]
        return read


class Encoder(nn.Module):
    """(B, 2, L, F) -> (B, C, L, F')"""

    def __init__(self, n_channels: int, codec: Codec, widths: Sequence[int] = ()) -> None:
        """widths: outputs of `widen` and of each convolution of the dense block; or n_channels."""
        super().__init__()
        first, *dense = widths or (n_channels,) * N_WIDTHS
        self.widen = ConvUnit(2, first, (1, 1))
        self.dense = DenseBlock(first, dense, codec)
        padding = (0, 0) if codec == "transposed" else (0, 1)
        self.down = ConvUnit(dense[-1], n_channels, (1, 3), stride=(1, 2), padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dense(self.widen(x)))


class SubpixelConv(nn.Module):
    """(B, C, L, F') -> (B, C', L, 2 F'): twice the channels, read by turns along frequency."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, 2 * n_out, (1, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, (1, 1)))  # (B, 2 C, L, F')
        return x.unflatten(1, (2, -1)).permute(0, 2, 3, 4, 1).flatten(-2)  # (B, C, L, 2 F')


def unit_outputs(owner: nn.Module, path: str, conv: str = "conv") -> Members:
    """Outputs of a convolution, norm and activation at `path`."""
    return sum((outputs(owner, f"{path}.{name}") for name in (conv, "norm", "activation")), ())


def _upsampling(n_in: int, n_out: int, codec: Codec) -> nn.Module:
    if codec == "subpixel":
        return SubpixelConv(n_in, n_out)
    return nn.ConvTranspose2d(n_in, n_out, (1, 3), (1, 2))


class MagnitudeDecoder(nn.Module):
    """(B, C, L, F') -> mask (B, F, L), 0 to 2."""

    def __init__(
        self, n_channels: int, n_freqs: int, codec: Codec, widths: Sequence[int] = ()
    ) -> None:
        """widths: outputs of each convolution of the dense block and of `up`; or n_channels."""
        super().__init__()
        *dense, n_up = widths or (n_channels,) * N_WIDTHS
        self.dense = DenseBlock(n_channels, dense, codec)
        self.up = _upsampling(dense[-1], n_up, codec)
        subpixel = codec == "subpixel"
        n_normed = n_up if subpixel else 1
        narrow = nn.Conv2d(n_up, 1, (1, 2) if subpixel else (1, 1))
        normed = [nn.InstanceNorm2d(n_normed, affine=True), nn.PReLU(n_normed)]
        layers = [*normed, narrow] if subpixel else [narrow, *normed, nn.Conv2d(1, 1, (1, 1))]
        self.narrow = nn.Sequential(*layers)
        self.slope = nn.Parameter(torch.ones(n_freqs, 1))  # of the sigmoid, for each bin

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(self.up(self.dense(x)))  # (B, 1, L, F)
        return 2 * torch.sigmoid(self.slope * x[:, 0].transpose(1, 2))


class PhaseDecoder(nn.Module):
    """(B, C, L, F') -> phase (B, F, L), radians."""

    def __init__(self, n_channels: int, codec: Codec, widths: Sequence[int] = ()) -> None:
        """widths: as of `MagnitudeDecoder`."""
        super().__init__()
        *dense, n_up = widths or (n_channels,) * N_WIDTHS
        self.dense = DenseBlock(n_channels, dense, codec)
        self.up = _upsampling(dense[-1], n_up, codec)
        self.norm = nn.InstanceNorm2d(n_up, affine=True)
        self.activation = nn.PReLU(n_up)
        kernel = (1, 2) if codec == "subpixel" else (1, 1)
        self.real = nn.Conv2d(n_up, 1, kernel)
        self.imaginary = nn.Conv2d(n_up, 1, kernel)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.up(self.dense(x))))
        phase = torch.atan2(self.imaginary(x), self.real(x))  # (B, 1, L, F)
        return phase[:, 0].transpose(1, 2)
