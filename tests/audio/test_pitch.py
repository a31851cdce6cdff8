"""The pitch of pulses, of whatever overtones; and none of noise."""

import numpy as np
import pytest

from speechlab.audio.pitch import median_pitch, semitones

RATE = 8000  # Hz


def buzz(pitch, seconds=0.5, n_overtones=8):
    """A tone with overtones in falling strength."""
    time = np.arange(round(seconds * RATE)) / RATE
    return sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, n_overtones + 1))


@pytest.mark.parametrize("pitch", [70, 100, 155, 220, 350])
@pytest.mark.parametrize("n_overtones", [1, 8])
def test_the_pitch_of_a_buzz(pitch, n_overtones):
    found = median_pitch(buzz(pitch, n_overtones=n_overtones), RATE)
    assert found == pytest.approx(pitch, rel=0.03)


def test_level_and_pauses_do_not_matter():
    signal = np.concatenate([buzz(120), np.zeros(RATE), buzz(120)])
    assert median_pitch(1e-3 * signal, RATE) == median_pitch(signal, RATE)
    assert median_pitch(signal, RATE) == pytest.approx(120, rel=0.03)


def test_what_has_no_pitch():
    noise = np.random.default_rng(0).normal(size=RATE)
    for signal in (noise, np.zeros(RATE), np.zeros(10)):
        assert np.isnan(median_pitch(signal, RATE))


def test_an_octave_has_twelve_semitones():
    assert semitones(110, 220) == semitones(220, 110) == 12
    assert semitones(100, 100) == 0
