"""The contract of `Model`, for every system and for the Wiener filter."""

import json

import pytest
import torch

from speechlab.config import from_dict, to_dict
from speechlab.errors import UserError
from speechlab.inference import enhance
from speechlab.models import SYSTEMS, semamba
from speechlab.models.base import Model
from speechlab.models.baselines import dprnn
from speechlab.models.baselines.wiener import WienerConfig, WienerFilter
from speechlab.models.macs import n_params
from speechlab.weights.checkpoints import load, save
from tests.support.small_models import SMALL

KINDS = SYSTEMS | {"wiener": (WienerConfig, WienerFilter)}
CONFIGS = SMALL | {"wiener": WienerConfig()}


WIDE = dprnn.DPRNNConfig(kernel_size=16, stride=8, d_model=128, chunk_size=100)
PUBLISHED = (  # system, configuration or None for the default, parameters
    ("semamba_advanced", semamba.CONFIGS["bidirectional"], 2_258_769),
    ("semamba_advanced", semamba.CONFIGS["one_directional"], 1_408_849),
    ("mpsenet", None, 2_263_372),
    ("mpsenet_conformer", None, 2_048_849),
    ("mpsenet_mamba", None, 5_948_492),
    ("conv_tasnet", None, 4_984_881),  # asteroid's 5,050,545 less a path that nothing reads
    ("dprnn", None, 2_608_065),
    ("dprnn", WIDE, 3_652_865),  # what Asteroid builds where nothing is said
    ("sepformer", None, 25_679_361),
    ("sudormrf", None, 2_630_801),
)


@pytest.mark.parametrize(("system", "config", "parameters"), PUBLISHED)
def test_sizes_are_the_published_ones(system, config, parameters):
    with torch.device("meta"):
        assert n_params(KINDS[system][1](config)) == parameters


@pytest.fixture(params=KINDS)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return KINDS[name][1](CONFIGS[name]).eval()


def test_a_configuration_rebuilds_its_model(name, model):
    config, kind = KINDS[name]
    written = json.loads(json.dumps(to_dict(model.config)))
    assert from_dict(config, written) == model.config == CONFIGS[name]
    with torch.device("meta"):
        assert kind().config == config()


def test_a_waveform_gives_one_estimate_for_each_source(model):
    noisy = torch.randn(2, 1, 1000)
    assert model(noisy).shape == (2, model.n_sources, 1000)
    for shape in ((1000,), (1, 1000), (2, 2, 1000), (2, 1, 0)):
        with pytest.raises(UserError, match=type(model).__name__ + r" takes \(B, 1, T\)"):
            model(torch.zeros(shape))


@pytest.mark.parametrize("length", [1, 2, 7, 8, 23, 101, 257, 803])
@torch.inference_mode()
def test_every_length_keeps_its_length(model, length):
    """Of noise and of silence."""
    for noisy in (torch.randn(2, 1, length), torch.zeros(2, 1, length)):
        estimate = model(noisy)
        assert estimate.shape == (2, model.n_sources, length) and estimate.isfinite().all()


@torch.inference_mode()
def test_examples_are_independent_and_the_input_is_left_alone(model):
    model = model.double()
    noisy, order = torch.randn(3, 1, 900, dtype=torch.float64), torch.tensor([2, 0, 1])
    before, together = noisy.clone(), model(noisy)
    assert torch.equal(noisy, before)
    torch.testing.assert_close(model(noisy[order]), together[order], rtol=0, atol=1e-9)
    torch.testing.assert_close(model(noisy[1:2]), together[1:2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SYSTEMS)
@torch.inference_mode()
def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    """Weights bit for bit; outputs to rounding, which depends on the alignment in memory."""
    loaded = load(save(tmp_path / "model.safetensors", model))
    pairs = zip(loaded.state_dict().items(), model.state_dict().items(), strict=True)
    assert all(ours == held and torch.equal(a, b) for (ours, a), (held, b) in pairs)
    noisy = torch.randn(2, 1, 500, dtype=torch.float64)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.double()(noisy), model.double()(noisy), rtol=0, atol=1e-9)


def test_the_look_ahead_is_all_that_an_output_sample_needs(model):
    """Prefix law; without a look-ahead the end changes the beginning."""
    noisy = torch.randn(1, 1, 1000)
    longer = model(torch.cat([noisy, torch.randn(1, 1, 500)], -1))
    n_same = 1000 - (model.look_ahead or 0)
    same = torch.allclose(longer[..., :n_same], model(noisy)[..., :n_same], rtol=0, atol=1e-5)
    assert same == (model.look_ahead is not None)


def test_costs_grow_with_the_length(name, model):
    if name == "wiener":
        with pytest.raises(UserError, match="WienerFilter have no rule"):
            model.macs(0.1)
    else:
        assert 0 < model.macs(0.1) < model.macs(0.2)


def test_long_recordings_have_a_pass(model):
    assert isinstance(model, Model) and model.long_recordings in enhance.PASSES
    assert (model.long_recordings == "chunks") == (model.needs_whole is None)
    assert model.look_ahead is None or model.needs_whole is None
    assert model.hop_length >= 1 and model.sample_rate in (8000, 16000)
