"""Laws of the prepared file: exact offsets; one bang, silence or softness does not set a level."""

import pytest
import torch

from speechlab.audio.level import FLOOR, LEVELS
from speechlab.audio.offset import PIECE_S
from speechlab.audio.robust import Prepared, Softened, Survey
from tests.support.signals import noise

RATE = 16000


def sound(seconds=4.0, level=0.05, seed=0, offset=0.0):
    """Bursts of half a second with pauses of 0.2 s at a tenth, about as speech."""
    n = round(seconds * RATE)
    pause = torch.arange(n) % round(0.7 * RATE) >= RATE // 2
    return level * noise(1, n, seed=seed) * torch.where(pause, 0.1, 1.0) + offset


def surveyed(x, size=9973):
    return Survey.of(x.split(size, -1), RATE)


def rms(x):
    return x.double().square().mean().sqrt().item()


def bang(seconds=0.2, peak=1.0):
    return peak * noise(1, round(seconds * RATE), seed=9).clamp(-1, 1)


def joined(*parts):
    return torch.cat(parts, -1)


@pytest.mark.parametrize("name", ["utterance", "rms"])
@pytest.mark.parametrize("level", [0.02, 0.3])
@pytest.mark.parametrize("seconds", [0.01, 0.3, 1.0, 9.0])
def test_an_ordinary_signal_stays_as_it_is(name, level, seconds):
    survey = surveyed(sound(seconds, level))
    assert survey.level(name) is None and survey.gains.eq(1).all()
    assert seconds < 1 or survey.offset is None  # of a few samples the mean is not negligible


@pytest.mark.parametrize("name", ["utterance", "rms"])
@pytest.mark.parametrize("gap", [torch.zeros(1, 3200), 1e-4 * noise(1, 3200)])
@pytest.mark.parametrize("length", [0.02, 0.1, 0.4])
def test_one_bang_does_not_set_the_level(name, gap, length):
    soft = sound(4.0, 0.003)
    x = joined(gap, bang(length), gap, soft)
    survey = surveyed(x)
    found = survey.level(name).item()
    own = rms(soft) * (1.1 if name == "utterance" else 1)
    assert found == pytest.approx(own, rel=0.2)
    softened = Softened(x.split(997, -1), survey.gains, survey.length)
    assert joined(*softened).abs().max() <= 1.01 * soft.abs().max()
    assert torch.equal(joined(*softened)[:, -RATE:], x[:, -RATE:])
    again = joined(*softened.restored(block[:, None] for block in softened))[:, 0]
    torch.testing.assert_close(again, x, rtol=1e-6, atol=0)


def test_bangs_over_hours_do_not_set_the_level():
    minute = joined(*[joined(bang(), sound(4.0, 0.003, seed=i)) for i in range(5)])
    assert surveyed(minute).level("rms").item() == pytest.approx(rms(sound(4.0, 0.003)), rel=0.25)


@pytest.mark.parametrize("around", [0.0, 1e-4])
def test_long_silence_does_not_lower_the_level(around):
    x = joined(around * noise(1, 30 * RATE), sound(4.0))
    assert surveyed(x).level("rms").item() == pytest.approx(rms(sound(4.0)), rel=0.15)


@pytest.mark.parametrize("dbfs", [-50, -70, -90, -120])
def test_the_floor_shrinks_with_soft_input(dbfs):
    x = sound(3.0, 10 ** (dbfs / 20))
    assert surveyed(x).level("utterance").item() == pytest.approx(1.1 * x.std().item(), rel=0.01)


def test_at_the_limit_of_soft_input_both_levels_agree():
    x = sound(3.0, 1.0)
    x = x * (9.9 * FLOOR / x.std())
    published = LEVELS["utterance"].of_blocks([x])
    assert surveyed(x).level("utterance").item() == pytest.approx(published.item(), rel=0.01)


def test_one_word_in_a_second_of_noise_is_no_bang():
    word = joined(1e-3 * noise(1, 5000), sound(0.3, 0.2), 1e-3 * noise(1, 6000))
    assert surveyed(word).level("rms") is None


def prepared(x, name="utterance", size=9973):
    blocks, survey = x.split(size, -1), surveyed(x)
    return Prepared(blocks, survey.offset, survey.level(name))


@pytest.mark.parametrize("offset", [0.05, -0.5, 100.0])
@pytest.mark.parametrize("seconds", [0.5, 1.99, 7.3])
def test_the_mean_goes_out_and_comes_back(offset, seconds):
    x = sound(seconds).double()
    out = prepared(x + offset)
    centred = joined(*out)
    assert centred.mean().abs() < 5e-5 and (centred - x).abs().max() < 2e-3
    assert seconds > PIECE_S or centred.mean().abs() < 1e-12
    torch.testing.assert_close(joined(*out.restored(out)), x + offset, rtol=0, atol=1e-12)


def test_a_drifting_offset_goes_out():
    x, n = sound(60.0), 60 * RATE
    drift = torch.linspace(-0.1, 0.1, n) + 0.02 * torch.sin(torch.arange(n) / (5 * RATE))
    left = joined(*prepared(x + drift)) - x
    assert rms(left) < 0.03 * rms(x)


def test_a_jump_of_the_offset_is_gone_after_two_pieces():
    x = sound(30.0)
    jump = torch.where(torch.arange(30 * RATE) < 15 * RATE, 0.0, 0.05)
    left = joined(*prepared(x + jump)) - x
    assert rms(left[:, 20 * RATE :]) < 0.03 * rms(x) and rms(left[:, : 10 * RATE]) < 0.03 * rms(x)


def test_channels_have_their_own_offset_and_level():
    soft, loud = joined(bang(), sound(4.0, 0.003)), sound(4.2, 0.1, seed=1)
    out = prepared(torch.cat([soft, loud + 0.05]), "rms")
    assert not out.offset.offsets[0].any() and out.offset.offsets[1].min() > 0.04
    level = out.level.flatten().tolist()
    assert level == pytest.approx([rms(sound(4.0, 0.003)), rms(loud)], rel=0.2)


def test_silence_stays_silence_and_a_constant_becomes_silence():
    for x in (torch.zeros(2, 3 * RATE), torch.full((1, 3 * RATE), 0.25)):
        out = prepared(x)
        assert not joined(*out).any()
        assert torch.equal(joined(*out.restored(out)), x)


def test_any_block_lengths_give_the_same_survey():
    x = sound(2.3) + 0.01
    for size in (1, 479, 480, 481, len(x[0])):
        parts = x[:, :5000] if size == 1 else x
        same, other = surveyed(parts, size), surveyed(parts)
        torch.testing.assert_close(same.means, other.means, rtol=0, atol=1e-15)
        torch.testing.assert_close(same.variances, other.variances, rtol=0, atol=1e-15)
