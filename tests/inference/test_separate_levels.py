"""Levels of the files of separated speakers: together the mixture; and how they are written."""

import re

import pytest
import torch

from speechlab.audio import files
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.inference import separate
from speechlab.inference.separate import mixing_gains, separate_blocks, separate_file
from speechlab.losses.waveform import si_sdr
from tests.inference.test_separate import run, whole
from tests.storage.test_kept import fill_the_disk
from tests.support.commands import TINY, WHOLE, separator
from tests.support.separation_toys import RATE, Splitter, talk
from tests.support.sound_files import noise


@pytest.mark.parametrize("rate", [RATE, 2 * RATE])
def test_speakers_add_up_to_the_mixture(tmp_path, rate):
    """Whatever level and sign the model gives them; nothing is cut, and each has one gain."""
    n_samples = 60 * rate
    mixture = noise(2, n_samples) * torch.tensor([[1.0], [0.1]])
    mixture = files.Resampler(RATE, rate, 2).feed(mixture)[:, :n_samples]  # no higher than half
    files.save(tmp_path / "in.wav", mixture, rate)
    model = Splitter(gains=(30.0, 30.0), inverts=True)
    [made] = run(model, tmp_path / "in.wav", output=tmp_path / "mixture", chunk_s=8.0)
    assert made.clipped == 0
    parts = [files.load(tmp_path / "mixture" / f"{part}/in.wav")[0] for part in ("s1", "s2")]
    mixture = files.load(tmp_path / "in.wav")[0]
    apart = (sum(parts) - mixture)[:, 1000:-1000].square().sum(-1)
    assert (apart < 1e-2 * mixture.square().sum(-1)).all()  # at half the rate, something is lost
    targets = [tmp_path / f"{n}.wav" for n in (1, 2)]
    model = Splitter(gains=(30.0, 30.0), inverts=True)  # draws the same again
    separate_file(model, tmp_path / "in.wav", targets, "FLOAT", 8.0, level="model")
    for part, target in zip(parts, targets, strict=True):
        estimate = files.load(target)[0]
        gain = (part * estimate).sum(-1, keepdim=True) / estimate.square().sum(-1, keepdim=True)
        assert ((part - gain * estimate).abs().max(-1).values < 1e-4).all()  # of 16 bits


def products(estimates, mixture):
    """As `mixing_gains` takes them, of (C, S, n) and (C, n)."""
    both = torch.cat([estimates, mixture[:, None]], 1).double()
    return both @ both.mT


def test_gains_undo_those_of_the_model_and_its_leaks():
    sources = talk([(5, 3), (5, 1), (5, 2)])
    mixture = sources.sum(0)[None]
    for leak in (0.0, 0.1):
        leaky = sources + leak * sources[[1, 0]]
        estimates = torch.tensor([[-5.0], [0.2]]) * leaky
        gains = mixing_gains(products(estimates[None], mixture))
        wanted = torch.tensor([[-0.2, 5.0]], dtype=torch.float64) / (1 + leak)
        assert torch.allclose(gains, wanted, rtol=0.01)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e-7])
def test_no_gain_is_without_bounds(size):
    """Of an estimate that is silent, or nearly; of two that are the same; of a silent mixture."""
    mixture, hiss = noise(), noise(seed=1)
    silent = torch.stack([mixture, size * (hiss + mixture)], 1)
    same = torch.stack([mixture, mixture + size * hiss], 1)
    for estimates in (silent, same):
        gains = mixing_gains(products(estimates, mixture))
        scaled = gains[..., None] * estimates
        assert gains.isfinite().all()
        assert (scaled.abs().amax(-1) <= 1.01 * mixture.abs().max()).all()
        assert torch.allclose(scaled.sum(1), mixture.double(), atol=1e-3)
    assert torch.allclose(gains, torch.full_like(gains, 0.5), atol=1e-3)
    for nothing in (
        mixing_gains(products(silent, 0 * mixture)),
        mixing_gains(products(0 * same, mixture)),
    ):
        assert not nothing.any()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    files.save(tmp_path / "in.wav", noise(), 8000)
    fill_the_disk(monkeypatch)
    [result] = run(Splitter(), tmp_path / "in.wav", output=tmp_path / "out")
    assert re.match(r".*: the disk is full; .* TMPDIR names$", result.reason)
    assert not list((tmp_path / "out").rglob("*.wav*"))


