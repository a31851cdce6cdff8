"""The Conformer block: attention over the sequence, convolution over its neighbourhood.

    x + FF(x) / 2 ─► + attention ─► + convolution ─► + FF / 2 ─► LayerNorm      (R, L, C) throughout

Gulati et al. (arXiv 2005.08100, section 2.2) without relative positions, as in MP-SENet's short
version (Interspeech 2023). Its attention has the error of axes of `layers.time_frequency`, hence
`axes`; its convolution always runs along the named axis.
"""

from torch import Tensor, nn

from speechlab.layers.time_frequency import Attention, Axes, turned


class FeedForward(nn.Module):
    """LayerNorm -> Linear -> SiLU -> Linear, dropout after both: (R, L, C) -> the same shape."""

    def __init__(self, d_model: int, expand: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.widen = nn.Linear(d_model, expand * d_model)
        self.activation = nn.SiLU()
        self.narrow = nn.Linear(expand * d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.activation(self.widen(self.norm(x))))
        return self.dropout(self.narrow(x))


class Convolution(nn.Module):
    """LayerNorm -> 1x1 conv, GLU -> depthwise conv -> BatchNorm, SiLU -> 1x1 conv.

    (R, L, C) -> the same shape; the depthwise kernel is odd; the sequence is padded with zeros.
    """

    def __init__(self, d_model: int, expand: int, kernel_size: int) -> None:
        super().__init__()
        d_inner = expand * d_model
        self.norm = nn.LayerNorm(d_model)
        self.widen = nn.Conv1d(d_model, 2 * d_inner, 1)
        self.gate = nn.GLU(1)
        padding = kernel_size // 2
        self.depthwise = nn.Conv1d(d_inner, d_inner, kernel_size, padding=padding, groups=d_inner)
        self.batch_norm = nn.BatchNorm1d(d_inner)
        self.activation = nn.SiLU()
        self.narrow = nn.Conv1d(d_inner, d_model, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(self.widen(self.norm(x).transpose(1, 2)))  # (R, d_inner, L)
        x = self.activation(self.batch_norm(self.depthwise(x)))
        return self.narrow(x).transpose(1, 2)


class ConformerBlock(nn.Module):
    """(R, L, C) -> (R, L, C); while training, BatchNorm averages over all rows."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        axes: Axes,
        expand: int = 4,
        kernel_size: int = 31,
        dropout: float = 0.2,
    ) -> None:
        """expand: of the feed-forward layers; dropout: of those and of the attention's weights."""
        super().__init__()
        self.axes = axes
        self.feed_in = FeedForward(d_model, expand, dropout)
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads, dropout)
        self.convolution = Convolution(d_model, 2, kernel_size)
        self.feed_out = FeedForward(d_model, expand, dropout)
        self.norm_out = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.feed_in(x) / 2
        asked = turned(self.attention_norm(x), self.axes)
        x = x + turned(self.attention(asked, asked), self.axes)
        x = x + self.convolution(x)
        return self.norm_out(x + self.feed_out(x) / 2)
