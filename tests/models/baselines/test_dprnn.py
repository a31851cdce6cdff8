"""Dual-path RNN: cost, the recurrent path written out."""

import pytest
import torch

from speechlab.models.baselines.dprnn import CONFIGS, DPRNN, RecurrentPath
from speechlab.models.macs import count_macs


def test_macs_are_products_of_weights_and_frames():
    """8000 frames a second, each in two chunks, each source with its gate and its mask.

    41.4 G; SepMamba's table says 42.52 G, as one second with the chunks of its ends would be.
    """
    recurrent = 2 * 4 * 128 * (64 + 128) + 256 * 64
    in_chunks = 12 * recurrent + 64 * 128
    per_frame = 64 * 2 + 64 * 64 + 2 * in_chunks + 2 * (3 * 64 * 64 + 64 * 2)
    with torch.device("meta"):
        macs = count_macs(DPRNN(CONFIGS["published"]))
    assert macs.layers == pytest.approx(8000 * per_frame)
    assert macs.memory == pytest.approx(8000 * 2 * 12 * 3 * 2 * 128)


@torch.no_grad()
def test_the_recurrent_path_is_two_lstms_step_by_step():
    path, x = RecurrentPath(3, 4).double(), torch.randn(2, 7, 3, dtype=torch.float64)

    def steps(frames, suffix):
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        w, u, b, b2 = (getattr(path.lstm, name + suffix) for name in names)
        h, c, found = torch.zeros(4).double(), torch.zeros(4).double(), []
        for frame in frames:
            i, f, g, o = (w @ frame + b + u @ h + b2).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            found.append(h)
        return torch.stack(found)

    for row, y in zip(x, path(x), strict=True):
        both = torch.cat([steps(row, ""), steps(row.flip(0), "_reverse").flip(0)], -1)
        torch.testing.assert_close(y, both @ path.linear.weight.T + path.linear.bias)
