"""Conv-TasNet: cost, the separator against loops, what the dilated convolutions hear."""

import pytest
import torch

from speechlab.models.baselines.conv_tasnet import CONFIGS, ConvBlock, ConvTasNet, ConvTasNetConfig
from speechlab.models.macs import count_macs

SMALL = ConvTasNetConfig(
    n_filters=5, kernel_size=4, stride=2, d_model=3, d_skip=4, d_hidden=6, n_blocks=3, n_repeats=2
)


def test_macs_are_products_of_weights_and_frames():
    """1000 frames a second; the paper gives none. SepMamba's table says 2.82 G."""
    blocks = 24 * (128 * 512 + 3 * 512 + 512 * 128) + 23 * 512 * 128
    per_frame = 512 * 16 + 512 * 128 + blocks + 128 * 1024 + 2 * 512 * 16
    with torch.device("meta"):
        macs = count_macs(ConvTasNet(CONFIGS["published"]))
    assert macs.total == pytest.approx(1000 * per_frame)
    assert round(1000 * per_frame / 1e9, 2) == 4.91


def normed(x, norm):
    """x (C, L), by equations 10 to 12."""
    mean, variance = x.mean(), x.var(correction=0)
    return (x - mean) / (variance + 1e-8).sqrt() * norm.weight[:, None] + norm.bias[:, None]


def prelu(x, module):
    return torch.where(x > 0, x, module.weight[:, None] * x)


def pointwise(x, conv):
    return conv.weight[:, :, 0] @ x + conv.bias[:, None]


def block_by_loops(block, x):
    """x (C, L) -> (H, L): every tap of every channel by itself."""
    x = normed(prelu(pointwise(x, block.widen), block.widen_prelu), block.widen_norm)
    conv, (n_channels, n_frames) = block.depthwise, x.shape
    y = conv.bias[:, None].repeat(1, n_frames)
    reach = conv.kernel_size[0] // 2
    for channel in range(n_channels):
        for frame in range(n_frames):
            for tap in range(-reach, reach + 1):
                seen = frame + tap * conv.dilation[0]
                if 0 <= seen < n_frames:
                    y[channel, frame] += conv.weight[channel, 0, tap + reach] * x[channel, seen]
    return normed(prelu(y, block.depthwise_prelu), block.depthwise_norm)


@pytest.mark.parametrize(("d_conv", "dilation"), [(3, 1), (3, 4), (5, 2)])
@torch.no_grad()
def test_a_block_is_its_formula(d_conv, dilation):
    block = ConvBlock(3, 4, d_conv, dilation).double()
    x = torch.randn(2, 3, 10, dtype=torch.float64)
    for item, y in zip(x, block(x), strict=True):
        torch.testing.assert_close(y, block_by_loops(block, item))


@torch.no_grad()
def test_masks_are_made_of_the_skips():
    separator = ConvTasNet(SMALL).double().separator
    encoded = torch.randn(1, 5, 9, dtype=torch.float64)
    x, total = pointwise(normed(encoded[0], separator.norm), separator.bottleneck), 0
    for i, block in enumerate(separator.blocks):
        hidden = block_by_loops(block, x)
        total = total + pointwise(hidden, separator.skips[i])
        if i < 5:
            x = x + pointwise(hidden, separator.residuals[i])
    logits = pointwise(prelu(total, separator.mask.prelu), separator.mask.conv)
    expected = logits.sigmoid().unflatten(0, (2, 5))
    torch.testing.assert_close(separator(encoded)[0], expected)


def test_dilations_double_in_each_repeat():
    dilations = [block.depthwise.dilation[0] for block in ConvTasNet(SMALL).separator.blocks]
    assert dilations == [1, 2, 4, 1, 2, 4]
