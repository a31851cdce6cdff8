"""SepFormer: transformers within chunks and across them make the masks (arXiv 2010.13154).

    encoded ─ gLN, linear ─► chunks ─► n_blocks x (transformer within, transformer across)
                                                    └─► sum ─► gate ─► masks

| code       | meaning                                          | paper, sections 2 and 3 |
|------------|--------------------------------------------------|-------------------------|
| n_filters  | channels of the encoder, of frames and decoder   | F, 256                  |
| chunk_size | frames of a chunk                                | C, 250                  |
| n_blocks   | SepFormer blocks                                 | N, 2                    |
| n_layers   | layers of a transformer, of two in a block       | K, 8                    |
| n_heads    | heads of attention                               | 8                       |
| d_hidden   | width of the dense layers                        | d_ff, 1024              |

The sum around a whole transformer (equation 5) and the norm before it are those of `DualPath`.
Encoder and masks go through a ReLU. 25.7M parameters.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from speechlab.config import Count, Range, SampleRate, Size
from speechlab.layers.bidirectional import TransformerEncoderLayer
from speechlab.layers.dual_path import DualPath, DualPathMasks
from speechlab.models.masking import ACTIVATIONS, Activation, MaskingModel

LONGEST = 10000.0  # of the positions' wavelengths, over 2 π (arXiv 1706.03762, section 3.5)


@dataclass(frozen=True)
class SepFormerConfig:
    """All that is needed to build a SepFormer."""

    # encoder and decoder
    n_filters: Size = 256
    kernel_size: Size = 16  # samples
    stride: Size = 8  # samples
    encoder_activation: Activation = "relu"
    # separator
    n_blocks: Count = 2
    n_layers: Count = 8
    n_heads: Count = 8
    d_hidden: Size = 1024
    chunk_size: Annotated[int, Range(2, 4096)] = 250  # frames, even
    mask_activation: Activation = "relu"
    # signal
    n_sources: Count = 2
    sample_rate: SampleRate = 8000  # Hz


class SepFormer(MaskingModel):
    """(B, 1, T) -> (B, S, T), any T >= 1."""

    def __init__(self, config: SepFormerConfig | None = None) -> None:
        config = config or SepFormerConfig()
        super().__init__(config)
        d_model = config.n_filters
        sizes = (d_model, config.n_layers, config.n_heads, config.d_hidden)
        blocks = (
            DualPath(*(TransformerPath(*sizes) for _ in range(2)), d_model)
            for _ in range(config.n_blocks)
        )
        self.separator = DualPathMasks(
            nn.Linear(d_model, d_model, bias=False),
            blocks,
            config.chunk_size,
            config.n_sources,
            ACTIVATIONS[config.mask_activation],
        )


class TransformerPath(nn.Module):
    """Positions, pre-norm encoder layers, a norm at the end: rows (R, n, D) -> (R, n, D)."""

    def __init__(self, d_model: int, n_layers: int, n_heads: int, d_hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ReLUEncoderLayer(d_model, n_heads, d_hidden) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + positions(x.shape[1], x.shape[2], x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class ReLUEncoderLayer(TransformerEncoderLayer):
    """Our encoder layer with ReLU between its dense layers, as in the paper."""

    def __init__(self, d_model: int, n_heads: int, d_hidden: int) -> None:
        super().__init__(d_model, n_heads, d_hidden)
        self.dense[1] = nn.ReLU()


def positions(length: int, d_model: int, like: Tensor) -> Tensor:
    """Sines and cosines of the position, in turn, (length, d_model), in type and place as `like`.

    Wavelengths grow from 2 π to 2 π `LONGEST` in a geometric series (arXiv 1706.03762).
    """
    channels = torch.arange(0, d_model, 2, dtype=torch.float32, device=like.device)
    rates = torch.exp(-math.log(LONGEST) / d_model * channels)  # (ceil(D / 2),)
    angles = torch.arange(length, dtype=torch.float32, device=like.device)[:, None] * rates
    pairs = torch.stack([angles.sin(), angles.cos()], -1)  # (length, ceil(D / 2), 2)
    return pairs.flatten(1)[:, :d_model].to(like.dtype)


CONFIGS = {
    "published": SepFormerConfig(),
    "tiny": SepFormerConfig(
        n_filters=32, n_blocks=1, n_layers=2, n_heads=4, d_hidden=64, chunk_size=50
    ),
}
