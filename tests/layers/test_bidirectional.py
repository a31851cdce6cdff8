"""Laws of layers that see the whole sequence: symmetry in time, no state, independent examples."""

import inspect

import pytest
import torch

from speechlab.errors import UserError
from speechlab.layers import bidirectional
from speechlab.layers.bidirectional import (
    SEQUENCE_LAYERS,
    Bidirectional,
    a_few_at_once,
    sequence_layer,
)
from speechlab.layers.mixers import Mamba
from speechlab.layers.stacks import Block
from tests.support.signals import noise

D_MODEL = 8
OPTIONS = {
    "mamba": {"d_state": 4, "d_conv": 3, "expand": 2},
    "mamba2": {"d_state": 4, "d_head": 4},
    "transformer": {"n_heads": 2, "d_hidden": 10},
}


def build(name, direction="both"):
    return sequence_layer(name, D_MODEL, direction, **OPTIONS[name]).double().eval()


def sequence(*shape):
    return noise(*shape, dtype=torch.float64)


@pytest.mark.parametrize("name", SEQUENCE_LAYERS)
def test_it_has_no_state_and_sees_both_sides(name):
    """The first and the last output change with any input."""
    layer = build(name)
    assert list(inspect.signature(layer.forward).parameters) == ["x"]
    x = sequence(1, 11, D_MODEL).requires_grad_()
    y = layer(x)
    assert y.shape == x.shape
    for frame in (0, 10):
        (seen,) = torch.autograd.grad(y[:, frame].sum(), x, retain_graph=True)
        assert (seen.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.parametrize("cut", [1, 7])
def test_one_direction_keeps_the_prefix_law(name, cut):
    layer, x = build(name, "forward"), sequence(2, 12, D_MODEL)
    torch.testing.assert_close(layer(x[:, :cut]), layer(x)[:, :cut], rtol=0, atol=1e-12)


def test_backwards_is_forwards_on_the_flipped_sequence():
    """With the two directions' weights exchanged, a flipped sequence gives the flipped output."""
    one, two = (Block(Mamba(D_MODEL, d_state=4), D_MODEL) for _ in range(2))
    layer, exchanged = (Bidirectional(*pair, D_MODEL).double() for pair in ((one, two), (two, one)))
    with torch.no_grad():
        ahead, back = layer.fusion.weight.chunk(2, 1)
        exchanged.fusion.weight.copy_(torch.cat([back, ahead], 1))
        exchanged.fusion.bias.copy_(layer.fusion.bias)
    x = sequence(2, 13, D_MODEL)
    torch.testing.assert_close(exchanged(x.flip(1)), layer(x).flip(1), rtol=0, atol=1e-12)


def test_both_directions_are_written_out():
    """x + W [ahead; back] + b, as SEMamba fuses."""
    layer, x = build("mamba"), sequence(1, 9, D_MODEL)
    ahead, _ = layer.ahead(x)
    back, _ = layer.back(x.flip(1))
    W, b = layer.fusion.weight, layer.fusion.bias
    wanted = x + torch.cat([ahead, back.flip(1)], -1) @ W.T + b
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)


def test_a_block_is_its_mixer_on_the_norm_and_its_input():
    """RMSNorm: x over its root mean square, 1e-5 beneath the root."""
    block, x = build("mamba").ahead, sequence(1, 9, D_MODEL)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.norm.weight
    torch.testing.assert_close(block(x)[0], x + block.mixer(normed)[0], rtol=0, atol=1e-12)


def test_the_transformer_knows_no_order():
    """No positional encoding: frames in another order give the same outputs in that order."""
    layer, x = build("transformer"), sequence(1, 7, D_MODEL)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SEQUENCE_LAYERS)
def test_examples_are_independent_and_gradients_numerical(name):
    layer, x = build(name), sequence(2, 6, D_MODEL)
    torch.testing.assert_close(layer(x[1:]), layer(x)[1:], rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(layer, x[:1].requires_grad_(), fast_mode=True)


def test_the_fusion_starts_as_the_published_one():
    """Uniform within 1 / sqrt(d_model), where a linear layer of 2 d_model inputs has less."""
    fusion = sequence_layer("mamba", 64).fusion
    bound = 64**-0.5
    for start in (fusion.weight, fusion.bias):
        assert 0.9 * bound < start.abs().max() <= bound


def test_parts_of_a_batch_give_what_the_batch_gives(monkeypatch):
    """At most so many elements at once without gradients, all at once with them."""
    layer, x, sizes = build("mamba"), sequence(7, 5, D_MODEL), []
    layer.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr(bidirectional, "ELEMENTS_AT_ONCE", 2 * 5 * D_MODEL)
    whole = a_few_at_once(layer, x)
    assert sizes == [7]
    with torch.no_grad():
        torch.testing.assert_close(a_few_at_once(layer, x), whole, rtol=0, atol=1e-12)
        assert sizes == [7, 2, 2, 2, 1]
        monkeypatch.setattr(bidirectional, "ELEMENTS_AT_ONCE", 1)
        a_few_at_once(layer, x)
        assert sizes[5:] == [1] * 7


@pytest.mark.parametrize(
    ("name", "direction", "options", "said"),
    [
        ("mamba", "both", {"n_heads": 2}, "mamba has no setting 'n_heads'; it has: d_conv"),
        ("mamba", "both", {"d_state": 1.5}, "d_state must be a positive int, not 1.5"),
        ("transformer", "forward", {}, "direction must be both"),
        ("transformer", "both", {"n_heads": 3}, "8 channels cannot have 3 heads"),
    ],
)
def test_what_does_not_fit_is_named(name, direction, options, said):
    with pytest.raises(UserError, match=said):
        sequence_layer(name, D_MODEL, direction, **options)
