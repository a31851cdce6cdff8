"""Conv-TasNet: separation by dilated convolutions over a learned encoding (arXiv 1809.07454).

    encoded ─ gLN, 1x1 ─► block ─► block ─► … ─► block        n_repeats x n_blocks
                            └────────┴─────────────┴─► sum of skips ─ PReLU, 1x1 ─► masks

| code           | meaning                                              | paper, table I |
|----------------|------------------------------------------------------|----------------|
| n_filters      | channels of encoder and decoder                      | N              |
| kernel_size    | samples of a frame, twice the stride                 | L              |
| d_model        | channels between blocks                              | B              |
| d_skip         | channels of the skip paths                           | Sc             |
| d_hidden       | channels within a block                              | H              |
| d_conv         | taps of the depthwise convolution                    | P              |
| n_blocks       | blocks of a repeat, dilated by 1, 2, 4, …            | X              |
| n_repeats      | repeats                                              | R              |

The non-causal network with gLN, linear encoder and sigmoid masks of the paper's best row. Nothing
follows the residual path of the last block, so it is left out: 4,984,881 parameters. Other code
builds that path, with 65,664 unused parameters: 5,050,545, the table's 5.1M.
"""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated

from torch import Tensor, nn

from speechlab.config import Count, Range, SampleRate, Size
from speechlab.layers.dual_path import GlobalLayerNorm
from speechlab.models.masking import Activation, MaskConvolution, MaskingModel


@dataclass(frozen=True)
class ConvTasNetConfig:
    """All that is needed to build a Conv-TasNet."""

    # encoder and decoder
    n_filters: Size = 512
    kernel_size: Size = 16  # samples
    stride: Size = 8  # samples
    encoder_activation: Activation = "none"
    # separator
    d_model: Size = 128
    d_skip: Size = 128
    d_hidden: Size = 512
    d_conv: Size = 3  # odd
    n_blocks: Annotated[int, Range(1, 16)] = 8
    n_repeats: Count = 3
    mask_activation: Activation = "sigmoid"
    # signal
    n_sources: Count = 2
    sample_rate: SampleRate = 8000  # Hz


class ConvTasNet(MaskingModel):
    """(B, 1, T) -> (B, S, T), any T >= 1."""

    def __init__(self, config: ConvTasNetConfig | None = None) -> None:
        config = config or ConvTasNetConfig()
        super().__init__(config)
        self.separator = TemporalConvNet(config)


class TemporalConvNet(nn.Module):
    """Encoder output (B, N, L) -> a mask per source (B, S, N, L)."""

    def __init__(self, config: ConvTasNetConfig) -> None:
        super().__init__()
        d_model, d_hidden = config.d_model, config.d_hidden
        dilations = [2**i for i in range(config.n_blocks)] * config.n_repeats
        self.norm = GlobalLayerNorm(config.n_filters)
        self.bottleneck = nn.Conv1d(config.n_filters, d_model, 1)
        self.blocks = nn.ModuleList(
            ConvBlock(d_model, d_hidden, config.d_conv, dilation) for dilation in dilations
        )
        self.skips = nn.ModuleList(nn.Conv1d(d_hidden, config.d_skip, 1) for _ in dilations)
        self.residuals = nn.ModuleList(nn.Conv1d(d_hidden, d_model, 1) for _ in dilations[1:])
        self.mask = MaskConvolution(config.d_skip, config)

    def forward(self, encoded: Tensor) -> Tensor:
        x, total = self.bottleneck(self.norm(encoded)), 0.0  # (B, d_model, L)
        for block, skip, residual in zip_longest(self.blocks, self.skips, self.residuals):
            hidden = block(x)
            total = total + skip(hidden)  # (B, d_skip, L)
            if residual is not None:  # unused after the last block
                x = x + residual(hidden)
        return self.mask(total)


class ConvBlock(nn.Module):
    """1x1 -> PReLU -> gLN -> dilated depthwise conv -> PReLU -> gLN: (B, C, L) -> (B, H, L)."""

    def __init__(self, d_model: int, d_hidden: int, d_conv: int, dilation: int) -> None:
        super().__init__()
        padding = (d_conv - 1) // 2 * dilation
        self.widen = nn.Conv1d(d_model, d_hidden, 1)
        self.widen_prelu = nn.PReLU()
        self.widen_norm = GlobalLayerNorm(d_hidden)
        self.depthwise = nn.Conv1d(
            d_hidden, d_hidden, d_conv, padding=padding, dilation=dilation, groups=d_hidden
        )
        self.depthwise_prelu = nn.PReLU()
        self.depthwise_norm = GlobalLayerNorm(d_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen_norm(self.widen_prelu(self.widen(x)))
        return self.depthwise_norm(self.depthwise_prelu(self.depthwise(x)))


CONFIGS = {
    "published": ConvTasNetConfig(),
    "tiny": ConvTasNetConfig(
        n_filters=64, d_model=32, d_skip=32, d_hidden=64, n_blocks=6, n_repeats=2
    ),
}
