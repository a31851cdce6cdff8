"""The step path gives the numbers of the network it stands for: every mixer, size and chunking.

Published weights on speech: see test_stream.py.
"""

import copy
import gc
import itertools
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from speechlab.config import override
from speechlab.errors import UserError
from speechlab.inference import fused as stepping
from speechlab.inference.fused import fuse
from speechlab.layers.kernels import step
from speechlab.layers.mixers import MIXERS
from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig

TINY = CleanUMambaConfig(
    down_channels=(4, 35, 5),
    skip_channels=(5, 7, 33),
    up_channels=(3, 18, 5),
    d_model=12,
    layers=({"d_state": 4},) * 2,
    normalize="running",
)
LAYERS = {
    "mamba": {"d_state": 5, "d_conv": 3, "expand": 3},
    "mamba2": {"d_state": 4, "d_head": 6},
    "mamba_s4": {"n_channels": 3, "d_state": 8},
    "lstm": {},
    "mha": {"n_heads": 3, "window": 7, "d_hidden": 50},
}


def tiny(mixer: str = "mamba", **settings) -> CleanUMamba:
    torch.manual_seed(0)
    config = override(TINY, mixer=mixer, layers=[LAYERS[mixer]] * 2, **settings)
    return CleanUMamba(config).eval()


def padded(model, noisy: torch.Tensor) -> torch.Tensor:
    n_rest = model.padded_length(noisy.shape[-1]) - noisy.shape[-1]
    return torch.nn.functional.pad(noisy, (0, n_rest))


