"""U-Mamba-Net: lengths, skip sums, what each ablation takes away, the parts against formulas."""

from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch
from torch import nn

from speechlab.errors import UserError
from speechlab.layers.mixers import Mamba
from speechlab.models.macs import count_macs, n_params
from speechlab.models.umambanet import CONFIGS, UMambaNet, UNet

TINY = CONFIGS["tiny"]
VARIANTS = {
    "tiny": {},
    "without_mamba": {"block": ("unet",)},
    "without_unet": {"block": ("mamba",)},
    "two_unets": {"block": ("unet", "unet", "mamba")},
    "both": {"direction": "both"},
    "nearest": {"upsampling": "nearest"},
    "linear": {"upsampling": "linear", "unet_activation": "relu"},
    "growing": {"growth": 1.5, "unet_kernel_size": 3, "n_filters": 24},
    "normed": {"norm": "global", "unet_norm": "frame", "mask_activation": "sigmoid"},
    "no norm in the U-net": {"unet_norm": "none"},
}


@pytest.fixture(params=VARIANTS)
def model(request):
    return UMambaNet(replace(TINY, **VARIANTS[request.param])).eval()


def built(name):
    with torch.device("meta"):
        return UMambaNet(CONFIGS[name])


@pytest.mark.parametrize("length", [1, 7, 8003])
@torch.inference_mode()
def test_sources_are_as_long_as_the_mixture(model, length):
    estimate = model(torch.randn(1, 1, length))
    assert estimate.shape == (1, 2, length) and estimate.isfinite().all()


@torch.inference_mode()
def test_items_of_a_batch_do_not_meet(model):
    model, order = model.double(), torch.tensor([2, 0, 1])
    mixture = torch.randn(3, 1, 900, dtype=torch.float64)
    mixture[1] *= 100
    estimate = model(mixture)
    torch.testing.assert_close(model(mixture[order]), estimate[order])
    torch.testing.assert_close(model(mixture[1:2]), estimate[1:2])


@torch.inference_mode()
def test_masks_of_ones_leave_encoder_and_decoder():
    model = UMambaNet(replace(TINY, mask_activation="none", encoder_activation="none")).double()
    nn.init.zeros_(model.mask.conv.weight)
    nn.init.ones_(model.mask.conv.bias)
    mixture = torch.randn(2, 1, 808, dtype=torch.float64)  # whole frames
    expected = model.decoder(model.encoder(mixture)).expand(2, 2, 808)
    torch.testing.assert_close(model(mixture), expected)


def unet(**changes):
    return UNet(replace(TINY, **changes)).double()


@pytest.mark.parametrize("changes", [{}, {"upsampling": "nearest"}, {"upsampling": "linear"}])
@pytest.mark.parametrize("stride", [2, 3])
@torch.inference_mode()
def test_a_unet_keeps_any_number_of_frames(stride, changes):
    module = unet(depth=3, unet_stride=stride, **changes)
    for n_frames in [*range(1, 30), 100]:
        x = torch.randn(1, TINY.d_model, n_frames, dtype=torch.float64)
        assert module(x).shape == x.shape


@torch.inference_mode()
def test_a_unet_is_convolutions_and_sums_written_out():
    """Level by level: halved, halved, doubled plus what was there, doubled."""
    module = unet(depth=2, unet_activation="relu", unet_kernel_size=3, unet_norm="none")
    x = torch.randn(1, TINY.d_model, 12, dtype=torch.float64)
    (down1, down2), (up2, up1) = (
        [layer.conv for layer in layers] for layers in (module.down, module.up)
    )
    half = nn.functional.conv1d(x, down1.weight, down1.bias, 2, 1).relu()  # 6 frames
    quarter = nn.functional.conv1d(half, down2.weight, down2.bias, 2, 1).relu()  # 3
    y = nn.functional.conv_transpose1d(quarter, up2.weight, up2.bias, 2, 1, 1).relu() + half
    y = nn.functional.conv_transpose1d(y, up1.weight, up1.bias, 2, 1, 1)
    torch.testing.assert_close(module(x), y)