def test_levels_may_be_the_model_s(tmp_path):
    """Nothing is done to them; what is cut is counted, told, and kept by another subtype."""
    files.save(tmp_path / "in.wav", noise(), 8000)
    model = Splitter(gains=(30.0, 30.0))
    told = []
    settings = {"level": "model", "tell": told.append}
    [cut] = run(model, tmp_path / "in.wav", output=tmp_path / "cut", **settings)
    assert cut.clipped > 0
    assert f"{cut.clipped} samples" in told[0] and "FLOAT" in told[0]
    [kept] = run(model, tmp_path / "in.wav", output=tmp_path / "kept", subtype="FLOAT", **settings)
    assert kept.clipped == 0
    assert files.load(tmp_path / "kept/s1/in.wav")[0].abs().max() > 1


@pytest.mark.parametrize("rate", [8000, 44100])
def test_a_file_is_resampled_there_and_back(tmp_path, rate):
    model, mixture = separator(), noise(2, 30011)
    mixture -= mixture.mean(-1, keepdim=True)  # an offset is removed
    files.save(tmp_path / "in.wav", mixture, rate, "FLOAT")
    targets = [tmp_path / f"out{i}.wav" for i in range(2)]
    result = separate_file(model, tmp_path / "in.wav", targets, level="model")
    assert (result.status, result.sample_rate, result.channels) == ("ok", rate, 2)
    blocks = separate_blocks(model, [files.load(tmp_path / "in.wav", 8000)[0]])
    estimates = torch.cat(list(blocks), -1)
    for target, estimate in zip(targets, estimates.transpose(0, 1), strict=True):
        back = files.Resampler(8000, rate, 2)
        expected = torch.cat([back.feed(estimate), back.flush(30011)], -1)
        assert (files.load(target)[0] - expected).abs().max() < 1e-5


def test_what_is_done_is_told_and_is_all_in_the_end(tmp_path):
    files.save(tmp_path / "in.wav", noise(2, 100000), 16000)
    told = []
    targets = [tmp_path / f"out{i}.wav" for i in range(2)]
    separate_file(separator(), tmp_path / "in.wav", targets, chunk_s=2.0, advance=told.append)
    assert len(told) > 3
    assert sum(told) == pytest.approx(1)


# The level that the network gets


LEVELLED = override(WHOLE, n_sources=2)
SYSTEMS = {  # of which none is the same at any level
    "chunks": LEVELLED,
    "stream": override(LEVELLED, direction="forward"),
    "utterance": override(LEVELLED, normalize="utterance"),
    "utterance, causal": override(LEVELLED, normalize="utterance", direction="forward"),
}


def talking(n_channels=1, seconds=3.0, seed=0):
    """Two speakers at 8 kHz with pauses, each in its own band: the order can be found."""
    n_samples = round(8000 * seconds)
    sources = noise(2 * n_channels, n_samples, seed).unflatten(0, (2, n_channels))
    turns = torch.arange(n_samples) // 6000 % 2
    return sources[0] * (0.3 + turns) + sources[1].roll(1, -1) * (1.3 - turns)


def apart(model, mixture, folder, level, chunk_s=1.0, input_level="robust"):
    """(C, n) through files: (S, C, n)."""
    files.save(folder / "in.wav", mixture, model.sample_rate, "FLOAT")
    targets = [folder / f"s{i}.wav" for i in range(model.n_sources)]
    levels = {"level": level, "input_level": input_level}
    separate_file(model, folder / "in.wav", targets, None, chunk_s, **levels)
    return torch.stack([files.load(target)[0] for target in targets])


