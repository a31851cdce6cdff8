"""Dual-path RNN: LSTMs within chunks and across them make the masks (arXiv 1910.06379).

    encoded ─ gLN, linear ─► chunks ─► n_blocks x (LSTM within, LSTM across) ─► sum ─► gate ─► masks

| code       | meaning                                             | paper, sections 2 and 3 |
|------------|-----------------------------------------------------|-------------------------|
| n_filters  | channels of encoder and decoder                     | filters, 64             |
| d_model    | channels of frames in chunks                        | N                       |
| d_hidden   | hidden channels of an LSTM, per direction           | H, 128                  |
| chunk_size | frames of a chunk                                   | K                       |
| n_blocks   | blocks of two LSTMs, each in both directions        | B, 6                    |

The paper's best row has windows of two samples, and chunks of 250 frames: 2.6M parameters.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from speechlab.config import Count, Range, SampleRate, Size
from speechlab.layers.dual_path import DualPath, DualPathMasks
from speechlab.models.masking import ACTIVATIONS, Activation, MaskingModel


@dataclass(frozen=True)
class DPRNNConfig:
    """All that is needed to build a Dual-path RNN."""

    # encoder and decoder
    n_filters: Size = 64
    kernel_size: Size = 2  # samples
    stride: Size = 1  # samples
    encoder_activation: Activation = "none"
    # separator
    d_model: Size = 64
    d_hidden: Size = 128
    n_blocks: Count = 6
    chunk_size: Annotated[int, Range(2, 4096)] = 250  # frames, even
    mask_activation: Activation = "sigmoid"
    # signal
    n_sources: Count = 2
    sample_rate: SampleRate = 8000  # Hz


class DPRNN(MaskingModel):
    """(B, 1, T) -> (B, S, T), any T >= 1."""

    def __init__(self, config: DPRNNConfig | None = None) -> None:
        config = config or DPRNNConfig()
        super().__init__(config)
        d_model = config.d_model
        blocks = (
            DualPath(*(RecurrentPath(d_model, config.d_hidden) for _ in range(2)), d_model)
            for _ in range(config.n_blocks)
        )
        self.separator = DualPathMasks(
            nn.Linear(config.n_filters, d_model),
            blocks,
            config.chunk_size,
            config.n_sources,
            ACTIVATIONS[config.mask_activation],
        )


class RecurrentPath(nn.Module):
    """An LSTM in both directions, and a linear layer: rows (R, n, D) -> (R, n, D)."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(d_model, d_hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)  # (R, n, 2 H)
        return self.linear(y)


CONFIGS = {
    "published": DPRNNConfig(),
    "tiny": DPRNNConfig(
        kernel_size=16, stride=8, d_model=32, d_hidden=32, n_blocks=2, chunk_size=50
    ),
}
