"""Attention and recurrence along time and along frequency: the blocks of MP-SENet.

    x (B, C, L, F) ─ rows (B F, L, C) ─ time ─► rows (B L, F, C) ─ frequency ─► (B, C, L, F)

The published code of MP-SENet (arXiv 2308.08926) and its successors has an error with which the
published weights were trained. PyTorch's attention and GRU take (length, batch, channels) without
`batch_first`, which was not set: rows (B F, L, C) are read as L sequences of B F steps. So the
"time" transformer runs along frequency, the "frequency" transformer along time, and the items of a
batch influence each other. `Axes` names the two variants:

| axes      | rows (R, L, C) are                  | for                     |
|-----------|-------------------------------------|-------------------------|
| named     | R sequences of L steps, as intended | new trainings           |
| published | L sequences of R steps              | weights trained that way|

Layers without the error (Mamba, the convolutions of a Conformer) always use the named axes.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.errors import UserError

Axes = Literal["named", "published"]
Normed = Literal["all", "query"]  # normalised inputs of attention: MP-SENet, MP-SENet + Mamba


def turned(x: Tensor, axes: Axes) -> Tensor:
    """Rows so that the sequence is dim 1: (R, L, C) -> itself, or (L, R, C); its own inverse."""
    return x if axes == "named" else x.transpose(0, 1)


class Attention(nn.Module):
    """Multi-head attention without mask or positions (arXiv 1706.03762, section 3.2.2).

    PyTorch's fused kernels store no matrix of all pairs of steps: memory grows with the length,
    time with its square. Dropout in training on a CPU is the exception.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float = 0.0) -> None:
        """dropout: share of the attention weights that training sets to zero."""
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise UserError(f"attention over {d_model} channels cannot have {n_heads} heads")
        self.n_heads, self.dropout = n_heads, dropout
        self.in_proj = nn.Linear(d_model, 3 * d_model)  # query, key, value
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj.weight)  # as nn.MultiheadAttention starts
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: queries (B, L, C); context: keys and values (B, K, C) -> (B, L, C)."""
        d_model = x.shape[-1]
        weights, biases = (p.split([d_model, 2 * d_model]) for p in self.in_proj.parameters())
        k, v = F.linear(context, weights[1], biases[1]).chunk(2, -1)
        if context.shape[1] == 1:  # a softmax over one step is 1
            return self.out_proj(v + 0 * x)  # a zero gradient of x, not a missing one
        q, k, v = map(self._heads, (F.linear(x, weights[0], biases[0]), k, v))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, H, L, C / H)"""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Attention, then a bidirectional GRU instead of dense layers, each added to x.

    (R, L, C) -> (R, L, C), layer-normed at the end.
    """

    def __init__(self, d_model: int, n_heads: int, axes: Axes, normed: Normed = "all") -> None:
        super().__init__()
        self.axes, self.normed = axes, normed
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.gru_norm = nn.LayerNorm(d_model)
        self.gru = nn.GRU(d_model, 2 * d_model, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(4 * d_model, d_model)
        self.norm_out = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: queries; context: keys and values, else x: (R, L, C) -> (R, L, C)."""
        x = turned(x, self.axes)
        asking = self.attention_norm(x)
        if context is None:
            context = {"all": asking, "query": x}[self.normed]
        else:
            context = turned(context, self.axes)
        x = x + self.attention(asking, context)
        y, _ = self.gru(self.gru_norm(x))  # (R, L, 4 C)
        x = self.norm_out(x + self.linear(F.leaky_relu(y)))
        return turned(x, self.axes)


class TimeFrequency(nn.Module):
    """x + time(x), then x + frequency(x), each on rows: (B, C, L, F) -> the same shape."""

    def __init__(self, time: nn.Module, freq: nn.Module) -> None:
        super().__init__()
        self.time = time
        self.freq = freq

    def forward(self, x: Tensor) -> Tensor:
        return along_axes(x, self.time, self.freq)


def along_axes(
    x: Tensor, time: Callable[[Tensor], Tensor], freq: Callable[[Tensor], Tensor]
) -> Tensor:
    """x + time(x) on rows (B F, L, C), then x + freq(x) on rows (B L, F, C).

    x: (B, C, L, F) -> the same shape.
    """
    n_items, _, n_frames, n_freqs = x.shape
    x = x.permute(0, 3, 2, 1).flatten(0, 1)  # (B F, L, C)
    x = x + time(x)
    x = x.unflatten(0, (n_items, n_freqs)).transpose(1, 2).flatten(0, 1)  # (B L, F, C)
    x = x + freq(x)
    return x.unflatten(0, (n_items, n_frames)).permute(0, 3, 1, 2)  # (B, C, L, F)


class CrossAttention(nn.Module):
    """Cross-attention of two feature maps: mag + T(mag; phase), phase + T(phase; mag).

    (B, C, L, F) each -> the same shapes; T is a TransformerBlock over the L F points of an item.
    With named axes every point attends to every point of the other map, and the GRU has L F steps:
    memory grows with L F, time with its square, 2 (L F)² C multiply-accumulates each way. At 16 kHz
    and MP-SENet's front end 2 s are 32,421 points (1.3e11) and 10 s are 161,701 (3.3e12), minutes
    on a processor core. With published axes the sequence is the batch: in a single item each point
    attends to one point of the other map, which makes the attention a linear map.
    """

    def __init__(self, d_model: int, n_heads: int, axes: Axes) -> None:
        super().__init__()
        self.mag = TransformerBlock(d_model, n_heads, axes)
        self.phase = TransformerBlock(d_model, n_heads, axes)

    def forward(self, mag: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        shape = mag.shape[2:]
        mag, phase = (x.flatten(2).transpose(1, 2) for x in (mag, phase))  # (B, L F, C)
        images = mag + self.mag(mag, phase), phase + self.phase(phase, mag)
        mag, phase = (x.transpose(1, 2).unflatten(2, shape) for x in images)  # (B, C, L, F)
        return mag, phase