@pytest.mark.parametrize("level", separate.LEVELS)
@pytest.mark.parametrize("name", ["chunks", "stream"])
def test_soft_and_loud_recordings_come_apart_alike(tmp_path, name, level):
    """separate_file(g x) = g separate_file(x), of models that a level changes."""
    model, mixture = separator(SYSTEMS[name]), talking(2) * torch.tensor([[1.0], [0.03]])
    wanted = apart(model, mixture, tmp_path, level)
    assert not torch.allclose(1e-3 * whole(model, mixture), whole(model, 1e-3 * mixture), rtol=0.1)
    for gain in (1e-3, 0.3, 10.0):
        estimate = apart(model, gain * mixture, tmp_path, level) / gain
        assert ((estimate - wanted).abs().amax(-1) < 1e-4 * wanted.abs().amax(-1)).all()


@pytest.mark.parametrize("name", ["chunks", "stream"])
def test_the_network_gets_each_channel_at_the_published_peak(tmp_path, name):
    """And its estimates come back in the mixture's scale; of a single chunk, all are seen."""
    model, mixture = separator(SYSTEMS[name]), talking(2) * torch.tensor([[0.01], [2.0]])
    level = mixture.abs().amax(-1, keepdim=True) / separate.PEAK
    wanted = (whole(model, mixture / level) * level[..., None]).transpose(0, 1)
    estimate = apart(model, mixture, tmp_path, "model", chunk_s=4.0)
    assert ((estimate - wanted).abs().amax(-1) < 1e-4 * wanted.abs().amax(-1)).all()


@pytest.mark.parametrize("level", separate.LEVELS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_silence_stays_silence(tmp_path, name, level):
    """A channel of it beside one that is heard, and nothing else."""
    model = separator(SYSTEMS[name])
    for mixture in (talking(2) * torch.tensor([[1.0], [0.0]]), torch.zeros(2, 9000)):
        estimate = apart(model, mixture, tmp_path, level)
        assert estimate.isfinite().all()
        silent = estimate[:, mixture.abs().amax(-1) == 0]
        assert (silent == 0).all() or (name.startswith("utterance") and silent.abs().max() < 1e-2)
    assert not whole(model, mixture).eq(0).all()  # for its network has biases


@pytest.mark.parametrize("gain", [1e-20, 1e-38])
def test_what_is_hardly_more_than_silence_passes(tmp_path, gain):
    model = separator(LEVELLED)
    estimate = apart(model, gain * talking(), tmp_path, "model")
    assert estimate.isfinite().all() and estimate.abs().max() < 1e3 * gain


def test_the_utterance_level_is_that_of_the_whole_recording(tmp_path):
    """Of a recording in chunks, each of which has another level; a causal network has no seams."""
    mixture = talking(2, 6.0) * torch.linspace(0.001, 1, 48000) * torch.tensor([[1.0], [0.1]])
    for name in ("utterance", "utterance, causal"):
        model = separator(SYSTEMS[name])
        wanted = whole(model, mixture)  # (C, S, n)
        blocks = separate_blocks(model, mixture.split(7001, -1), chunk_s=2.0)
        estimate = torch.cat(list(blocks), -1)
        error = (estimate - wanted).square().mean() / wanted.square().mean()
        assert error < (1e-9 if "causal" in name else 1e-5)
        file = apart(model, mixture, tmp_path, "model", 2.0, "published").transpose(0, 1)
        assert (file - estimate).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["utterance", "utterance, causal"])
