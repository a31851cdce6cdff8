"""Settings that build no model are named, for every system."""

from dataclasses import fields, is_dataclass, replace

import pytest

from speechlab.audio.spectrum import FrontEnd
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.layers.mixers import Mamba
from tests.models.test_base import CONFIGS, KINDS

WIDTHS = ("down_channels", "skip_channels", "up_channels")
REFUSED = {
    "cleanumamba": (
        ({"up_channels": (3, 4)}, "one width per level"),
        ({"up_channels": (3, 0, 4)}, "up_channels must be 1 to 65536, not 0"),
        ({"layers": ()}, "layers must be 1 to 256 values, not 0"),
        ({"stride": 0}, "stride must be 1 to 65536, not 0"),
        ({"d_model": 10**12}, "d_model must be 1 to 65536, not 1000000000000"),
        ({"layers": ({"d_state": 10**9},)}, "d_state must be at most 65536, not 1000000000"),
        ({"sample_rate": 999}, "sample_rate must be 1000 to 768000, not 999"),
        (dict.fromkeys(WIDTHS, (4,) * 11) | {"stride": 4}, "hop of more than 1048576"),
        (dict.fromkeys(WIDTHS, (4,) * 17), "channels must be 1 to 16 values, not 17"),
        ({"stride": 5}, "stride 5 is not in"),
        (
            {"layers": ({"d_stat": 3},)},
            r"mixer mamba has no setting 'd_stat'.*; it has: d_conv, d_inner",
        ),
        ({"layers": ({"d_state": "3"},)}, "d_state must be a positive int, not '3'"),
        ({"mixer": "lstm"}, "mixer lstm has no setting 'd_state'; it has: none"),
        ({"mixer": "mha", "layers": ({"n_heads": 5},)}, "n_heads 5"),
        ({"state_leak_s": 0}, "state_leak_s must be 0.1 to 86400, not 0"),
        ({"layers": ({"leak": 1},)}, "mixer mamba has no setting 'leak'"),
        ({"mixer": "lstm", "layers": ({},), "state_leak_s": 10}, "not for lstm; leave it out"),
        ({"mixer": "mha", "layers": ({},), "state_leak_s": 10}, "not for mha; leave it out"),
        ({"mixer": "mamba2", "layers": ({"d_head": 5},)}, "not a multiple of d_head 5"),
    ),
    "semamba_basic": (
        ({"channels": ()}, "channels must be 1 to 16 values"),
        ({"n_blocks": 0}, "n_blocks must be 1 to 256"),
        ({"front_end": {"n_fft": 512, "hop_length": 4}}, "hop_length must be n_fft / 64 or more"),
        ({"kernel_size": 4}, "must be odd"),
        ({"front_end": {"hop_length": 200}}, "hop_length must be half of n_fft"),
        ({"front_end": {"hop_length": 512}}, "hop_length must be half of n_fft"),
        ({"layer": {"d_sate": 3}}, "d_sate"),
        ({"layer": {"d_state": 0}}, "d_state must be a positive int"),
        ({"sequence_layer": "transformer", "layer": {"n_heads": 2}}, "d_inner"),
        ({"layer": {"leak": 1}}, "layer has no setting 'leak'"),
        ({"direction": "both", "state_leak_s": 10}, 'for Mamba with direction "forward"'),
        ({"sequence_layer": "transformer", "state_leak_s": 10}, "state_leak_s is for Mamba"),
    ),
    "semamba_advanced": (
        ({"n_blocks": 0}, "n_blocks must be 1 to 256"),
        ({"front_end": {"hop_length": 1}}, "hop_length must be n_fft / 64 or more, not 1"),
        ({"layer": {"d_stat": 3}}, r"mamba has no setting 'd_stat'.*; it has: d_conv, d_inner"),
        ({"layer": {"leak": 1}}, "mamba has no setting 'leak'"),
        ({"layer": {"d_state": 0}}, "d_state must be a positive int, not 0"),
        ({"sequence_layer": "transformer"}, "transformer has no setting 'd_state'"),
        ({"sequence_layer": "transformer", "layer": {"n_heads": 3}}, "cannot have 3 heads"),
        ({"sequence_layer": "transformer", "layer": {}, "direction": "forward"}, "must be both"),
        ({"sequence_layer": "mamba2", "layer": {"d_head": 5}}, "multiple of d_head 5"),
    ),
    "mpsenet": (
        ({"d_model": 0}, "d_model must be 1 to 65536, not 0"),
        ({"n_heads": 3}, "4 channels cannot have 3 heads"),
        ({"n_blocks": -1}, "n_blocks must be 1 to 256"),
        ({"front_end": FrontEnd(30, 8, 30)}, "multiple of 4, not 30"),
        ({"axes": "turned"}, "one of named, published"),
    ),
    "mpsenet_conformer": (
        ({"kernel_size": 4}, "kernel_size must be odd, not 4"),
        ({"dropout": 1.0}, "dropout must be 0 to 0.99, not 1.0"),
        ({"expand": 0}, "expand must be 1 to 256, not 0"),
    ),
    "sepmamba": (
        ({"channels": ()}, "channels must be 1 to 16 values"),
        ({"kernel_sizes": (16, 16)}, "a width and a kernel size for each level"),
        ({"n_blocks": 0}, "n_blocks must be 1 to 256"),
        ({"n_sources": 0}, "n_sources must be 1 to 256"),
        ({"stride": 5}, r"stride 5 is not in 1 to the least of kernel_sizes \(6, 4, 3\)"),
        ({"layer": {"d_sate": 3}}, "mixer mamba has no setting 'd_sate'"),
        ({"layer": {"d_state": 0}}, "d_state must be a positive int"),
        ({"direction": "both", "state_leak_s": 10}, 'is for direction "forward"'),
    ),
    "umambanet": (
        ({"unet_kernel_size": 4}, "unet_kernel_size must be odd, not 4"),
        ({"unet_kernel_size": 3, "unet_stride": 4}, "unet_stride 4 skips frames"),
        ({"block": ()}, "block must be 1 to 16 values, not 0"),
        ({"growth": 0.0}, "growth must be"),
        ({"growth": float("nan")}, "growth must be"),
        ({"depth": 0}, "depth must be 1 to 16, not 0"),
        ({"layer": {"width": 3}}, "mixer mamba has no setting 'width'"),
    ),
    "conv_tasnet": (({"d_conv": 4}, "d_conv must be odd, not 4"),),
    "sepformer": (({"n_heads": 5}, "attention over 32 channels cannot have 5 heads"),),
    "sudormrf": (({"d_conv": 4}, "d_conv must be odd, not 4"),),
    "wiener": (
        ({"n_fft": 511, "win_length": 511}, "n_fft must be even, not 511"),
        ({"win_length": 600}, "win_length must be 2 to n_fft, 512, not 600"),
        ({"hop_length": 400}, "hop_length must be at most half a window, not 400"),
        ({"hop_length": 0}, "hop_length must be 1 to 65536, not 0"),
        ({"sample_rate": 0}, "sample_rate must be 1000 to 768000, not 0"),
        ({"snr_smoothing": 1.0}, "snr_smoothing must be 0 to 0.9999, not 1.0"),
        ({"noise_smoothing": -0.1}, "noise_smoothing must be 0 to 0.9999, not -0.1"),
        ({"presence_ratio": 1.0}, "presence_ratio must be 1.001 to 1000000, not 1.0"),
        ({"minimum_s": 0.0}, "minimum_s must be 0.001 to 60, not 0.0"),
        ({"gain_floor_db": 1.0}, "gain_floor_db must be -200 to 0, not 1.0"),
        ({"gain_floor_db": float("nan")}, "gain_floor_db must be -200 to 0, not nan"),
    ),
}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [(name, *case) for name, cases in REFUSED.items() for case in cases],
)
def test_settings_that_build_no_model_are_named(name, changes, said):
    with pytest.raises(UserError, match=said):
        KINDS[name][1](override(CONFIGS[name], **changes))


