"""Blocks along time and along frequency: axes, attention against PyTorch's, cross-attention."""

import pytest
import torch
from torch import nn

from speechlab.errors import UserError
from speechlab.layers.time_frequency import (
    Attention,
    CrossAttention,
    TimeFrequency,
    TransformerBlock,
    along_axes,
)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_attention_is_the_one_of_pytorch(n_steps):
    ours, theirs = Attention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    names = {"in_proj.weight": "in_proj_weight", "in_proj.bias": "in_proj_bias"}
    state = theirs.state_dict()
    ours.load_state_dict({name: state[names.get(name, name)] for name in ours.state_dict()})
    x, context = torch.randn(3, 5, 8), torch.randn(3, n_steps, 8)
    close(ours(x, context), theirs(x, context, context)[0])


def test_a_lone_step_of_context_has_gradients_for_all_weights():
    attention = Attention(8, 2)
    x = torch.randn(3, 1, 8, requires_grad=True)
    attention(x, torch.randn(3, 1, 8)).sum().backward()
    assert x.grad is not None and all(p.grad.isfinite().all() for p in attention.parameters())


def test_dropout_is_off_in_eval():
    attention, x = Attention(8, 2, dropout=0.5), torch.randn(2, 6, 8)
    assert not torch.equal(attention(x, x), attention(x, x))
    attention.eval()
    assert torch.equal(attention(x, x), attention(x, x))


@pytest.mark.parametrize("n_heads", [0, 3])
def test_heads_that_do_not_divide_the_channels_are_named(n_heads):
    with pytest.raises(UserError, match=f"8 channels cannot have {n_heads} heads"):
        Attention(8, n_heads)


def heard(function, x, where):
    """(L, F) of the points of item 0 that the output at `where` = (item, frame, bin) depends on."""
    x = x.clone().requires_grad_()
    item, frame, freq = where
    function(x)[item, 0, frame, freq].backward()
    return x.grad[0].abs().sum(0) > 0


@pytest.mark.parametrize("axes", ["named", "published"])
def test_axes_are_what_they_say(axes):
    """The time path hears its bin's other frames; published, its frame's other bins."""
    block, x = TransformerBlock(4, 2, axes), torch.randn(2, 4, 5, 3)
    seen = heard(lambda x: along_axes(x, block, torch.zeros_like), x, (0, 2, 1))
    wanted = torch.zeros(5, 3, dtype=torch.bool)
    if axes == "named":
        wanted[:, 1] = True
    else:
        wanted[2] = True
    assert torch.equal(seen, wanted)


@pytest.mark.parametrize("axes", ["named", "published"])
def test_only_published_axes_mix_the_items_of_a_batch(axes):
    path = TimeFrequency(TransformerBlock(4, 2, axes), TransformerBlock(4, 2, axes))
    seen = heard(path, torch.randn(2, 4, 5, 3), (1, 2, 1))  # of item 0, by item 1
    assert seen.any() == (axes == "published")


def test_published_axes_of_one_item_are_the_other_axes():
    """Alone, an item's "time" transformer is one along frequency, and the other way round."""
    named, turned = (TransformerBlock(4, 2, axes) for axes in ("named", "published"))
    turned.load_state_dict(named.state_dict())
    x = torch.randn(1, 4, 5, 3)
    close(along_axes(x, turned, torch.zeros_like), along_axes(x, torch.zeros_like, named))
    close(along_axes(x, torch.zeros_like, turned), along_axes(x, named, torch.zeros_like))


@pytest.mark.parametrize("axes", ["named", "published"])
def test_cross_attention_hears_all_points_or_one(axes):
    """Of the other image; with published axes, of an item alone, its own point."""
    cross, other = CrossAttention(4, 2, axes), torch.randn(1, 4, 5, 3)
    mag = torch.randn(1, 4, 5, 3)
    seen = heard(lambda phase: cross(mag, phase)[0], other, (0, 2, 1))
    assert seen[2, 1] and seen.sum() == (15 if axes == "named" else 1)


def test_cross_attention_keeps_no_matrix_of_pairs():
    """Fused attention saves for its gradient what grows with the length, not with its square."""
    attention, x = Attention(4, 2), torch.randn(1, 3000, 4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        attention(x, x)
    assert max(saved) <= 3 * x.numel()
