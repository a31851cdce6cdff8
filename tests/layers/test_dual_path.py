"""Chunks and their sum, the norm of everything, a block and the masks against loops."""

import pytest
import torch
from torch import nn

from speechlab.errors import UserError
from speechlab.layers import bidirectional
from speechlab.layers.dual_path import (
    DualPath,
    DualPathMasks,
    GlobalLayerNorm,
    overlap_add,
    segment,
)

LENGTHS = [1, 2, 3, 4, 5, 8, 11]


class Running(nn.Module):
    """A layer for which the order of the rows' frames matters."""

    def forward(self, x):
        return x.cumsum(1).tanh()


def random_norm(n_channels):
    norm = GlobalLayerNorm(n_channels).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def gln(x, norm):
    """Of one item with channels last, by the definition."""
    mean = x.sum() / x.numel()
    variance = ((x - mean) ** 2).sum() / x.numel()
    return (x - mean) / (variance + 1e-8).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 5, 3, 4)])
def test_the_norm_is_that_of_all_frames_and_channels(shape):
    x, norm = 3 + 2 * torch.randn(shape, dtype=torch.float64), random_norm(5)
    for item, normed in zip(x, norm(x), strict=True):
        torch.testing.assert_close(normed.movedim(0, -1), gln(item.movedim(0, -1), norm))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("chunk_size", [2, 4, 6])
def test_chunks_are_windows_half_a_chunk_apart(length, chunk_size):
    x = torch.randn(2, length, 3)
    chunks, hop = segment(x, chunk_size), chunk_size // 2
    n_chunks = -(-length // hop) + 1
    assert chunks.shape == (2, n_chunks, chunk_size, 3)
    for j in range(n_chunks):
        for k in range(chunk_size):
            frame = (j - 1) * hop + k
            expected = x[:, frame] if 0 <= frame < length else torch.zeros(2, 3)
            assert torch.equal(chunks[:, j, k], expected)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("chunk_size", [2, 4, 6])
def test_every_frame_is_in_two_chunks(length, chunk_size):
    x = torch.randn(2, length, 3)
    assert torch.equal(overlap_add(segment(x, chunk_size), length), 2 * x)


def test_the_sum_of_chunks_is_that_of_a_loop():
    chunks = torch.randn(2, 5, 6, 3, dtype=torch.float64)
    total = torch.zeros(2, 6 * 3, 3, dtype=torch.float64)  # the half before the first frame too
    for j in range(5):
        total[:, 3 * j : 3 * j + 6] += chunks[:, j]
    torch.testing.assert_close(overlap_add(chunks, 11), total[:, 3:14])


def test_a_block_goes_within_chunks_and_then_across():
    block = DualPath(Running(), Running(), 4).double()
    block.within_norm, block.across_norm = random_norm(4), random_norm(4)
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    for item, y in zip(x, block(x), strict=True):
        within = torch.stack([row.cumsum(0).tanh() for row in item])  # (J, K, D)
        item = item + gln(within, block.within_norm)
        columns = [item[:, k].cumsum(0).tanh() for k in range(6)]
        torch.testing.assert_close(y, item + gln(torch.stack(columns, 1), block.across_norm))


def test_few_rows_at_once_are_the_same(monkeypatch):
    """Without gradients wide tensors are of some rows only; the norms see all of them."""
    block, x = DualPath(Running(), Running(), 4).double(), torch.randn(3, 5, 6, 4).double()
    whole = block(x)
    monkeypatch.setattr(bidirectional, "ELEMENTS_AT_ONCE", 50)
    with torch.no_grad():
        torch.testing.assert_close(block(x), whole)


def test_masks_are_those_of_the_formula_item_by_item():
    blocks = [DualPath(Running(), Running(), 4) for _ in range(2)]
    masks = DualPathMasks(nn.Linear(5, 4), blocks, 6, 3, torch.relu).double()
    encoded = torch.randn(2, 5, 11, dtype=torch.float64)
    for item, found in zip(encoded, masks(encoded), strict=True):
        x = masks.bottleneck(gln(item.T, masks.norm))  # (L, D)
        x = segment(x[None], 6)
        for block in blocks:
            x = block(x)
        x = masks.prelu(x)
        for source in range(3):
            rows = slice(4 * source, 4 * source + 4)
            own = x @ masks.sources.weight[rows].T + masks.sources.bias[rows]
            y = overlap_add(own, 11)[0]
            y = masks.out(y).tanh() * masks.gate(y).sigmoid()
            torch.testing.assert_close(found[source], (masks.filters(y).T).clamp_min(0))


@pytest.mark.parametrize("chunk_size", [0, 1, 5])
def test_chunks_must_have_halves(chunk_size):
    said = f"chunk_size must be even and 2 or more, not {chunk_size}"
    with pytest.raises(UserError, match=said):
        DualPathMasks(nn.Linear(5, 4), [], chunk_size, 2, torch.relu)
