"""MP-SENet with Conformer blocks: published key names, dropout."""

import re

import pytest
import torch

import speechlab
from speechlab.audio.spectrum import FrontEnd
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.models.mpsenet_conformer import MPSENetConformer, MPSENetConformerConfig

SMALL = MPSENetConformerConfig(
    d_model=8,
    n_blocks=2,
    n_heads=4,
    expand=3,
    kernel_size=5,
    axes="published",
    front_end=FrontEnd(n_fft=32, hop_length=8, win_length=32),
)
UNIT = {"conv": 0, "norm": 1, "activation": 2}
FEED = {"norm": 0, "widen": 1, "narrow": 4}
CONVOLUTION = {"norm": 0, "widen": 2, "depthwise": 4, "batch_norm": 5, "narrow": 7}


def published_name(name):
    """The name of one of our tensors in the authors' code."""
    rules = (
        (r"^encoder\.(widen|down)\.(\w+)", lambda m: f"encoder.{m[1]}.{UNIT[m[2]]}"),
        (r"^encoder\.widen", "dense_encoder.dense_conv_1"),
        (r"^encoder\.down", "dense_encoder.dense_conv_2"),
        (r"^encoder", "dense_encoder"),
        (
            r"\.dense\.layers\.(\d)\.(\w+)",
            lambda m: f".dense_block.dense_block.{m[1]}.{UNIT[m[2]]}",
        ),
        (r"^mask_decoder\.up", "mask_decoder.mask_conv.0"),
        (r"^mask_decoder\.narrow\.(\d)", lambda m: f"mask_decoder.mask_conv.{int(m[1]) + 1}"),
        (r"\.slope$", ".lsigmoid.slope"),
        (r"^phase_decoder\.up", "phase_decoder.phase_conv.0"),
        (r"^phase_decoder\.norm", "phase_decoder.phase_conv.1"),
        (r"^phase_decoder\.activation", "phase_decoder.phase_conv.2"),
        (r"\.real\.", ".phase_conv_r."),
        (r"\.imaginary\.", ".phase_conv_i."),
        (r"^blocks\.(\d)\.(time|freq)\.", r"TSConformer.\1.\2_conformer."),
        (r"\.feed_in\.(\w+)\.", lambda m: f".ffm1.ffm.{FEED[m[1]]}."),
        (r"\.feed_out\.(\w+)\.", lambda m: f".ffm2.ffm.{FEED[m[1]]}."),
        (r"\.attention_norm\.", ".attn.layernorm."),
        (r"\.attention\.in_proj\.", ".attn.attn.in_proj_"),
        (r"\.attention\.", ".attn.attn."),
        (r"\.convolution\.(\w+)\.", lambda m: f".ccm.ccm.{CONVOLUTION[m[1]]}."),
        (r"\.norm_out\.", ".post_norm."),
    )
    for pattern, theirs in rules:
        name = re.sub(pattern, theirs, name)
    return name


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MPSENetConformer(SMALL).eval()


def test_weights_under_the_authors_names_load(model, tmp_path):
    """Sizes read off the tensors; the published file's axes."""
    state = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    torch.save({"generator": state}, tmp_path / "g_best")
    loaded = speechlab.load(tmp_path / "g_best", system="mpsenet_conformer")
    assert loaded.config == model.config
    noisy = torch.randn(2, 1, 100)
    assert torch.equal(loaded(noisy), model(noisy))


def test_dropout_only_while_training(model):
    noisy = torch.randn(1, 1, 100)
    assert torch.equal(model(noisy), model(noisy))
    model.train()
    assert not torch.equal(model(noisy), model(noisy))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd, not 4"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1, not 1.0"),
        ({"expand": 0}, "expand must be 1 or more, not 0"),
    ],
)
def test_sizes_that_build_no_model_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        MPSENetConformer(override(SMALL, **changes))