@pytest.mark.parametrize("norm", ["none", "frame", "global"])
@torch.inference_mode()
def test_norms_bound_what_mamba_gets(norm):
    """However far the weights of the U-net have grown; without, the levels multiply them."""
    model = UMambaNet(replace(TINY, unet_norm=norm))
    for name, parameter in model.named_parameters():
        if "parts.0" in name and name.endswith("conv.weight"):
            parameter.mul_(100)
    assert model(torch.randn(1, 1, 4000)).isfinite().all() == (norm != "none")


@pytest.mark.parametrize("upsampling", ["transposed", "nearest", "linear"])
@torch.inference_mode()
def test_without_the_inner_levels_the_skips_are_left(upsampling):
    """The way up from below silenced, a U-net is the one without those levels."""
    deep, flat = (unet(depth=d, upsampling=upsampling) for d in (3, 1))
    for layer in list(deep.up)[:-1]:
        nn.init.zeros_(layer.conv.weight)
        nn.init.zeros_(layer.conv.bias)
    flat.down[0].load_state_dict(deep.down[0].state_dict())
    flat.up[0].load_state_dict(deep.up[-1].state_dict())
    x = torch.randn(2, TINY.d_model, 37, dtype=torch.float64)
    torch.testing.assert_close(deep(x), flat(x))


@pytest.mark.parametrize(("mode", "expected"), [("nearest", [1, 1, 3, 3]), ("linear", None)])
@torch.inference_mode()
def test_upsampling_repeats_frames_or_draws_lines(mode, expected):
    """From frames at 0.5 and 2.5 of the finer grid to those at 0, 1, 2, 3."""
    layer = unet(depth=1, upsampling=mode, unet_kernel_size=3).up[0]
    nn.init.zeros_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    layer.conv.weight[0, 0, 1] = 1.0  # the first channel as it is
    x = torch.zeros(1, TINY.d_model, 2, dtype=torch.float64)
    x[0, 0] = torch.tensor([1.0, 3.0])
    expected = torch.tensor(expected or [1.0, 1.5, 2.5, 3.0], dtype=torch.float64)
    torch.testing.assert_close(layer(x, 4)[0, 0], expected)
    torch.testing.assert_close(layer(x, 3)[0, 0], expected[:3])


@torch.inference_mode()
def test_a_block_is_its_description():
    """Conv and norm; plus the U-net; plus Mamba ahead and from the end."""
    block = UMambaNet(replace(TINY, direction="both")).double().blocks[0]
    x = torch.randn(2, TINY.n_filters, 21, dtype=torch.float64)
    y = block.conv(x)
    mean, variance = y.mean(1, keepdim=True), y.var(1, correction=0, keepdim=True)
    y = (y - mean) / (variance + 1e-8).sqrt()  # of each frame; gains are 1, biases 0
    unet, mamba = block.parts
    y = y + unet(y)
    frames = y.transpose(1, 2)
    ahead, back = mamba.layer.ahead(frames)[0], mamba.layer.back(frames.flip(1))[0].flip(1)
    torch.testing.assert_close(block(x), y + (ahead + back).transpose(1, 2))


@torch.inference_mode()
def test_mamba_ahead_sees_no_future():
    block = UMambaNet(replace(TINY, block=("mamba",))).double().blocks[0]
    x = torch.randn(1, TINY.n_filters, 30, dtype=torch.float64)
    torch.testing.assert_close(block(x[..., :20]), block(x)[..., :20])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("norm", ("frame", "global")),
        ("unet_norm", ("none", "frame", "global")),
        ("unet_activation", ("none", "relu", "prelu")),
        ("upsampling", ("transposed", "nearest", "linear")),
        ("mask_activation", ("none", "relu", "sigmoid")),
        ("encoder_activation", ("none", "relu", "sigmoid")),
    ],
)
@torch.inference_mode()
def test_every_choice_is_another_network(name, values):
    """Of the same random numbers."""
    mixture, found = torch.randn(1, 1, 400), []
    for value in values:
        torch.manual_seed(0)
        found.append(UMambaNet(replace(TINY, **{name: value}))(mixture))
    assert not any(torch.allclose(*pair, rtol=0.01) for pair in combinations(found, 2))


