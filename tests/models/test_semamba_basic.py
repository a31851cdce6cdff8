"""SEMamba, basic: published sizes, causality, the front end by definition, level, silence."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from speechlab.audio.stft import overlap_add, stft, whole_frames
from speechlab.config import from_dict, to_dict
from speechlab.errors import UserError
from speechlab.inference.enhance import enhance_blocks
from speechlab.models.macs import n_params
from speechlab.models.semamba_basic import CONFIGS, LogFrontEnd, SEMambaBasic, SEMambaBasicConfig
from tests.support import signals

LAYER = {
    ("mamba", "forward"): {"d_state": 4},
    ("mamba", "both"): {"d_state": 4, "expand": 4},
    ("transformer", "forward"): {"n_heads": 2, "d_inner": 12, "d_hidden": 10, "window": 5},
    ("transformer", "both"): {"n_heads": 2, "d_inner": 12, "d_hidden": 10},
}
CAUSAL = [("mamba", "none"), ("mamba", "running"), ("transformer", "running")]
FRONT_ENDS = [LogFrontEnd(16, 8), LogFrontEnd(16, 4)]


def tiny(layer="mamba", direction="forward", normalize="none", front_end=FRONT_ENDS[0]):
    torch.manual_seed(0)
    config = SEMambaBasicConfig(
        channels=(12, 8),
        front_end=front_end,
        sequence_layer=layer,
        direction=direction,
        layer=LAYER[layer, direction],
        normalize=normalize,
    )
    return SEMambaBasic(config).double().eval()


noise = partial(signals.noise, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("causal", 3_601_281),
        ("bidirectional", 6_491_009),
        ("transformer_causal", 9_045_377),
        ("transformer_bidirectional", 9_045_377),
    ],
)
def test_sizes_are_the_published_ones(name, parameters):
    with torch.device("meta"):
        model = SEMambaBasic(CONFIGS[name])
    assert n_params(model) == parameters
    assert (model.look_ahead, model.hop_length) == (511 if "causal" in name else None, 256)
    assert from_dict(SEMambaBasicConfig, to_dict(model.config)) == model.config


@pytest.mark.parametrize("front_end", FRONT_ENDS, ids=str)
@pytest.mark.parametrize(("layer", "normalize"), CAUSAL)
@pytest.mark.parametrize("cut", [1, 15, 16, 17, 40, 100])
def test_prefix_law(layer, normalize, front_end, cut):
    """A longer input changes no output sample up to cut - look_ahead."""
    model = tiny(layer, "forward", normalize, front_end)
    noisy = noise(2, 1, 130)
    settled = max(0, cut - model.look_ahead)
    whole, prefix = model(noisy), model(noisy[..., :cut])
    assert prefix.shape[-1] == cut
    torch.testing.assert_close(prefix[..., :settled], whole[..., :settled], rtol=0, atol=1e-12)


@pytest.mark.parametrize("front_end", FRONT_ENDS, ids=str)
def test_look_ahead_is_no_larger_than_needed(front_end):
    """A hop needs the sample look_ahead after its first: the last sample of its last frame.

    Its first one itself needs less, as the periodic window is 0 there, but comes with the others.
    """
    model, first_of_a_hop = tiny(front_end=front_end), 48
    noisy = noise(1, 1, 130).requires_grad_()
    model(noisy)[0, 0, first_of_a_hop + 1].backward()
    assert noisy.grad[0, 0].nonzero().max().item() == first_of_a_hop + model.look_ahead


@pytest.mark.parametrize("layer", ["mamba", "transformer"])
def test_what_sees_both_directions_does_and_cannot_stream(layer):
    model = tiny(layer, "both", "none")
    assert model.look_ahead is None and model.needs_whole
    noisy = noise(1, 1, 200)
    whole, prefix = model(noisy), model(noisy[..., :150])
    assert not torch.allclose(whole[..., :50], prefix[..., :50], rtol=0, atol=1e-9)


def test_a_part_of_a_signal_is_refused_where_both_directions_are_seen():
    with pytest.raises(UserError, match="needs whole signals"):
        tiny("mamba", "both").network(noise(1, 1, 64), None, last=False)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 17, 100, 257])
@pytest.mark.parametrize("kind", LAYER, ids=str)
def test_every_length_keeps_its_length(kind, length):
    for normalize in ("running", "none"):
        estimate = tiny(*kind, normalize)(noise(2, 1, length))
        assert estimate.shape == (2, 1, length) and estimate.isfinite().all()


@pytest.mark.parametrize("kind", LAYER, ids=str)
def test_silence_stays_silent_and_examples_are_independent(kind):
    model = tiny(*kind, "running")
    noisy = noise(2, 1, 100)
    noisy[0] = 0
    kept, together = noisy.clone(), model(noisy)
    assert together[0].abs().max() == 0 < together[1].abs().max()
    assert torch.equal(noisy, kept)
    torch.testing.assert_close(model(noisy[1:]), together[1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("soft_db", [6, 12, 20])
def test_a_soft_microphone_is_nearly_the_same_task(shared, soft_db):
    """What the network sees of softer speech: with the running level much less of the change."""
    noisy = np.load(shared / "golden/cleanumamba/p257_152.input.npy").ravel()
    noisy = torch.from_numpy(noisy)[None, None].double()
    seen = {}
    for normalize in ("running", "none"):
        model = tiny(normalize=normalize)
        levels = [model.level.of(noisy * gain, 16000) for gain in (1, 10 ** (-soft_db / 20))]
        louder, softer = noisy / levels[0], noisy * 10 ** (-soft_db / 20) / levels[1]
        later = slice(16000, None)
        rms = [x[..., later].square().mean().sqrt() for x in (louder, softer)]
        seen[normalize] = 20 * torch.log10(rms[0] / rms[1]).item()
    assert seen["none"] == pytest.approx(soft_db)
    assert seen["running"] <= soft_db / 2


def test_forward_is_the_inverse_of_the_spectrum():
    for layer, direction in LAYER:
        model, noisy = tiny(layer, direction, "running"), noise(2, 1, 101)
        level = model.level.of(noisy, model.sample_rate)
        spectrum = model.spectrum(noisy)
        waveform = model.front_end.synthesise(spectrum, 101)[:, None] * level
        torch.testing.assert_close(waveform, model(noisy), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n_fft", "hop_length"), [(512, 256), (16, 4), (16, 8)])
@pytest.mark.parametrize("length", [1, 15, 16, 33, 600])
def test_the_front_end_gives_the_signal_back(n_fft, hop_length, length):
    front_end, waveform = LogFrontEnd(n_fft, hop_length), noise(2, 3, length)
    spectrum = front_end.analyse(waveform)
    n_frames = -(-length // hop_length) + n_fft // hop_length - 1
    assert spectrum.mag.shape == (2, 3, front_end.n_freqs, n_frames)
    back = front_end.synthesise(spectrum, length)
    torch.testing.assert_close(back, waveform, rtol=0, atol=1e-10)


def test_whole_frames_are_those_of_the_house_and_their_inverse_the_nearest_signal():
    """Centred frames that touch no end; and of a spectrum that no signal has, torch's inverse."""
    waveform = noise(2, 200)
    centred = stft(waveform, 16, 4, 16)
    spec = whole_frames(waveform, 16, 4)
    torch.testing.assert_close(spec, centred[..., 2:-2], rtol=0, atol=1e-12)
    assert whole_frames(waveform[:, :15], 16, 4).shape == (2, 9, 0)
    other = spec * torch.polar(*noise(2, *spec.shape))
    window = torch.hann_window(16, dtype=torch.float64)
    wanted = torch.istft(F.pad(other, (2, 2)), 16, 4, window=window)[..., 12:-12]
    got = overlap_add(other, 16, 4)
    assert got.shape[-1] == (spec.shape[-1] - 3) * 4
    torch.testing.assert_close(got, wanted[..., : got.shape[-1]], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", LAYER, ids=str)
def test_a_file_in_blocks_is_enhanced_as_a_whole(kind):
    """Causal ones chunk by chunk, the others at once."""
    model, noisy = tiny(*kind, "running").float(), noise(2, 1000).float()
    with torch.inference_mode():
        offline = model(noisy[:, None])[:, 0]
    estimate = torch.cat(list(enhance_blocks(model, list(noisy.split(300, -1)), 0.01)), -1)
    torch.testing.assert_close(estimate, offline, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", LAYER, ids=str)
def test_every_parameter_learns(kind):
    """One step of the published loss, L1 of magnitudes, has a gradient for each."""
    model = tiny(*kind, "running")
    noisy, clean = noise(2, 1, 300), noise(2, 1, 300, seed=1)
    level = model.level.of(noisy, model.sample_rate)
    reference = model.front_end.analyse((clean / level)[:, 0])
    (model.spectrum(noisy).mag - reference.mag).abs().mean().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
