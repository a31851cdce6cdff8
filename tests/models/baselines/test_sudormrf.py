"""SuDoRM-RF: cost, a block against loops at lengths that do not halve evenly."""

import pytest
import torch

from speechlab.models.baselines.sudormrf import CONFIGS, SuDoRMRF, UConvBlock
from speechlab.models.macs import count_macs
from tests.models.baselines.test_conv_tasnet import normed, pointwise, prelu


def test_macs_are_products_of_weights_and_frames():
    """800 frames a second, of which a block halves some three times."""
    block = 2 * 128 * 512 + 5 * 512 * (1 + 1 / 2 + 1 / 4 + 1 / 8)
    per_frame = 512 * 21 + 512 * 128 + 16 * block + 128 * 1024 + 2 * 512 * 21
    with torch.device("meta"):
        macs = count_macs(SuDoRMRF(CONFIGS["published"]))
    assert macs.total == pytest.approx(800 * per_frame)


def depthwise(x, conv):
    (taps,), (stride,), n_frames = conv.kernel_size, conv.stride, x.shape[1]
    columns = []
    for middle in range(0, n_frames, stride):
        seen = [middle + tap - taps // 2 for tap in range(taps)]
        heard = [x[:, i] if 0 <= i < n_frames else torch.zeros_like(x[:, 0]) for i in seen]
        columns.append(sum(conv.weight[:, 0, i] * y for i, y in enumerate(heard)) + conv.bias)
    return torch.stack(columns, 1)


@pytest.mark.parametrize("length", [1, 7, 8, 13])
@pytest.mark.parametrize("n_scales", [1, 4])
@torch.no_grad()
def test_a_block_is_its_formula(length, n_scales):
    block = UConvBlock(3, 4, 5, n_scales).double()
    x = torch.randn(2, 3, length, dtype=torch.float64)
    for item, found in zip(x, block(x), strict=True):
        y = prelu(normed(pointwise(item, block.widen), block.widen_norm), block.widen_prelu)
        levels = []
        for conv, norm in block.scales:
            y = normed(depthwise(y, conv), norm)
            levels.append(y)
        total = torch.zeros_like(levels[0])
        for i, level in enumerate(levels):  # every frame hears the one of each level it is in
            total += level[:, [frame // 2**i for frame in range(length)]]
        total = prelu(normed(total, block.norm), block.prelu)
        torch.testing.assert_close(found, item + pointwise(total, block.narrow))
