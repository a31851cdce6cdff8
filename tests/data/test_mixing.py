"""Examples: the SNR asked for is the one measured, and a key gives its example, always."""

import csv
import dataclasses
import math

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.config import override
from speechlab.data import mixing
from speechlab.data.manifest import Item
from speechlab.data.mixing import MixtureConfig, Mixtures, PairConfig, Pairs
from speechlab.data.recordings import Source
from speechlab.errors import UserError

RATE = 8000
SMALL = MixtureConfig(segment_s=0.5, sample_rate=RATE)


def level_db(x):
    return 10 * math.log10(x.double().square().mean())


def write(folder, item, samples):
    """A sound file in 32-bit floats, and the item with its length."""
    (folder / item.path).parent.mkdir(exist_ok=True)
    soundfile.write(folder / item.path, samples, item.sample_rate, subtype="FLOAT")
    return Source(folder, dataclasses.replace(item, n_frames=len(samples)))


def recording(folder, name, kind, seconds, seed, speaker=(), rate=RATE, decay=0.0, **fields):
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=round(seconds * rate)) * 0.1
    samples *= np.exp(-decay * np.arange(len(samples)) / rate)
    item = Item(name, kind, f"{kind}/{name}.wav", 0, rate, speakers=speaker, **fields)
    return write(folder, item, samples)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Speech of three speakers (long, short, of another rate), two noises, a room."""
    folder = tmp_path_factory.mktemp("corpus")
    return {
        "speech": [
            recording(folder, "a1", "speech", 1.5, 1, ("a",)),
            recording(folder, "a2", "speech", 0.2, 2, ("a",), gain_db=-20.0),
            recording(folder, "b1", "speech", 1.0, 3, ("b",), rate=11025),
            recording(folder, "c1", "speech", 0.5, 4, ("c",)),
        ],
        "noise": [
            recording(folder, "rain", "noise", 0.8, 5, gain_db=30.0),
            recording(folder, "wind", "noise", 0.3, 6),
        ],
        "room": [recording(folder, "hall", "room", 0.4, 7, decay=20.0)],
    }


def mixtures(corpus, n_per_epoch=100, **changes):
    config = override(SMALL, **changes)
    return Mixtures(corpus["speech"], corpus["noise"], corpus["room"], config, n_per_epoch)


@settings(max_examples=40, deadline=None)
@given(
    snr=st.floats(-30, 40),
    level=st.floats(-60, 0),
    key=st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
    p_room=st.sampled_from([0.0, 1.0]),
    n_sources=st.integers(1, 2),
    short=st.sampled_from(["pad", "repeat"]),
)
def test_snr_asked_is_snr_measured(corpus, snr, level, key, n_sources, **drawn):
    """And the level, where full scale leaves room for it; sources with a room included."""
    drawn |= {"snr_db": (snr, snr), "level_db": (level, level), "speeds": (0.9, 1.0, 1.1)}
    mixture = mixtures(corpus, n_sources=n_sources, **drawn).mixture(*key)
    speech = mixture.speech.sum(0, keepdim=True)  # (1, T)
    assert level_db(speech) - level_db(mixture.noise) == pytest.approx(snr, abs=0.1)
    assert level_db(speech) - level_db(mixture.noisy - speech) == pytest.approx(snr, abs=0.1)
    highest = max(part.abs().max() for part in mixture[:2])
    assert highest <= SMALL.peak + 1e-6
    if highest < SMALL.peak - 1e-3:  # full scale leaves room for the level
        assert level_db(mixture.noisy) == pytest.approx(level, abs=0.1)
    assert level_db(mixture.noisy) < level + 0.1
    assert mixture.noisy.shape == (1, 4000) and mixture.clean.shape == (n_sources, 4000)
    assert {part.dtype for part in mixture[:4]} == {torch.float32}


def test_drawn_values_fill_their_ranges(corpus):
    examples = mixtures(corpus, snr_db=(-5, 25), n_snr_levels=31, level_db=(-35, -25))
    drawn = [examples.mixture(0, 0, index) for index in range(300)]
    asked = {round(mixture.snr_db, 6) for mixture in drawn}
    assert asked <= set(map(float, range(-5, 26))) and len(asked) > 20
    levels = [level_db(mixture.noisy) for mixture in drawn]
    assert -35.1 < min(levels) < -34 and -26 < max(levels) < -24.9
    assert {name for mixture in drawn for name in mixture.recordings} == {
        *("a1", "a2", "b1", "c1", "rain", "wind")
    }


@pytest.mark.parametrize("n_sources", [1, 2])
def test_an_example_is_a_function_of_its_key(corpus, n_sources):
    """Whatever was made before; no global generator is drawn from or set."""
    examples = mixtures(corpus, n_sources=n_sources, p_room=0.5, speeds=(0.9, 1.0))
    keys = [(1, 0, 3), (1, 1, 3), (2, 0, 3), (1, 0, 4)]
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = {key: examples.example(*key) for key in keys}
    again = {key: examples.example(*key) for key in reversed(keys)}
    fresh = mixtures(corpus, n_sources=n_sources, p_room=0.5, speeds=(0.9, 1.0))
    for key in keys:
        for other in (again[key], fresh.example(*key)):
            assert all(map(torch.equal, first[key], other))
    assert len({first[key].noisy.numpy().tobytes() for key in keys}) == len(keys)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    with pytest.raises(ValueError, match="32 bits"):
        examples.example(2**32, 0, 0)


def test_two_sources_are_two_speakers_and_the_mixture_their_sum(corpus):
    examples = Mixtures(corpus["speech"], [], [], override(SMALL, n_sources=2), 100)
    speakers = {source.item.name: source.item.speakers for source in corpus["speech"]}
    seen = set()
    for index in range(60):
        mixture = examples.mixture(0, 0, index)
        assert torch.equal(mixture.noisy[0], mixture.clean[0] + mixture.clean[1])
        one, two = mixture.recordings
        assert speakers[one] != speakers[two]
        seen.add((one, two))
        levels = [level_db(source[source != 0]) for source in mixture.clean]  # without padding
        assert -0.01 < levels[1] - levels[0] < 5.01
        assert math.isnan(mixture.snr_db)
    assert len(seen) == 10  # every pair of two speakers: 12 less a1-a2 and a2-a1
    with pytest.raises(UserError, match="n_sources=2 needs speech of two speakers"):
        Mixtures(corpus["speech"][:2], [], [], override(SMALL, n_sources=2), 100)


def test_the_reference_in_a_room(tmp_path, corpus):
    """A direct path, an early and a late echo: the reference has the early one, or both."""
    impulse = np.zeros(2000)
    impulse[[100, 300, 1100]] = 0.5, 0.25, -0.25  # 25 ms and 125 ms after the direct path
    room = write(tmp_path, Item("echo", "room", "echo.wav", 0, RATE), impulse)
    found = {}
    for reference in ("early", "reverberant"):
        config = override(SMALL, p_room=1.0, reference=reference)
        found[reference] = Mixtures(corpus["speech"], corpus["noise"], [room], config, 9)
    for index in range(9):
        early, late = (found[key].mixture(0, 0, index) for key in ("early", "reverberant"))
        assert torch.equal(late.clean, late.speech) and torch.equal(early.noisy, late.noisy)
        missing = (early.speech - early.clean)[0]
        direct = early.clean[0].clone()  # undo the early echo: x[n] = y[n] - x[n - 200] / 2
        for begin in range(200, 4000, 200):
            direct[begin : begin + 200] -= direct[begin - 200 : begin] / 2
        if early.recordings[0] == "c1":  # it begins with its file, no echo comes from before
            assert torch.allclose(missing[1000:], -direct[:-1000] / 2, atol=1e-5)
            assert missing[:1000].abs().max() < 1e-6
            assert direct[:80].std() > direct.std() / 2  # speech is where it was without the room
    with pytest.raises(UserError, match="p_room"):
        Mixtures(corpus["speech"], corpus["noise"], [], override(SMALL, p_room=0.5), 9)


def test_echoes_of_what_was_said_before_the_crop(tmp_path, corpus):
    """A segment from a room is a segment of the whole recording in the room."""
    impulse = np.zeros(2000)
    impulse[[0, 1900]] = 1.0, 0.5
    room = write(tmp_path, Item("echo", "room", "echo.wav", 0, RATE), impulse)
    config = override(SMALL, p_room=1.0, reference="reverberant", segment_s=0.25)
    speech = corpus["speech"][:1]
    samples, _ = soundfile.read(speech[0].folder / speech[0].item.path)
    whole = np.convolve(samples, impulse)
    examples = Mixtures(speech, corpus["noise"], [room], config, 9)
    for index in range(9):
        image = examples.example(0, 0, index).clean[0].double().numpy()
        spectrum = np.correlate(whole, image, "valid")
        begin = int(np.argmax(spectrum))
        gain = spectrum[begin] / np.square(whole[begin : begin + 2000]).sum()
        assert np.abs(image - gain * whole[begin : begin + 2000]).max() < 1e-5


def test_silence_is_drawn_again(tmp_path, corpus):
    """Noise is never scaled to the level of nothing."""
    samples = np.zeros(10 * RATE)
    samples[: 2 * RATE] = 0.1 * np.random.default_rng(0).normal(size=2 * RATE)
    speech = write(tmp_path, Item("s", "speech", "s.wav", 0, RATE), samples)
    examples = Mixtures([speech], corpus["noise"], [], SMALL, 50)
    for index in range(50):
        assert examples.example(0, 0, index).clean.abs().max() > 1e-4
    silent = write(tmp_path, Item("t", "speech", "t.wav", 0, RATE), np.zeros(RATE))
    with pytest.raises(UserError, match=r"t\.wav.*silence_db"):
        Mixtures([silent], corpus["noise"], [], SMALL, 50).example(0, 0, 0)


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "no sound": lambda path: path.write_bytes(b"no sound at all" * 10),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:9000]),
    "not finite": lambda path: soundfile.write(path, np.full(RATE, np.nan), RATE, subtype="FLOAT"),
    "another rate": lambda path: soundfile.write(path, np.full(RATE, 0.1), 2 * RATE),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_broken_file_is_one_line(tmp_path, corpus, damage):
    source = recording(tmp_path, "x", "speech", 1.0, 1)
    damage(tmp_path / source.item.path)
    with pytest.raises(UserError, match=r"x\.wav.*prepare") as error:
        Mixtures([source], corpus["noise"], [], SMALL, 5).example(0, 0, 0)
    assert "\n" not in str(error.value)


def pair(folder, name, seconds, seed, n_sources=1, rate=RATE):
    rng = np.random.default_rng(seed)
    clean = 0.1 * rng.normal(size=(n_sources, round(seconds * rate)))
    paths = tuple(f"{name}_{k}.wav" for k in range(n_sources))
    item = Item(name, "mixture", f"{name}.wav", 0, rate, paths)
    for path, samples in zip(item.sources, clean, strict=True):
        soundfile.write(folder / path, samples, rate, subtype="FLOAT")
    noisy = clean.sum(0) + np.arange(clean.shape[1]) * 1e-6  # what is left tells the position
    return write(folder, item, noisy)


@pytest.mark.parametrize("short", ["pad", "repeat"])
def test_pairs_are_cropped_together(tmp_path, short):
    sources = [pair(tmp_path, "long", 1.0, 1, 2), pair(tmp_path, "short", 0.2, 2, 2)]
    examples = Pairs(sources, PairConfig(segment_s=0.5, sample_rate=RATE, short=short))
    assert (len(examples), examples.n_sources, examples.sample_rate) == (2, 2, RATE)
    begins = set()
    for epoch in range(20):
        noisy, clean = examples.example(0, epoch, 0)
        assert noisy.shape == (1, 4000) and clean.shape == (2, 4000)
        ramp = (noisy[0] - clean.sum(0)) * 1e6
        assert (ramp.diff() - 1).abs().max() < 0.2
        begins.add(round(float(ramp[0])))
        assert all(map(torch.equal, (noisy, clean), examples.example(0, epoch, 0)))
    assert len(begins) > 10 and max(begins) <= 4000
    noisy, clean = examples.example(0, 0, 1)
    once = slice(0, 1600)
    if short == "pad":
        assert not noisy[0, 1600:].any() and not clean[:, 1600:].any()
    else:
        assert torch.equal(noisy[0, 1600:3200], noisy[0, once])
        assert torch.equal(clean[:, 3200:], clean[:, :800])
    assert noisy[0, once].any()


def test_whole_pairs_for_scoring(tmp_path):
    sources = [pair(tmp_path, "one", 0.5, 1), pair(tmp_path, "two", 0.25, 2)]
    found = list(mixing.whole_pairs(sources, 2 * RATE))
    assert [name for name, *_ in found] == ["one", "two"]
    assert [tuple(noisy.shape) for _, noisy, _ in found] == [(1, 8000), (1, 4000)]
    (_, noisy, clean), *_ = mixing.whole_pairs(sources, RATE)
    samples, _ = soundfile.read(tmp_path / "one.wav", dtype="float32")
    assert torch.equal(noisy[0], torch.from_numpy(samples)) and clean.shape == (1, 4000)


def test_pairs_that_do_not_belong_together(tmp_path):
    one, two = pair(tmp_path, "one", 0.5, 1), pair(tmp_path, "two", 0.5, 2, 2)
    config = PairConfig(segment_s=0.2, sample_rate=RATE)
    with pytest.raises(UserError, match="two has 2 sources"):
        Pairs([one, two], config)
    with pytest.raises(UserError, match="no mixtures"):
        Pairs([], config)
    soundfile.write(tmp_path / "one_0.wav", np.full(3999, 0.1), RATE)
    with pytest.raises(UserError, match=r"one_0\.wav.*3999"):
        Pairs([one], config).example(0, 0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_sources": 3},
        {"snr_db": (5.0, -5.0)},
        {"level_db": (0.0, -5.0)},
        {"segment_s": 0.0},
        {"speeds": ()},
        {"speeds": (0.0,)},
        {"p_room": 1.5},
        {"n_snr_levels": 1},
        {"peak": 0.0},
    ],
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        override(SMALL, **wrong)


def test_mixtures_need_speech_and_noise(corpus):
    with pytest.raises(UserError, match="no speech"):
        Mixtures([], corpus["noise"], [], SMALL, 10)
    with pytest.raises(UserError, match="no noise"):
        Mixtures(corpus["speech"], [], [], SMALL, 10)


def shared_sources(shared, kind):
    with (shared / "audio/manifest.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["set"] == f"{kind}_train"]
    for row in rows[::40]:
        path, n_frames = row["path"], soundfile.info(shared / "audio" / row["path"]).frames
        about = {"speakers": (row["speaker"],), "gain_db": -float(row["gain_db"])}
        item = Item(path, kind, path, n_frames, int(row["sample_rate"]), **about)
        yield Source(shared / "audio", item)


def test_real_speech_in_real_noise(shared):
    speech, noise = (list(shared_sources(shared, kind)) for kind in ("speech", "noise"))
    examples = Mixtures(speech, noise, [], MixtureConfig(segment_s=2.0, speeds=(0.95, 1.0)), 10)
    for index in range(10):
        mixture = examples.mixture(0, 0, index)
        measured = level_db(mixture.clean) - level_db(mixture.noisy - mixture.clean)
        assert measured == pytest.approx(mixture.snr_db, abs=0.1)
        assert all(map(torch.equal, examples.example(0, 0, index), mixture[:2]))
