"""SepFormer: cost, positions, the transformer against PyTorch's."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from speechlab.models.baselines.sepformer import CONFIGS, SepFormer, TransformerPath, positions
from speechlab.models.macs import count_macs


@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_macs_are_products_of_weights_and_frames(seconds):
    """1000 frames a second in two chunks each; across chunks attention grows with the length.

    All 32 layers take 55.7 G a second of 4; SepMamba's table says 257.94 G.
    """
    with torch.device("meta"):
        macs = count_macs(SepFormer(replace(CONFIGS["published"], n_layers=2)), seconds)
    in_chunks = 8 * (4 * 256**2 + 2 * 256 * 1024) + 256 * 512
    per_frame = 256 * 16 + 256**2 + 2 * in_chunks + 2 * (3 * 256**2 + 256 * 16)
    assert macs.layers == pytest.approx(1000 * per_frame)
    within, across = 2 * 256 * 250, 2 * 256 * (8 * seconds + 2)  # and a chunk for each end, twice
    assert macs.memory == pytest.approx(1000 * 2 * 4 * (within + across), rel=0.01)


def test_positions_are_sines_and_cosines_in_turn():
    found = positions(7, 5, torch.zeros(1, dtype=torch.float64))
    assert found.shape == (7, 5) and found.dtype == torch.float64
    for place in range(7):
        for i in range(5):
            angle = place / 10000 ** (2 * (i // 2) / 5)
            expected = math.cos(angle) if i % 2 else math.sin(angle)
            assert found[place, i].item() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_the_transformer_is_pytorchs_with_the_norm_first():
    ours = TransformerPath(8, 2, 4, 12).double()
    layer = nn.TransformerEncoderLayer(8, 4, 12, 0.0, batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False).double()
    for norm in (m for m in ours.modules() if isinstance(m, nn.LayerNorm)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    for own, other in zip(ours.layers, theirs.layers, strict=True):
        other.norm1.load_state_dict(own.attention_norm.state_dict())
        other.norm2.load_state_dict(own.dense_norm.state_dict())
        other.linear1.load_state_dict(own.dense[0].state_dict())
        other.linear2.load_state_dict(own.dense[2].state_dict())
        other.self_attn.in_proj_weight.copy_(own.attention.in_proj.weight)
        other.self_attn.in_proj_bias.copy_(own.attention.in_proj.bias)
        other.self_attn.out_proj.load_state_dict(own.attention.out_proj.state_dict())
    theirs.norm.load_state_dict(ours.norm.state_dict())
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x + positions(6, 8, x)))
