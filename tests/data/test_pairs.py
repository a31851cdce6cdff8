"""Pairs that do not belong together are named, each kind by its own words."""

import numpy as np
import pytest
import soundfile

from speechlab.data import pairs
from speechlab.errors import UserError

RATE = 16000
SET = "audio/pairs/voicebank_demand_train"


def speech(seed, n=2 * RATE):
    """Noise in bursts with pauses, like syllables."""
    rng = np.random.default_rng(seed)
    tide = np.repeat(rng.uniform(size=n // 3200 + 1) > 0.4, 3200)[:n]
    return 0.1 * np.convolve(rng.standard_normal(n), [1, 1.6, 0.8], "same") * tide


def pair(seed, snr_db=5.0):
    clean, noise = speech(seed), np.random.default_rng(seed + 100).standard_normal(2 * RATE)
    return clean + noise * clean.std() * 10 ** (-snr_db / 20), clean


def later(signal, n):
    return np.concatenate([np.zeros(n), signal])[: len(signal)]


@pytest.mark.parametrize("snr_db", [20, 0, -10, -15])
def test_a_pair_has_no_fault_and_its_snr(snr_db):
    noisy, clean = pair(0, snr_db)
    found = pairs.measure(noisy, clean, RATE)
    assert pairs.faults(found) == [] and found.lag_ms == 0
    assert found.snr_db == pytest.approx(snr_db, abs=0.5)
    assert found.gain_db == pytest.approx(0, abs=1) and 0 < found.correlation < 1


@pytest.mark.parametrize("snr_db", [20, 0, -10])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda noisy, clean, other: (later(noisy, 80), clean), "5.00 ms behind clean"),
        (lambda noisy, clean, other: (noisy, later(clean, 1)), "0.06 ms ahead of clean"),
        (lambda noisy, clean, other: (later(noisy, 8000), clean), "500.00 ms behind clean"),
        (lambda noisy, clean, other: (-noisy, clean), "polarity of noisy is inverted"),
        (lambda noisy, clean, other: (noisy, other), "do not belong together"),
        (lambda noisy, clean, other: (clean, noisy), "swapped"),
        (lambda noisy, clean, other: (0.3 * clean, 5 * noisy), "swapped"),
        (lambda noisy, clean, other: (noisy, clean / 2), "dB of its level in clean"),
        (lambda noisy, clean, other: (noisy, noisy), "the same signal"),
        (lambda noisy, clean, other: (noisy, 0 * clean + 0.1), "clean is silent"),
        (lambda noisy, clean, other: (0 * noisy, clean), "noisy is silent"),
    ],
)
def test_each_fault_is_named(snr_db, change, words):
    signals = change(*pair(0, snr_db), speech(1))
    assert words in "; ".join(pairs.faults(pairs.measure(*signals, RATE)))


def test_an_estimate_may_have_any_level_and_quiet_pauses():
    noisy, clean = pair(0)
    found = pairs.measure(0.1 * clean**3, noisy, RATE)
    assert pairs.faults(found, "estimate") == []
    late = pairs.measure(later(clean, 80), clean, RATE)
    assert "estimate is 5.00 ms behind clean" in pairs.faults(late, "estimate")


def test_the_loudest_part_of_a_long_pair_is_compared(monkeypatch):
    monkeypatch.setattr(pairs, "LONGEST_S", 1.0)
    noisy, clean = (np.concatenate([np.zeros(5 * RATE), x, np.zeros(RATE)]) for x in pair(0))
    assert pairs.measure(later(noisy, 80), clean, RATE).lag_ms == 5


def test_outliers_of_a_list_are_named_and_counted():
    of = {f"p{i}": pairs.measure(*pair(i), RATE) for i in range(12)}
    assert pairs.outliers(of) == {} and pairs.told({}, 12) == ""
    noisy, clean = pair(20)
    of["late\n"] = pairs.measure(later(noisy, 80), clean, RATE)
    of["loud"] = pairs.measure(*pair(21, 40), RATE)
    found = pairs.outliers(of)
    assert list(found) == ["late\n", "loud"] and "the median is 5." in found["loud"]
    line = pairs.told(found, 14)
    assert line.startswith(r"2 of 14 pairs look wrong: late\n: noisy is 5.00 ms behind")
    assert pairs.told(dict.fromkeys(map(str, range(99)), "x"), 99).endswith("| and 91 more")


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="not"):
        pairs.measure(np.ones(3), np.ones(4), RATE)


def test_samples_beyond_full_scale_are_counted_and_another_scale_refused():
    signal = np.array([0.5, -1.0, 1.0, 1.01, -1.9])
    assert pairs.check_scale(signal, "a.wav") == 2
    for gain in (1.1, 32768):
        with pytest.raises(UserError, match=r"a\.wav: its peak is .* times full scale; divide"):
            pairs.check_scale(gain * signal, "a.wav")


def test_channels_that_are_silent_or_cancel_are_named():
    voice = speech(0)
    assert pairs.channel_faults(np.stack([voice, voice])) == []
    assert pairs.channel_faults(np.stack([voice, speech(1)])) == []
    assert pairs.channel_faults(voice[None]) == pairs.channel_faults(np.zeros((2, 9))) == []
    dead = pairs.channel_faults(np.stack([voice, 0 * voice, voice]))
    assert dead == ["channel 2 of 3 is silent"]
    assert pairs.channel_faults(np.stack([voice, -voice])) == ["the 2 channels cancel each other"]


def test_real_pairs_have_no_fault(shared):
    of = {}
    for path in sorted((shared / SET / "noisy").iterdir()):
        files = path, shared / SET / "clean" / path.name
        of[path.stem] = pairs.measure(*(soundfile.read(file)[0] for file in files), RATE)
    assert len(of) == 13 and pairs.outliers(of) == {}
