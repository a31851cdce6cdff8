"""The Conformer block: what each part hears, dropout and the statistics of BatchNorm."""

import pytest
import torch

from speechlab.layers.conformer import ConformerBlock, Convolution


def test_the_convolution_hears_half_a_kernel_on_either_side():
    convolution = Convolution(4, 2, 5).eval()
    x = torch.randn(1, 12, 4, requires_grad=True)
    convolution(x)[0, 6, 0].backward()
    assert x.grad[0].abs().sum(-1).nonzero().flatten().tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("axes", ["named", "published"])
def test_attention_turns_and_the_convolution_does_not(axes):
    """Row 0, step 6 hears its row; with published axes the same step of every row near it."""
    block = ConformerBlock(4, 2, axes, kernel_size=3).eval()
    x = torch.randn(3, 12, 4, requires_grad=True)
    block(x)[0, 6, 0].backward()
    seen = x.grad.abs().sum(-1) > 0
    if axes == "named":
        assert seen[0].all() and not seen[1:].any()
    else:
        assert seen[:, 5:8].all() and seen.sum() == 9


def test_dropout_only_while_training():
    block, x = ConformerBlock(4, 2, "named"), torch.randn(3, 12, 4)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_rows_do_not_mix_in_eval():
    block, x = ConformerBlock(4, 2, "named").eval(), torch.randn(3, 12, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]), rtol=0, atol=1e-6)
