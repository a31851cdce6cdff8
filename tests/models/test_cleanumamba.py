"""CleanUMamba: published numbers, causality, level, shapes and start."""

import json
import math

import numpy as np
import pytest
import torch

import speechlab
from speechlab.config import override
from speechlab.layers.mixers import MIXERS
from speechlab.models.cleanumamba import CONFIGS, CleanUMamba, CleanUMambaConfig, ablation_config
from speechlab.models.macs import n_params

CHECKPOINTS = [
    *(f"Experiment_CleanU_{mixer}" for mixer in ("Mamba", "Mamba2", "MambaS4", "LSTM", "MHA")),
    *(f"CleanUMamba-3N-E8_pruned-{size}" for size in ("200K", "500K", "1M", "2M")),
    "CleanUMamba-3N-E6_pruned-500k",
]
PARAMETERS = {"mamba": 441_601, "mamba2": 427_945, "mamba_s4": 450_961, "lstm": 443_009}
TINY = CleanUMambaConfig(
    down_channels=(4, 6, 5),
    skip_channels=(5, 7, 6),
    up_channels=(3, 4, 5),
    d_model=8,
    layers=({"d_state": 4},) * 2,
    normalize="none",
)
SMALL_LAYERS = {
    "mamba": ({"d_state": 4},),
    "mamba2": ({"d_state": 4, "d_head": 4},),
    "mamba_s4": ({"n_channels": 3, "d_state": 8},),
    "lstm": ({},),
    "mha": ({"n_heads": 2, "window": 6},),
}


@pytest.fixture
def tiny():
    return CleanUMamba(TINY).double().eval()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_weights_give_the_published_output(shared, name):
    """Reference outputs on two noisy utterances; S4's own float32 floor is 1.3e-5."""
    model = speechlab.load(shared / "upstream_checkpoints/cleanumamba" / f"{name}.pkl")
    folder = shared / "golden/cleanumamba"
    entries = json.loads((folder / "manifest.json").read_text())["entries"]
    for entry in (entry for entry in entries if entry["name"] == name):
        noisy, wanted = (np.load(folder / entry[key]).ravel() for key in ("input", "output"))
        with torch.no_grad():
            estimate = model(torch.from_numpy(noisy)[None, None]).numpy().ravel()
        assert np.abs(estimate - wanted).max() <= (1e-4 if "S4" in name else 2e-5)


@torch.inference_mode()
def test_a_leak_fades_the_past_in_its_time(shared):
    """Two pasts, then silence: 62 frames, 0.992 s, leave exp(-0.992 / 0.5) of them, or less."""
    path = shared / "upstream_checkpoints/cleanumamba/Experiment_CleanU_Mamba.pkl"
    model = speechlab.load(path, normalize="none", state_leak_s=0.5).double()
    past, silence = torch.randn(2, 1, 4000).double(), torch.zeros(2, 1, 62 * 256).double()
    _, between = model.network(torch.cat([past, silence[..., :4096]], -1), None, False)
    _, after = model.network(silence, between, False)
    left, right = ((state[1][0][1][0] - state[1][0][1][1]).abs() for state in (between, after))
    assert left.max() > 1e-3 and (right <= math.exp(-0.992 / 0.5) * left + 1e-12).all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_ablation_sizes_are_the_published_ones(mixer):
    assert n_params(CleanUMamba(ablation_config(mixer))) == PARAMETERS.get(mixer, 442_945)


@pytest.mark.parametrize(
    ("size", "parameters", "frame", "hop"),
    [("e8", 41_376_385, 766, 256), ("e6", 27_211_393, 190, 64)],
)
def test_full_sizes_are_the_published_ones(size, parameters, frame, hop):
    model = CleanUMamba(override(CONFIGS[size], normalize="none"))
    assert n_params(model) == parameters
    assert (model.frame_length, model.hop_length, model.look_ahead) == (frame, hop, frame - 1)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("normalize", ["none", "running"])
@pytest.mark.parametrize("cut", [1, 30, 57, 58, 100])
def test_prefix_law(mixer, normalize, cut):
    """A longer input changes no output sample up to cut - look_ahead."""
    layers = SMALL_LAYERS[mixer]
    model = CleanUMamba(override(TINY, mixer=mixer, layers=layers, normalize=normalize)).double()
    noisy = torch.randn(2, 1, 130, dtype=torch.float64)
    settled = max(0, cut - model.look_ahead)
    whole, prefix = model(noisy), model(noisy[..., :cut])
    assert prefix.shape[-1] == cut
    torch.testing.assert_close(prefix[..., :settled], whole[..., :settled], rtol=0, atol=1e-12)


def test_look_ahead_is_no_larger_than_needed(tiny):
    """Some output does depend on the sample look_ahead ahead of it."""
    noisy = torch.randn(1, 1, 64, dtype=torch.float64, requires_grad=True)
    first_of_a_frame = 3 * tiny.hop_length
    tiny(noisy)[0, 0, first_of_a_frame].backward()
    seen = noisy.grad[0, 0].nonzero().max().item()
    assert seen == first_of_a_frame + tiny.look_ahead


@pytest.mark.parametrize("length", [1, 2, 7, 22, 23, 100, 257, 500])
@pytest.mark.parametrize("normalize", ["utterance", "running", "none"])
def test_every_length_keeps_its_length(length, normalize):
    """Of noise and of silence."""
    model = CleanUMamba(override(TINY, normalize=normalize))
    estimate = model(torch.cat([torch.randn(2, 1, length), torch.zeros(1, 1, length)]))
    assert estimate.shape == (3, 1, length) and estimate.isfinite().all()


def test_utterance_level_makes_loudness_drop_out():
    """Far above the 1e-3 floor, a louder input is the same output, louder."""
    model = CleanUMamba(override(TINY, normalize="utterance")).double()
    noisy = 1e4 * torch.randn(1, 1, 90, dtype=torch.float64)
    torch.testing.assert_close(model(8 * noisy), 8 * model(noisy), rtol=1e-5, atol=1e-3)


def test_convolutions_start_rescaled():
    """CleanUNet's rule leaves std(w) = sqrt(std before / 10); PyTorch's start is uniform."""
    conv = CleanUMamba(CONFIGS["ablation"]).encoder[3].down
    before = (conv.in_channels * conv.kernel_size[0]) ** -0.5 / 3**0.5  # std of the uniform start
    assert conv.weight.std().item() == pytest.approx((before / 10) ** 0.5, rel=0.05)


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_reach_every_parameter(mixer):
    """A training step moves the whole network, in every variant of the ablation."""
    model = CleanUMamba(ablation_config(mixer))
    model(torch.randn(1, 1, 4000)).square().mean().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not dead
