"""Post-norm Transformer layers (arXiv 1706.03762) with heads of any width.

    x ─► + attention ─► norm ─► + dense ─► norm

SEMamba's baseline for its basic model; sizes and norms are those of the authors' lab's public code
(class `transformerencoder_03`). Two details of it are not copied: attention scaled by the width of
all heads instead of one, and the attention's output layer used again after the dense part, whose
own layer is counted but unused. There are no positions.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.layers.mixers import MHA

State = tuple[Any, ...]
SLOPE = 0.2  # of LeakyReLU below zero
DROPOUT = 0.1  # of each added term, in training


class WideAttention(MHA):
    """Causal attention over a window, as `MHA`, with heads wider than d_model / n_heads."""

    def __init__(self, d_model: int, n_heads: int, d_inner: int, window: int) -> None:
        """d_inner: width of all heads; window: frames."""
        nn.Module.__init__(self)
        self.n_heads, self.window = n_heads, window
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, d_inner) for _ in range(3))
        self.out_proj = nn.Linear(d_inner, d_model)


class WholeAttention(nn.Module):
    """Attention over all frames: (B, L, D) -> (B, L, D), with the weights of `WideAttention`."""

    def __init__(self, d_model: int, n_heads: int, d_inner: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj = nn.Linear(d_model, 3 * d_inner)
        self.out_proj = nn.Linear(d_inner, d_model)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.in_proj(x).unflatten(-1, (3, self.n_heads, -1))  # (B, L, 3, H, d_inner / H)
        y = F.scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4))
        return self.out_proj(y.transpose(1, 2).flatten(2))


class AfterAttention(nn.Module):
    """norm(x), then norm(x + dense(x)): the rest of a post-norm layer, (B, L, D) -> the same."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model, eps=1e-3)
        self.widen = nn.Linear(d_model, d_hidden)
        self.narrow = nn.Linear(d_hidden, d_model)
        self.dense_norm = nn.LayerNorm(d_model, eps=1e-3)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention_norm(x)
        dense = self.narrow(F.leaky_relu(self.widen(x), SLOPE))
        return self.dense_norm(x + self.dropout(dense))


class CausalTransformerLayer(nn.Module):
    """x + attention over `window` frames, then `AfterAttention`; state: that of the attention."""

    def __init__(
        self, d_model: int, n_heads: int, d_inner: int, d_hidden: int, window: int
    ) -> None:
        super().__init__()
        self.attention = WideAttention(d_model, n_heads, d_inner, window)
        self.dropout = nn.Dropout(DROPOUT)
        self.rest = AfterAttention(d_model, d_hidden)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        y, state = self.attention(x, state)
        return self.rest(x + self.dropout(y)), state


class WholeTransformerLayer(nn.Module):
    """x + attention over all frames, then `AfterAttention`: (B, L, D) -> (B, L, D)."""

    def __init__(self, d_model: int, n_heads: int, d_inner: int, d_hidden: int) -> None:
        super().__init__()
        self.attention = WholeAttention(d_model, n_heads, d_inner)
        self.dropout = nn.Dropout(DROPOUT)
        self.rest = AfterAttention(d_model, d_hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(x + self.dropout(self.attention(x)))
