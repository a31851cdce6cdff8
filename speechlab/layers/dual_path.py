"""Dual-path processing of long sequences: within chunks, then across them (arXiv 1910.06379).

    (B, L, D) ─ segment ─► (B, J, K, D) ─ DualPath … ─► ─ overlap_add ─► (B, L, D)

| code       | meaning                                                     | paper, section 2.1 |
|------------|-------------------------------------------------------------|--------------------|
| chunk_size | frames of a chunk, K; chunks start every K / 2 frames       | K, P = K / 2       |
| d_model    | channels                                                    | N                  |
| J          | chunks, the frames' ends included; half of each is the next | S                  |

Tensors are channels last, so that rows within chunks are a view. `DualPathMasks` is the separator
around the blocks that Dual-path RNN and SepFormer (arXiv 2010.13154, section 2.2) have in common.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.errors import UserError
from speechlab.layers.bidirectional import a_few_at_once


class GlobalLayerNorm(nn.GroupNorm):
    """gLN: one mean and one variance of all frames and channels, a gain and a bias per channel.

    (B, C, ...) -> the same shape; arXiv 1809.07454, equations 10 to 12.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__(1, n_channels, eps=1e-8)


def segment(x: Tensor, chunk_size: int) -> Tensor:
    """Chunks that overlap by half: (B, L, D) -> (B, J, K, D) with J = ceil(L / (K / 2)) + 1.

    Zeros are added at both ends, so that every frame is in two chunks. chunk_size is even.
    """
    hop = chunk_size // 2
    n_hops = -(-x.shape[1] // hop)
    x = F.pad(x, (0, 0, hop, (n_hops + 1) * hop - x.shape[1]))
    halves = x.unflatten(1, (n_hops + 2, hop))  # (B, J + 1, K / 2, D)
    return torch.cat([halves[:, :-1], halves[:, 1:]], 2)


def overlap_add(chunks: Tensor, length: int) -> Tensor:
    """The sum of overlapping chunks, as published: (B, J, K, D) -> (B, length, D).

    Every frame is the sum of two: for the result of `segment`, twice the sequence.
    """
    ahead, back = chunks.chunk(2, 2)
    return (back[:, :-1] + ahead[:, 1:]).flatten(1, 2)[:, :length]


class DualPath(nn.Module):
    """x + norm(within(x)) on rows of a chunk, then x + norm(across(x)) on rows of all chunks.

    (B, J, K, D) -> the same shape. `within` and `across` map rows (R, n, D) -> (R, n, D).
    """

    def __init__(self, within: nn.Module, across: nn.Module, d_model: int) -> None:
        super().__init__()
        self.within, self.across = within, across
        self.within_norm, self.across_norm = (GlobalLayerNorm(d_model) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        n_items, n_chunks, chunk_size, _ = x.shape
        y = a_few_at_once(self.within, x.flatten(0, 1))  # (B J, K, D)
        x = x + _normed(self.within_norm, y.unflatten(0, (n_items, n_chunks)))
        y = a_few_at_once(self.across, x.transpose(1, 2).flatten(0, 1))  # (B K, J, D)
        y = y.unflatten(0, (n_items, chunk_size)).transpose(1, 2)  # (B, J, K, D)
        return x + _normed(self.across_norm, y)


class DualPathMasks(nn.Module):
    """Encoder output (B, N, L) -> a mask per source (B, S, N, L).

    Each source gets its own D channels from the last block, before the chunks are summed; a gate,
    tanh times sigmoid, and a linear layer back to N filters follow.
    """

    def __init__(
        self,
        bottleneck: nn.Linear,
        blocks: Iterable[nn.Module],
        chunk_size: int,
        n_sources: int,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        """bottleneck: N -> D. UserError for an odd chunk_size."""
        super().__init__()
        if chunk_size < 2 or chunk_size % 2:
            raise UserError(f"chunk_size must be even and 2 or more, not {chunk_size}")
        n_filters, d_model = bottleneck.in_features, bottleneck.out_features
        self.chunk_size, self.shape, self.activation = chunk_size, (n_sources, d_model), activation
        self.norm = GlobalLayerNorm(n_filters)
        self.bottleneck = bottleneck
        self.blocks = nn.ModuleList(blocks)
        self.prelu = nn.PReLU()
        self.sources = nn.Linear(d_model, n_sources * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.gate = nn.Linear(d_model, d_model)
        self.filters = nn.Linear(d_model, n_filters, bias=False)

    def forward(self, encoded: Tensor) -> Tensor:
        x = self.bottleneck(self.norm(encoded).transpose(1, 2))  # (B, L, D)
        x = segment(x, self.chunk_size)  # (B, J, K, D)
        for block in self.blocks:
            x = block(x)
        x = overlap_add(self.sources(self.prelu(x)), encoded.shape[-1])  # (B, L, S D)
        x = x.unflatten(-1, self.shape).transpose(1, 2)  # (B, S, L, D)
        x = torch.tanh(self.out(x)) * torch.sigmoid(self.gate(x))
        return self.activation(self.filters(x)).transpose(2, 3)  # (B, S, N, L)


def _normed(norm: GlobalLayerNorm, x: Tensor) -> Tensor:
    """The norm for channels in the last axis, without a copy: (B, J, K, D) -> the same shape."""
    return norm(x.movedim(-1, 1)).movedim(1, -1)
