"""Composite measures against the published scripts' numbers, and the laws of the frame distances.

The frozen numbers were made with the published evaluation script (CMGAN's compute_metrics.py), fed
the same samples as floats and at int16 scale.
"""

import numpy as np
import pytest

from speechlab.evaluation import composite
from speechlab.evaluation.composite import MetricError
from tests.evaluation.conftest import read

DISTANCES = (composite.llr, composite.wss, composite.ssnr)
FROZEN = {  # (llr, wss, ssnr) on floats; wss at int16 scale
    "p232_001": ((0.2849663668844941, 14.977783150534552, 7.1634357283706676), 31.522888939582824),
    "p257_402": ((0.3270606812568067, 10.948360225277794, 2.0993135468855293), 28.476394253163214),
    16000: ((1.369385633644871, 7.009989588553054, 1.9513542796096968), 86.45107644720518),
    8000: ((1.0661665399562437, 2.189569758356621, 1.9346822418850393), 95.07760348275974),
}


def signals(sample_rate, seconds=1.0):
    """A gated chord with a trace of noise as the reference, and with more noise as the estimate."""
    t = np.arange(int(sample_rate * seconds)) / sample_rate
    gate = np.maximum(np.sin(2 * np.pi * 3 * t), 0)
    partials = (150, 450, 900, 1800, 3300)
    chord = sum(np.sin(2 * np.pi * f * t + f) / (1 + k) for k, f in enumerate(partials))
    noise = [np.random.default_rng(seed).standard_normal(len(t)) for seed in (0, 1)]
    reference = 0.2 * gate * chord + 1e-3 * noise[0]
    return reference + 0.02 * noise[1], reference


def check_frozen(estimate, reference, sample_rate, frozen):
    (llr, wss, ssnr), wss_int16 = frozen
    pair = estimate, reference, sample_rate
    assert composite.llr(*pair) == pytest.approx(llr, abs=1e-9)
    assert composite.wss(*pair) == pytest.approx(wss, abs=1e-9)
    assert composite.wss(*pair, scale=32768) == pytest.approx(wss_int16, abs=1e-9)
    assert composite.ssnr(*pair) == pytest.approx(ssnr, abs=1e-9)
    assert composite.ssnr(*pair, scale=32768) == pytest.approx(ssnr, abs=1e-9)


@pytest.mark.parametrize("sample_rate", [16000, 8000])
def test_script_numbers_on_a_synthetic_pair(sample_rate):
    check_frozen(*signals(sample_rate), sample_rate, FROZEN[sample_rate])


@pytest.mark.parametrize("name", ["p232_001", "p257_402"])
def test_script_numbers_on_real_pairs(shared, name):
    folder = shared / "audio/pairs/voicebank_demand_test"
    noisy, clean = (read(folder / part / f"{name}.flac") for part in ("noisy", "clean"))
    check_frozen(noisy, clean, 16000, FROZEN[name])


def test_blocks_change_nothing(monkeypatch):
    pair = *signals(16000), 16000
    whole = [distance(*pair) for distance in DISTANCES]
    monkeypatch.setattr(composite, "BLOCK", 7)
    blocks = [distance(*pair) for distance in DISTANCES]
    np.testing.assert_allclose(blocks, whole, rtol=1e-12)


def test_a_perfect_estimate():
    _, reference = signals(16000)
    assert composite.llr(reference, reference, 16000) == 0
    assert composite.wss(reference, reference, 16000) == 0
    assert composite.ssnr(reference, reference, 16000) == 35
    assert composite.csig(4.64, 0, 0) == composite.covl(4.64, 0, 0) == 5
    assert composite.cbak(4.64, 0, 35) == 5


def test_ratings_stay_between_1_and_5():
    assert composite.csig(1.0, 9.0, 500.0) == composite.covl(1.0, 9.0, 500.0) == 1
    assert composite.cbak(1.0, 500.0, -10.0) == 1
    assert composite.csig(2.0, 0.5, 30.0) == pytest.approx(3.093 - 0.5145 + 1.206 - 0.27)


def test_llr_knows_no_level_and_ssnr_does():
    estimate, reference = signals(16000)
    louder = composite.llr(3 * estimate, reference, 16000)
    assert louder == pytest.approx(composite.llr(estimate, reference, 16000), abs=1e-9)
    halved = composite.ssnr(0.5 * reference, reference, 16000)
    assert halved == pytest.approx(20 * np.log10(2), abs=1e-6)


def test_slope_weights_are_those_of_the_search_band_by_band():
    """The loop that the scripts run, on random levels with plateaus."""
    levels = np.round(np.random.default_rng(0).standard_normal((200, 25)) * 3)

    def searched(level):
        slope, peak = np.diff(level), []
        for band in range(24):
            n = band
            if slope[band] > 0:
                while n < 24 and slope[n] > 0:
                    n += 1
                peak.append(level[n - 1])
            else:
                while n >= 0 and slope[n] <= 0:
                    n -= 1
                peak.append(level[n + 1])
        here = level[:24]
        return 20 / (20 + level.max() - here) / (1 + np.array(peak) - here)

    expected = np.stack([searched(level) for level in levels])
    np.testing.assert_allclose(composite._slope_weights(levels), expected, rtol=1e-12)


def test_silent_frames_are_left_out_and_nothing_but_silence_is_an_error():
    """A pause of digital silence, short or long, changes LLR no more than leaving it out does."""
    estimate, reference = signals(16000, seconds=3.0)
    whole = composite.llr(estimate, reference, 16000)
    for n_silent in (960, 6000, 20000):
        paused = reference.copy()
        paused[20000 : 20000 + n_silent] = 0
        assert composite.llr(estimate, paused, 16000) == pytest.approx(whole, abs=0.15)
        assert np.isfinite(composite.wss(estimate, paused, 16000))
        assert np.isfinite(composite.ssnr(estimate, paused, 16000))
    with pytest.raises(MetricError, match="undefined in 396 of 396 frames"):
        composite.llr(estimate, 0 * reference, 16000)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("n_samples", [0, 3, 479, 599])
def test_too_short_is_an_error(distance, n_samples):
    signal = np.random.default_rng(0).standard_normal(n_samples)
    with pytest.raises(MetricError, match="too short"):
        distance(signal, signal, 16000)
    longer = np.random.default_rng(0).standard_normal(600)
    assert np.isfinite(composite.ssnr(longer, longer, 16000))
