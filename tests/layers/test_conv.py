"""Strided convolutions in chunks are those of the whole."""

import pytest
import torch
from torch import nn

from speechlab.layers.conv import strided, transposed

SHAPES = [(4, 2), (3, 2), (16, 2), (2, 2), (5, 1)]  # kernel, stride


def chunks_of(x):
    return x.split([1, 0, 2, 7, 1, 13, 0, x.shape[-1] - 24], -1)


@pytest.mark.parametrize(("kernel", "stride"), SHAPES)
@pytest.mark.parametrize("length", [40, 41])
def test_chunks_give_the_frames_of_the_whole(kernel, stride, length):
    conv = nn.Conv1d(2, 3, kernel, stride).double()
    x, tail, parts = torch.randn(2, 2, length, dtype=torch.float64), None, []
    for chunk in chunks_of(x):
        y, tail = strided(conv, chunk, tail)
        parts.append(y)
    frames = conv(x)
    torch.testing.assert_close(torch.cat(parts, -1), frames, rtol=0, atol=1e-12)
    assert torch.equal(tail, x[..., frames.shape[-1] * stride :])
    assert tail.untyped_storage().nbytes() == tail.nbytes


@pytest.mark.parametrize(("kernel", "stride"), SHAPES)
@pytest.mark.parametrize("n_last", [0, 3])
def test_chunks_give_the_samples_of_the_whole(kernel, stride, n_last):
    """All but the last chunk: as many samples as no later frame adds to. The last may be empty."""
    conv = nn.ConvTranspose1d(2, 3, kernel, stride).double()
    x, overlap, parts = torch.randn(2, 2, 40, dtype=torch.float64), None, []
    for chunk in chunks_of(x[..., : 40 - n_last]):
        y, overlap = transposed(conv, chunk, overlap, last=False)
        assert y.shape[-1] == chunk.shape[-1] * stride
        assert overlap.untyped_storage().nbytes() == overlap.nbytes
        parts.append(y)
    y, _ = transposed(conv, x[..., 40 - n_last :], overlap, last=True)
    torch.testing.assert_close(torch.cat([*parts, y], -1), conv(x), rtol=0, atol=1e-12)
