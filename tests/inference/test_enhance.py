"""`enhance`: the samples of the whole, the mix, clipping. See test_contract.py for files."""

import pytest
import torch

from speechlab.audio import files
from speechlab.errors import UserError
from speechlab.inference import enhance
from speechlab.weights.checkpoints import load
from tests.support.commands import enhancer
from tests.support.sound_files import noise


@pytest.fixture(scope="module")
def model():
    return enhancer()


def whole(model, waveform):
    """The reference: (C, T) at once, each channel on its own."""
    with torch.inference_mode():
        return model(waveform[:, None])[:, 0]


def run(model, *inputs, output, **settings):
    return enhance.enhance_all(model, inputs, output, progress=False, **settings)


@pytest.mark.parametrize("normalize", ["utterance", "running", "none"])
@pytest.mark.parametrize("sizes", [[1] * 300, [5000], [3, 1999, 997, 0, 2001], [7]])
def test_blocks_give_the_samples_of_the_whole(normalize, sizes):
    model = enhancer(normalize)
    waveform = noise(2, sum(sizes)) * torch.tensor([[1.0], [0.1]])  # a level per channel
    blocks = list(waveform.split(sizes, -1))
    estimate = torch.cat(list(enhance.enhance_blocks(model, blocks, chunk_s=0.01)), -1)
    assert estimate.shape == waveform.shape
    assert (estimate - whole(model, waveform)).abs().max() < 1e-5


@pytest.mark.parametrize("n_channels", [8, 9, 20])
def test_channels_pass_the_network_in_groups(monkeypatch, n_channels):
    model, seen = enhancer(), []
    step = model.network
    waveform = noise(n_channels, 40000) * torch.linspace(0.1, 1, n_channels)[:, None]
    wanted = whole(model, waveform)
    monkeypatch.setattr(model, "network", lambda x, *rest: seen.append(len(x)) or step(x, *rest))
    blocks = [*waveform.split(7001, -1), waveform[:, :0]]
    estimate = torch.cat(list(enhance.enhance_blocks(model, blocks)), -1)
    assert (estimate - wanted).abs().max() < 1e-5
    assert max(seen) == 8


def test_blocks_that_come_once_are_refused_where_they_are_needed_twice(model):
    with pytest.raises(UserError, match="twice"):
        enhance.enhance_blocks(model, iter([noise()]))
    blocks = enhance.enhance_blocks(enhancer("none"), iter([noise()]))
    assert sum(block.shape[-1] for block in blocks) == 5000


@pytest.mark.parametrize("normalize", ["utterance", "running"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_file_in_chunks_is_the_file_at_once(tmp_path, normalize, rate):
    """At the model's rate; at another the whole is resampled there and back."""
    model = enhancer(normalize)
    files.save(tmp_path / "in.wav", noise(2, 30011), rate, "FLOAT")
    result = enhance.enhance_file(
        model, tmp_path / "in.wav", tmp_path / "out.wav", chunk_s=0.1, level="published"
    )
    assert (result.status, result.sample_rate, result.channels) == ("ok", rate, 2)
    estimate = whole(model, files.load(tmp_path / "in.wav", 16000)[0])
    back = files.Resampler(16000, rate, 2)
    expected = torch.cat([back.feed(estimate), back.flush(30011)], -1)
    assert (files.load(tmp_path / "out.wav")[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("rate", [16000, 48000])
def test_the_dry_signal_is_aligned_to_the_sample(tmp_path, model, rate):
    """mix 0 is the input bit for bit, mix 0.5 the mean of both."""
    files.save(tmp_path / "in.wav", noise(2, 30011), rate, "FLOAT")
    outputs = {}
    for mix in (0.0, 0.5, 1.0):
        enhance.enhance_file(model, tmp_path / "in.wav", tmp_path / "out.wav", mix)
        outputs[mix] = files.load(tmp_path / "out.wav")[0]
    assert torch.equal(outputs[0.0], noise(2, 30011))
    assert (outputs[0.5] - (outputs[0.0] + outputs[1.0]) / 2).abs().max() < 1e-6


def test_real_speech_with_published_weights(shared, tmp_path):
    """In chunks against at once, half a step of 16 bits; and the stream's level is another one."""
    weights = shared / "upstream_checkpoints/cleanumamba/Experiment_CleanU_Mamba.pkl"
    source = shared / "audio/pairs/voicebank_demand_train/noisy/p226_001.flac"
    for model in (load(weights), enhance.load_causal(weights)):
        run(model, source, output=tmp_path / model.config.normalize, level="published")
        expected = whole(model, files.load(source)[0])
        estimate = files.load(tmp_path / model.config.normalize / "p226_001.wav")[0]
        assert (estimate - expected).abs().max() < 0.5 / 32768 + 1e-5
    assert (tmp_path / "running").is_dir()
