"""Laws of the mixers: causality, exact streaming, published numbers, published initialisation."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from speechlab.layers.mixers import MIXERS
from speechlab.layers.s4 import hippo_legs
from tests.support.signals import arrays

D_MODEL = 12
OPTIONS = {
    "mamba": {"d_state": 5, "d_conv": 3, "expand": 3},
    "mamba2": {"d_state": 4, "d_head": 6},
    "mamba_s4": {"n_channels": 3, "d_state": 8},
    "lstm": {},
    "mha": {"n_heads": 3, "window": 7},
}
LEAKY, LEAK = ("mamba", "mamba2", "mamba_s4"), {"leak": 0.1}


def build(name: str, **options: float) -> nn.Module:
    return MIXERS[name](D_MODEL, **OPTIONS[name], **options).double().eval()


@pytest.fixture(
    params=[*((name, {}) for name in MIXERS), *((name, LEAK) for name in LEAKY)], ids=str
)
def mixer(request):
    name, options = request.param
    return build(name, **options)


def random_cuts(length: int, seed: int) -> list[int]:
    """Chunk lengths, zeros and ones among them, that add up to `length`."""
    generator = np.random.default_rng(seed)
    cuts = np.sort(generator.integers(0, length + 1, 9))
    return np.diff([0, 1, *np.maximum(cuts, 1), length]).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_chunk_law(mixer, seed):
    """In chunks with the state carried, a sequence gives what it gives whole, state included."""
    x = torch.randn(2, 41, D_MODEL, dtype=torch.float64)
    whole, last = mixer(x)
    state, parts = None, []
    for chunk in x.split(random_cuts(41, seed), 1):
        y, state = mixer(chunk, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-9)
    for streamed, offline in zip(state, last, strict=True):
        torch.testing.assert_close(streamed, offline, rtol=0, atol=1e-9)


@pytest.mark.parametrize("cut", [1, 17, 40])
def test_prefix_law(mixer, cut):
    """What comes later never changes an earlier output."""
    x = torch.randn(2, 41, D_MODEL, dtype=torch.float64)
    whole, _ = mixer(x)
    prefix, _ = mixer(x[:, :cut])
    torch.testing.assert_close(prefix, whole[:, :cut], rtol=0, atol=1e-9)


def test_state_is_a_tuple_of_fixed_size(mixer):
    """The state stops growing once any window is full, and is never kept on the module."""
    x = torch.randn(2, 30, D_MODEL, dtype=torch.float64)
    before = [dict(vars(module)) for module in mixer.modules()]
    _, first = mixer(x)
    _, second = mixer(x, first)
    assert isinstance(second, tuple)
    assert [s.shape for s in first] == [s.shape for s in second]
    assert [dict(vars(module)) for module in mixer.modules()] == before


def test_the_given_state_is_left_alone(mixer):
    x = torch.randn(1, 9, D_MODEL, dtype=torch.float64)
    _, state = mixer(x)
    kept = [s.clone() for s in state]
    mixer(x, state)
    assert all(torch.equal(a, b) for a, b in zip(state, kept, strict=True))


def test_gradient_is_the_numerical_one(mixer):
    x = torch.randn(1, 6, D_MODEL, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mixer(x)[0], x, fast_mode=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("streamed", [False, True])
def test_nan_stays_in_its_future_and_its_example(mixer, value, streamed):
    """It leaves earlier frames and other examples untouched, and shows at its own frame."""
    x = torch.randn(2, 20, D_MODEL, dtype=torch.float64)
    state = mixer(x)[1] if streamed else None
    clean, _ = mixer(x, state)
    x[0, 11] = value
    y, _ = mixer(x, state)
    assert y[0, 11].isnan().any()
    torch.testing.assert_close(y[0, :11], clean[0, :11], rtol=0, atol=1e-9)
    torch.testing.assert_close(y[1], clean[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LEAKY)
def test_what_two_pasts_leave_behind_fades_with_the_leak(name):
    """Beside the own decay of the mixer: 20 frames at 0.1 leave exp(-2) of it."""
    plain, leaky = build(name), build(name, **LEAK)
    leaky.load_state_dict(plain.state_dict())
    past, other, x = torch.randn(3, 1, 20, D_MODEL, dtype=torch.float64)
    (tail, h), (_, h_other) = plain(past)[1], plain(other)[1]
    left, left_plain = (
        mixer(x, (tail, h))[1][1] - mixer(x, (tail, h_other))[1][1] for mixer in (leaky, plain)
    )
    torch.testing.assert_close(left, left_plain * math.exp(-2), rtol=1e-9, atol=1e-15)


def test_attention_sees_just_its_window():
    mixer = build("mha")
    x = torch.randn(1, 20, D_MODEL, dtype=torch.float64)
    changed = x.clone()
    changed[:, 12] += 1
    difference = (mixer(x)[0] - mixer(changed)[0]).abs().amax(-1)[0]
    seen = difference > 1e-12
    assert seen.nonzero().flatten().tolist() == list(range(12, 19))


def test_s4_convolution_is_its_recurrence():
    """From rest, and from a state that a first part left."""
    s4 = build("mamba_s4").s4
    u = torch.randn(2, 50, 3, dtype=torch.float64)
    rest = u.new_zeros(2, 3, 8)
    convolved, recurrent = s4(u), s4(u, rest)
    for a, b in zip(convolved, recurrent, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", ["d64_e2", "d64_e4", "d48_n8_k3"])
def test_mamba_is_the_published_layer(shared, size):
    """mamba-ssm's weights load as they are and give its output."""
    folder = shared / "golden/mamba_layer" / size
    config = json.loads((folder / "manifest.json").read_text())["config"]
    mixer = MIXERS["mamba"](**config)
    mixer.load_state_dict(load_file(folder / "state.safetensors"))
    x, y = arrays(folder, "x", "y")
    with torch.no_grad():
        ours, _ = mixer(x)
    assert (ours - y).abs().max() <= 1e-5 * y.abs().max()


def test_golden_mamba_weights_are_drawn_from_their_seed(shared):
    """Same seed, same weights: ours are drawn in the order of mamba-ssm."""
    folder = shared / "golden/mamba_layer/d64_e2"
    torch.manual_seed(json.loads((folder / "manifest.json").read_text())["seed"])
    ours = MIXERS["mamba"](64).state_dict()
    published = load_file(folder / "state.safetensors")
    assert ours.keys() == published.keys()
    for name, tensor in published.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


def test_s4_starts_as_hippo_legs():
    """LegS is triangular with -1, -2, … on its diagonal: its DPLR form has those eigenvalues."""
    eigenvalues, P, _ = hippo_legs(8)
    p = torch.cat([P.real, P.imag]).double()
    real, imag = eigenvalues.real.double().diag(), eigenvalues.imag.double().diag()
    M = torch.cat([torch.cat([real, -imag], 1), torch.cat([imag, real], 1)]) - 2 * torch.outer(p, p)
    found = torch.linalg.eigvals(M).real.sort(descending=True).values
    torch.testing.assert_close(found, -torch.arange(1.0, 9.0).double(), rtol=1e-2, atol=0)