@pytest.mark.parametrize(("norm", "axes"), [("frame", 1), ("global", (1, 2))])
@torch.inference_mode()
def test_norms_are_of_a_frame_or_of_all(norm, axes):
    block = UMambaNet(replace(TINY, norm=norm)).double().blocks[0]
    x = 5 + torch.randn(2, TINY.d_model, 9, dtype=torch.float64)
    x[0] *= 10
    mean, variance = (
        f(x, axes, keepdim=True) for f in (torch.mean, partial(torch.var, correction=0))
    )
    torch.testing.assert_close(block.norm(x), (x - mean) / (variance + 1e-8).sqrt())


def test_levels_grow():
    module = UNet(replace(TINY, d_model=10, depth=3, growth=1.5))
    assert [(c.conv.in_channels, c.conv.out_channels) for c in module.down] == [
        (10, 15),
        (15, 22),
        (22, 34),
    ]
    assert [c.conv.out_channels for c in module.up] == [22, 15, 10]


def test_each_ablation_takes_away_exactly_its_part():
    main, config = built("f128"), CONFIGS["f128"]
    per_mamba = n_params(Mamba(config.d_model, **config.layer))
    d_model, depth = config.d_model, config.depth
    conv = config.unet_kernel_size * d_model**2 + d_model
    after = 2 * d_model + 1  # gain, bias and slope behind every convolution but the last
    per_unet = 2 * depth * conv + (2 * depth - 1) * after
    n_blocks = config.n_blocks
    assert n_params(main) - n_params(built("without_mamba")) == n_blocks * per_mamba
    assert n_params(main) - n_params(built("without_unet")) == n_blocks * per_unet
    assert n_params(built("two_unets")) - n_params(main) == n_blocks * per_unet
    per_block = d_model * config.n_filters + 2 * d_model + per_unet + per_mamba  # conv & norm first
    assert n_params(main) - n_params(built("one_block")) == per_block
    assert n_params(built("three_blocks")) - n_params(main) == per_block
    per_level = n_blocks * 2 * (conv + after)
    assert n_params(main) - n_params(built("depth_3")) == 2 * per_level
    assert n_params(built("depth_7")) - n_params(main) == 2 * per_level


@pytest.mark.parametrize("upsampling", ["nearest", "linear"])
def test_the_way_up_has_the_same_weights_at_more_frames(upsampling):
    main, other = built("f128"), built(upsampling)
    assert n_params(other) == n_params(main) and other.macs(4.0) > main.macs(4.0)


def test_a_second_direction_is_a_second_mamba():
    one, two = (UMambaNet(replace(TINY, direction=d)) for d in ("forward", "both"))
    more = TINY.n_blocks * n_params(Mamba(TINY.d_model, **TINY.layer))
    assert n_params(two) - n_params(one) == more


@pytest.mark.parametrize("upsampling", ["transposed", "nearest", "linear"])
def test_macs_are_products_of_weights_and_frames(upsampling):
    """1000 frames a second; half as many a level deeper, where a transposed conv has its input."""
    config = replace(TINY, depth=2, upsampling=upsampling, direction="forward", kernel_size=16)
    config = replace(config, stride=8, n_blocks=1)
    d, n = config.d_model, config.n_filters
    shares = 0.75 + (0.75 if upsampling == "transposed" else 1.5)
    mamba = Mamba(d, **config.layer)
    layers = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
    per_frame = sum(getattr(mamba, name).weight.numel() for name in layers)
    per_frame += n * d + shares * config.unet_kernel_size * d * d  # Conv & norm, U-net
    per_frame += 2 * d * n + 16 * n * (1 + 2)  # masks; encoder and decoder
    macs = count_macs(UMambaNet(config))
    assert macs.layers == pytest.approx(1000 * per_frame)
    assert macs.memory == pytest.approx(1000 * (4 * mamba.A_log.numel() + 2 * len(mamba.D)))


def test_it_is_of_the_papers_cost():
    """2.5 GMACs, of an input of some 4 s; a fifth smaller than Dual-path RNN's 2.6M."""
    main = built("f128")
    assert main.macs(4.0) == pytest.approx(2.5e9, rel=0.1)
    assert n_params(main) == pytest.approx(0.8 * 2.608e6, rel=0.1)


def test_a_block_of_an_unknown_part_is_named():
    with pytest.raises(UserError, match=r"block must be .*unet, mamba"):
        UMambaNet(replace(TINY, block=("unet", "lstm")))
