"""SuDoRM-RF: separation by blocks that downsample and upsample in time (arXiv 2007.06833).

    encoded ─ gLN, 1x1 ─► U-conv block ─► U-conv block ─► … ─ PReLU, 1x1 ─► masks

    block:  x ─ 1x1 ─► depthwise ─► halve ─► halve ─► …          n_scales lengths
            │              + ◄─ double ─ + ◄─ double ─┘
            └─► + ◄─ 1x1 ──┘

| code        | meaning                                             | paper, section 2 |
|-------------|-----------------------------------------------------|------------------|
| n_filters   | channels of encoder and decoder                     | C_E              |
| d_model     | channels between blocks                             | C                |
| d_hidden    | channels within a block                             | C_U              |
| d_conv      | taps of the depthwise convolutions                  | 5                |
| n_scales    | time scales in a block, the first that of its input | Q + 1            |
| n_blocks    | U-conv blocks                                       | B                |

The authors' improved version (arXiv 2103.02644): gLN everywhere, masks by PReLU, 1x1 convolution
and ReLU. 2,630,801 parameters.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from speechlab.config import Count, Range, SampleRate, Size
from speechlab.layers.dual_path import GlobalLayerNorm
from speechlab.models.masking import Activation, MaskConvolution, MaskingModel


@dataclass(frozen=True)
class SuDoRMRFConfig:
    """All that is needed to build a SuDoRM-RF."""

    # encoder and decoder
    n_filters: Size = 512
    kernel_size: Size = 21  # samples
    stride: Size = 10  # samples
    encoder_activation: Activation = "relu"
    # separator
    d_model: Size = 128
    d_hidden: Size = 512
    d_conv: Size = 5  # odd
    n_scales: Annotated[int, Range(1, 16)] = 4
    n_blocks: Count = 16
    mask_activation: Activation = "relu"
    # signal
    n_sources: Count = 2
    sample_rate: SampleRate = 8000  # Hz


class SuDoRMRF(MaskingModel):
    """(B, 1, T) -> (B, S, T), any T >= 1."""

    def __init__(self, config: SuDoRMRFConfig | None = None) -> None:
        config = config or SuDoRMRFConfig()
        super().__init__(config)
        sizes = (config.d_model, config.d_hidden, config.d_conv, config.n_scales)
        self.separator = nn.Sequential(
            GlobalLayerNorm(config.n_filters),
            nn.Conv1d(config.n_filters, config.d_model, 1),
            *(UConvBlock(*sizes) for _ in range(config.n_blocks)),
            MaskConvolution(config.d_model, config),
        )


class UConvBlock(nn.Module):
    """x + the sum of wider channels at several time scales: (B, C, L) -> (B, C, L)."""

    def __init__(self, d_model: int, d_hidden: int, d_conv: int, n_scales: int) -> None:
        super().__init__()
        self.widen = nn.Conv1d(d_model, d_hidden, 1)
        self.widen_norm = GlobalLayerNorm(d_hidden)
        self.widen_prelu = nn.PReLU()
        strides = [1] + [2] * (n_scales - 1)
        self.scales = nn.ModuleList(_depthwise(d_hidden, d_conv, stride) for stride in strides)
        self.norm = GlobalLayerNorm(d_hidden)
        self.prelu = nn.PReLU(d_hidden)
        self.narrow = nn.Conv1d(d_hidden, d_model, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.widen_prelu(self.widen_norm(self.widen(x)))]  # (B, H, L)
        for scale in self.scales:
            levels.append(scale(levels[-1]))  # L, then half of it, rounded up, …
        y = levels.pop()
        for level in reversed(levels[1:]):
            y = level + y.repeat_interleave(2, -1)[..., : level.shape[-1]]
        return x + self.narrow(self.prelu(self.norm(y)))


def _depthwise(n_channels: int, d_conv: int, stride: int) -> nn.Sequential:
    """(B, H, L) -> (B, H, ceil(L / stride)), normed."""
    conv = nn.Conv1d(n_channels, n_channels, d_conv, stride, padding=d_conv // 2, groups=n_channels)
    return nn.Sequential(conv, GlobalLayerNorm(n_channels))


CONFIGS = {
    "published": SuDoRMRFConfig(),
    "tiny": SuDoRMRFConfig(n_filters=64, d_model=32, d_hidden=64, n_blocks=4),
}