@torch.inference_mode()
def stepped(network, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """x in chunks of `sizes`, over and over, the last one with `last`."""
    state, parts, start = None, [], 0
    for size in itertools.cycle(sizes):
        stop = start + size
        y, state = network(x[..., start:stop], state, stop >= x.shape[-1])
        parts.append(y)
        start = stop
        if start >= x.shape[-1]:
            return torch.cat(parts, -1)


@torch.inference_mode()
def whole(model, x: torch.Tensor) -> torch.Tensor:
    return model.network(x, None, True)[0]


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("sizes", [[1], [8], [3, 0, 5], [13, 90]])
def test_every_mixer_in_any_chunks(mixer, sizes):
    """Two signals at once, widths about the width of a tile, chunks without a sample among them."""
    model = tiny(mixer)
    x = padded(model, torch.randn(2, 1, 150))
    torch.testing.assert_close(
        stepped(fuse(model).network, x, sizes), whole(model, x), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("d_head", [1, 3, 9])
def test_heads_of_any_width(d_head):
    """Of a pruned model; 3 heads of 4 channels would be as wide as the model."""
    layer = LAYERS["mha"] | {"d_head": d_head}
    model = CleanUMamba(override(TINY, mixer="mha", layers=[layer] * 2)).eval()
    x = padded(model, torch.randn(1, 1, 300))
    got = stepped(fuse(model).network, x, [13, 200])
    torch.testing.assert_close(got, whole(model, x), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("kernel_size", "stride"), [(4, 1), (2, 2), (3, 2), (5, 3), (7, 2)])
def test_every_kernel_and_stride(kernel_size, stride):
    model = tiny(kernel_size=kernel_size, stride=stride)
    x = padded(model, torch.randn(1, 1, 200))
    estimate = stepped(fuse(model).network, x, [7, 40])
    torch.testing.assert_close(estimate, whole(model, x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_bits_do_not_depend_on_the_chunks(mixer):
    model = fuse(tiny(mixer))
    x = padded(model, torch.randn(1, 1, 300))
    assert torch.equal(stepped(model.network, x, [1, 30]), stepped(model.network, x, [x.shape[-1]]))


@pytest.mark.parametrize("mixer", MIXERS)
def test_nan_in_is_nan_out(mixer):
    """From the same sample on as in the modules, never before, never hidden by a ReLU."""
    model = tiny(mixer)
    x = padded(model, torch.randn(1, 1, 300))
    x[..., 150] = torch.nan
    estimate, wanted = stepped(fuse(model).network, x, [8]), whole(model, x)
    assert torch.equal(estimate.isnan(), wanted.isnan()) and wanted.isnan().any()
    torch.testing.assert_close(estimate, wanted, rtol=0, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_state_can_be_kept_and_continued_from_twice(mixer):
    """Also where the window of attention has been filled, and written to by the other stream."""
    network = fuse(tiny(mixer)).network
    x, other = torch.randn(2, 1, 1, 150)
    _, state = network(x, None, False)
    kept = copy.deepcopy(state)
    for _ in range(3):
        first, one = network(x, state, False)
        second, two = network(other, state, False)
        fresh, _ = network(x, copy.deepcopy(kept), False)
        assert torch.equal(first, fresh) and not torch.equal(first, second)
        assert torch.equal(network(other, one, False)[0], network(other, one, False)[0])
        assert torch.equal(network(x, two, False)[0], network(x, two, False)[0])


def test_the_callers_chunk_may_be_overwritten():
    """A chunk's memory can be reused as soon as `network` is back."""
    network = fuse(tiny()).network
    x = torch.randn(1, 1, 60)
    wanted, buffer, state, parts = stepped(network, x, [5]), torch.empty(1, 1, 5), None, []
    for start in range(0, 60, 5):
        buffer.copy_(x[..., start : start + 5])
        y, state = network(buffer, state, start == 55)
        parts.append(y)
        buffer.fill_(torch.nan)
    assert torch.equal(torch.cat(parts, -1), wanted)


def test_streams_side_by_side_in_threads():
    """The kernels run without Python's lock and share no scratch."""
    network = fuse(tiny()).network
    x = torch.randn(4, 1, 1, 400)
    wanted = [stepped(network, signal, [8]) for signal in x]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda signal: stepped(network, signal, [8]), x))
    assert all(map(torch.equal, found, wanted))


def test_each_kernel_is_compiled_once():
    """Every layer calls with the same types: no pause in the middle of a stream."""
    for mixer in MIXERS:
        stepped(fuse(tiny(mixer)).network, torch.randn(1, 1, 300), [1, 90])
    names = ("encode", "decode", "linear", "norm", "mamba", "mamba2", "mamba_s4", "lstm", "attend")
    assert [len(getattr(step, name).signatures) for name in names] == [1] * len(names)


def test_weights_are_packed_once_and_again_when_they_change():
    """The geometry is the model's."""
    model = tiny()
    before = fuse(model)
    assert fuse(model) is before and before.config is model.config
    for name in ("sample_rate", "hop_length", "frame_length", "look_ahead"):
        assert getattr(before, name) == getattr(model, name)
    assert before.padded_length(1000) == model.padded_length(1000)
    x = padded(model, torch.randn(1, 1, 100))
    with torch.no_grad():
        model.conv_in.weight.mul_(1.5)
    after = fuse(model)
    assert after is not before
    torch.testing.assert_close(stepped(after.network, x, [9]), whole(model, x), rtol=0, atol=2e-6)


def test_a_fused_model_does_not_keep_its_model_alive():
    model = tiny()
    fused, gone = fuse(model), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and fused.network(torch.zeros(1, 1, 30), None, False)[0].shape[-1] > 0


def test_what_cannot_be_fused_is_named(monkeypatch):
    with pytest.raises(UserError, match="not Linear"):
        fuse(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"torch\.float64 on cpu"):
        fuse(tiny().double())
    with pytest.raises(UserError, match=r"float32, not torch\.float64"):
        fuse(tiny()).network(torch.zeros(1, 1, 9, dtype=torch.float64), None, False)
    monkeypatch.setitem(sys.modules, stepping.STEPPERS, None)
    with pytest.raises(UserError, match="needs numba"):
        fuse(tiny())
