"""Stacks keep the laws of their mixers."""

import pytest
import torch

from speechlab.layers.stacks import STACKS

OPTIONS = {
    "mamba": ({"d_state": 4}, {"d_inner": 5, "d_state": 3, "dt_rank": 2}),
    "mamba2": ({"d_state": 4, "d_head": 4},) * 2,
    "mamba_s4": ({"n_channels": 3, "d_state": 8},) * 2,
    "lstm": ({},) * 2,
    "mha": ({"n_heads": 2, "window": 6, "d_hidden": 10},) * 2,
}


@pytest.mark.parametrize("mixer", STACKS)
def test_chunk_law(mixer):
    stack = STACKS[mixer](mixer, 8, OPTIONS[mixer]).double()
    x = torch.randn(2, 29, 8, dtype=torch.float64)
    whole, _ = stack(x)
    state, parts = None, []
    for chunk in x.split([1, 3, 0, 13, 1, 11], 1):
        y, state = stack(chunk, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-9)
    assert len(state) == 2
