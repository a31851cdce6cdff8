"""The robust level of `enhance` and of streams: offsets, bangs, soft input, glitches."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import speechlab
from speechlab.audio import files
from speechlab.errors import UserError
from speechlab.evaluation.metrics import METRICS
from speechlab.inference.enhance import enhance_blocks
from speechlab.inference.stream import LEVELS, Stream
from speechlab.models.cleanumamba import CleanUMamba
from tests.audio.test_robust import bang, joined, sound
from tests.support.commands import enhancer

RATE = 16000
WEIGHTS = "upstream_checkpoints/cleanumamba/CleanUMamba-3N-E8_pruned-200K.pkl"
PAIRS = "audio/pairs/voicebank_demand_train"  # a dev set


def enhanced(model, x, level="robust", size=7000):
    return joined(*enhance_blocks(model, list(x.split(size, -1)), level=level))


def streamed(model, x, level, sizes):
    stream = Stream(model, "modules", level)
    parts = [stream.feed(chunk[:, None]) for chunk in x.split(sizes, -1)]
    return torch.cat([*parts, stream.flush()], -1)[:, 0]


def stoi(estimate, clean):
    return METRICS["stoi"](estimate.numpy(), clean.numpy(), RATE)


@pytest.fixture(scope="module")
def pair(shared):
    name = "p226_001.flac"
    return [files.load(shared / PAIRS / side / name)[0] for side in ("noisy", "clean")]


def test_an_ordinary_file_is_enhanced_as_published():
    x, model = sound(2.0), enhancer()
    assert torch.equal(enhanced(model, x), enhanced(model, x, "published"))


@pytest.mark.parametrize("offset", [0.05, -0.5])
def test_an_offset_changes_nothing_and_comes_back(offset):
    x, model = sound(3.0), enhancer()
    difference = enhanced(model, x + offset) - offset - enhanced(model, x)
    assert difference.abs().max() < 1e-3


@settings(deadline=None, max_examples=5)
@given(cuts=st.lists(st.integers(1, 7999), max_size=6, unique=True))
def test_a_stream_has_the_samples_of_the_file(cuts):
    """Offset and glitch included, with high-pass and guarded level in both."""
    x, model = torch.cat([sound(0.5), sound(0.5, seed=1)]) + 0.05, enhancer("running")
    x[:, 3000:3500] *= 1e4
    sizes = [b - a for a, b in itertools.pairwise([0, *sorted(cuts), 8000])]
    whole = enhanced(model, x)
    assert (streamed(model, x, "robust", sizes) - whole).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize("cut", [1, 4000, 30000])
def test_prefix_law(cut):
    x, model = sound(3.0) + 0.02, enhancer("running")
    x[:, 10000:11000] *= 100
    settled = cut - model.look_ahead
    whole, part = (streamed(model, y, "robust", 4000) for y in (x, x[:, :cut]))
    assert settled < 1 or (whole[:, :settled] - part[:, :settled]).abs().max() < 1e-5


def test_without_a_glitch_a_guarded_stream_is_the_published_one():
    x, model = sound(4.0), enhancer("running")
    guarded, published = (streamed(model, x, level, 3000) for level in ("guarded", "published"))
    assert (guarded - published).abs().max() < 1e-6


@pytest.mark.parametrize("level", ["guarded", "robust"])
@pytest.mark.parametrize("gain", [10.0, 100.0, 1e8])
@pytest.mark.parametrize("seconds", [0.001, 0.1])
def test_a_second_after_a_glitch_the_level_is_right(level, gain, seconds):
    x = sound(6.0)
    glitch = x.clone()
    begin, end = 2 * RATE, round((2 + seconds) * RATE)
    glitch[:, begin:end] *= gain
    found = []
    for signal in (x, glitch):
        stream = Stream(enhancer("running"), "modules", level)
        stream.feed(signal[:, None, : end + RATE])
        found.append(stream.level.step(x[:, None, :480], RATE, stream._level_state)[0][..., -1])
    assert abs(20 * torch.log10(found[1] / found[0]).item()) < 1.0


def test_a_stream_with_published_weights_recovers_from_a_glitch(shared, pair):
    model = speechlab.load(shared / WEIGHTS, normalize="running")
    x = joined(*[pair[0]] * 3)[:, : 5 * RATE]
    glitch = x.clone()
    glitch[:, RATE : RATE + RATE // 10] *= 1e8
    parts = [streamed(model, y, "guarded", RATE)[:, round(2.1 * RATE) :] for y in (x, glitch)]
    error = (parts[0] - parts[1]).square().mean() / parts[0].square().mean()
    assert error < 10**-1.5  # 15 dB below


def test_a_bang_before_quiet_speech_does_not_erase_it(shared, pair):
    model = speechlab.load(shared / WEIGHTS)
    noisy, clean = (0.01 * x for x in pair)
    x = joined(torch.zeros(1, 4000), bang(0.1), torch.zeros(1, 4000), noisy)
    found = {
        level: stoi(enhanced(model, x, level)[0, 9600:], clean[0])
        for level in ("robust", "published")
    }
    assert found["robust"] > max(found["published"] + 0.1, stoi(noisy[0], clean[0]))


def test_quiet_input_is_enhanced_as_loud_input(shared, pair):
    model, (noisy, clean) = speechlab.load(shared / WEIGHTS), pair
    usual = stoi(enhanced(model, noisy)[0], clean[0])
    for dbfs in (-70, -90):
        soft = 10 ** (dbfs / 20) / noisy.std() * noisy
        assert stoi(enhanced(model, soft)[0], clean[0]) > usual - 0.01
    assert stoi(enhanced(model, soft, "published")[0], clean[0]) < usual - 0.1


def test_a_wrong_chunk_or_a_failing_model_leaves_the_stream_usable(monkeypatch):
    x, model = sound(1.0)[:, None], enhancer("running")
    wrong = [(y, r"is \(B, 1, n\)") for y in (x[0], x[..., :0], x[:0], x.expand(1, 2, -1))]
    wrong += [(y, r"a chunk is torch\.float32 on cpu") for y in (x.double(), x.short())]
    wrong += [(y, "NaN or infinite") for y in (x / 0, torch.nan * x)]
    wrong += [(y, "is a torch.Tensor") for y in (x.numpy(), None, [0.0])]
    wrong += [(x.expand(2, -1, -1), "began with B = 1")]
    for level in LEVELS:
        stream = Stream(model, "modules", level)
        parts = [stream.feed(x[..., :5000])]
        for chunk, said in wrong:
            with pytest.raises(UserError, match=said) as error:
                stream.feed(chunk)
            assert "\n" not in str(error.value)
        with monkeypatch.context() as patch:
            patch.setattr(CleanUMamba, "network", lambda *_: (x * float("nan"), None))
            with pytest.raises(UserError, match="NaN or infinite samples"):
                stream.feed(x)
        parts += [stream.feed(x[..., 5000:]), stream.flush()]
        whole = streamed(model, x[:, 0], level, 16000)
        assert (torch.cat(parts, -1)[:, 0] - whole).abs().max() < 1e-5