WRONG = ("2", None, True, [2], {"a": 2}, object())


@pytest.mark.parametrize("name", KINDS)
def test_a_value_of_a_wrong_type_is_named(name):
    """Also in a configuration that nothing has checked: the check comes before all rules."""
    config, build = CONFIGS[name], KINDS[name][1]
    inner = [value for value in vars(config).values() if is_dataclass(value)]
    for part in (config, *inner):
        for field in fields(part):
            held = getattr(part, field.name)
            for value in (wrong for wrong in WRONG if type(wrong) is not type(held)):
                changed = replace(part, **{field.name: value})
                if part is not config:
                    changed = replace(config, front_end=changed)
                said = rf"^{type(part).__name__}\.{field.name} must be "
                with pytest.raises(UserError, match=said):
                    build(changed)


@pytest.mark.parametrize(
    ("name", "hops"),  # samples between the frames of each Mamba
    [
        ("cleanumamba", [8, 8]),
        ("semamba_basic", [4, 4]),
        ("sepmamba", [2, 2, 4, 4, 8, 8, 4, 4, 2, 2]),
    ],
)
def test_a_leak_is_that_of_a_frame(name, hops):
    model = KINDS[name][1](override(CONFIGS[name], state_leak_s=10))
    found = [module.leak for module in model.modules() if isinstance(module, Mamba)]
    assert found == pytest.approx([hop / model.sample_rate / 10 for hop in hops])