def test_the_utterance_level_needs_the_blocks_twice(name):
    with pytest.raises(UserError, match="twice; pass them as a list"):
        separate_blocks(separator(SYSTEMS[name]), iter([noise()]))


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_model_is_left_as_it_was(name):
    model, mixture = separator(SYSTEMS[name]), noise()
    before = model.config, model.level, whole(model, mixture)
    list(separate_blocks(model, [mixture]))
    assert (model.config, model.level) == before[:2]
    assert torch.equal(whole(model, mixture), before[2])


@pytest.mark.parametrize("name", ["chunks", "stream"])
def test_more_than_a_minute_at_8_khz(tmp_path, name):
    """The file's pass gives the samples of chunks in memory; those of a stream are the whole's."""
    config = override(SYSTEMS[name], channels=(2, 3), layer={"d_state": 2})
    model, mixture = separator(config), talking(1, 65.0)
    mixture *= separate.PEAK / mixture.abs().max()
    estimate = apart(model, mixture, tmp_path, "model", separate.CHUNK_S)[:, 0]
    wanted = torch.cat(list(separate_blocks(model, [mixture])), -1)[0]
    if name == "stream":
        wanted = whole(model, mixture)[0]
    assert estimate.shape == (2, 65 * 8000)
    assert (estimate - wanted).abs().max() < 1e-5


# A bang


def after_a_bang(mixture, rate, peak=1.0):
    """A mixture (1, n) 40 dB softer than full scale, and 0.1 s of noise with a peak before it."""
    bang = peak * (10 * noise(1, rate // 10, seed=9)).clamp(-1, 1)
    pause = torch.zeros(1, rate // 4)
    return torch.cat([bang, pause, 0.01 * mixture / mixture.square().mean().sqrt()], -1)


def ratio_db(estimates, sources):
    """SI-SDR of the last samples of (S, 1, n), mean over the speakers."""
    estimates = estimates[..., -sources.shape[-1] :]
    return -si_sdr(100 * estimates.transpose(0, 1), 100 * sources.transpose(0, 1)).item()


def test_a_bang_costs_less_than_1_db(tmp_path):
    """Of a model with noise of its own: the softer its input, the worse its estimates."""
    sources = talk([(4, 3), (2, 1), (2, 2)])[:, None]
    mixture, model = sources.sum(0), Splitter(hiss=0.03, swaps=False)
    quality = {
        level: [
            ratio_db(apart(model, x, tmp_path, "mixture", 30.0, level), sources)
            for x in (mixture, after_a_bang(mixture, RATE))
        ]
        for level in separate.INPUT_LEVELS
    }
    assert abs(quality["robust"][0] - quality["robust"][1]) < 1
    assert quality["published"][0] - quality["published"][1] > 20


RUNNING = override(LEVELLED, normalize="running")
SENSITIVE = SYSTEMS | {"running": RUNNING, "conv_tasnet": TINY}
SENSITIVE |= {"running, causal": override(RUNNING, direction="forward")}


@pytest.mark.parametrize("name", SENSITIVE)
def test_a_bang_changes_no_estimate_after_it(tmp_path, name):
    """Neither by the level nor by norms and states; without one, the level is the published."""
    model, mixture = separator(SENSITIVE[name]), talking()

    def estimates(x, level="robust"):
        return apart(model, x, tmp_path, "model", 30.0, level)[..., -mixture.shape[-1] :]

    assert torch.equal(estimates(mixture), estimates(mixture, "published"))
    wanted = estimates(after_a_bang(mixture, 8000, peak=0.0))
    heard = after_a_bang(mixture, 8000)
    robust, published = (
        ratio_db(estimates(heard, level), wanted) for level in separate.INPUT_LEVELS
    )
    assert robust > max(25, published + 10)


def test_a_bang_is_in_the_estimates_as_loud_as_in_the_mixture(tmp_path):
    mixture = after_a_bang(talk([(8, 3)]).sum(0)[None], RATE)
    estimates = apart(Splitter(), mixture, tmp_path, "mixture")
    assert (estimates.sum(0) - mixture).abs().max() < 1e-3
