"""Five kinds of noise, each a function of a random generator.

All return (T,) float64; `synthetic` sets the level. Arithmetic is float64 and rounded to 16 bits,
so that files do not depend on the processor.
"""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

# Power spectral density is proportional to frequency ** slope.
SLOPES = {"white": 0.0, "pink": -1.0, "brown": -2.0, "blue": 1.0}
LOWEST_HZ = 30.0  # coloured noise is flat below: inaudible
DECAY_DB = 60.0  # definition of a decay time


def coloured(random: Generator, n_frames: int, sample_rate: int, slope: float) -> np.ndarray:
    """Gaussian noise of a spectral slope; it continues seamlessly from its end to its start."""
    spec = np.fft.rfft(random.standard_normal(n_frames))
    hertz = np.maximum(np.fft.rfftfreq(n_frames, 1 / sample_rate), LOWEST_HZ)
    return np.fft.irfft(spec * hertz ** (slope / 2), n_frames)


def modulated(random: Generator, n_frames: int, sample_rate: int) -> np.ndarray:
    """Noise whose level changes independently in three bands, as wind and traffic do."""
    edges = np.sort(random.uniform(np.log(100.0), np.log(0.45 * sample_rate), 2))
    low, high = np.exp(edges)  # Hz
    hertz = np.fft.rfftfreq(n_frames, 1 / sample_rate)
    spec = np.fft.rfft(coloured(random, n_frames, sample_rate, random.uniform(-2.0, 0.0)))
    total = np.zeros(n_frames)
    for start, stop in ((0.0, low), (low, high), (high, np.inf)):
        band = np.fft.irfft(spec * ((hertz >= start) & (hertz < stop)), n_frames)
        swing_db = random.uniform(4.0, 9.0) * _slow(
            random, n_frames, sample_rate, random.uniform(0.4, 5.0)
        )
        total += band * 10 ** (swing_db / 20)
    return total


def impulsive(random: Generator, n_frames: int, sample_rate: int) -> np.ndarray:
    """Clicks (bursts of noise) and knocks (damped tones) at random times over a weak floor."""
    floor = coloured(random, n_frames, sample_rate, SLOPES["pink"])
    total = np.zeros(n_frames)
    per_second = random.uniform(2.0, 8.0)
    share_of_clicks = random.uniform(0.2, 0.8)
    for _ in range(max(1, random.poisson(per_second * n_frames / sample_rate))):
        event = _click if random.random() < share_of_clicks else _knock
        sound = event(random, sample_rate)
        # between equal peaks (clicks inaudible) and equal powers (clicks too loud)
        even = np.sqrt(np.abs(sound).max() * np.linalg.norm(sound))
        sound *= 10 ** (random.normal(0.0, 4.0) / 20) / even
        start = random.integers(n_frames)
        length = min(len(sound), n_frames - start)
        total[start : start + length] += sound[:length]
    return total + floor * rms(total) / rms(floor) * 10 ** (-25 / 20)


def hum(random: Generator, n_frames: int, sample_rate: int) -> np.ndarray:
    """Mains and its harmonics, in half of the cases also a motor, over a weak floor."""
    mains = random.choice([50.0, 60.0]) * random.uniform(0.998, 1.002)
    total = _harmonics(random, n_frames, sample_rate, mains)
    if random.random() < 0.5:
        motor = _harmonics(random, n_frames, sample_rate, random.uniform(90.0, 400.0))
        total += motor * random.uniform(0.2, 1.0) * rms(total) / rms(motor)
    floor = coloured(random, n_frames, sample_rate, SLOPES["pink"])
    return total + floor * rms(total) / rms(floor) * 10 ** (random.uniform(-30, -15) / 20)


def babble(random: Generator, talks: Sequence[np.ndarray], n_frames: int) -> np.ndarray:
    """Sum of speakers: each talk (T,) repeated from a random position, at -3 to 3 dB."""
    total = np.zeros(n_frames)
    for talk in talks:
        level_db = random.uniform(-3.0, 3.0)
        start = random.integers(len(talk))
        total += np.resize(np.roll(talk, -start), n_frames) * 10 ** (level_db / 20) / rms(talk)
    return total


def _slow(random: Generator, n_frames: int, sample_rate: int, fastest_hz: float) -> np.ndarray:
    """Gaussian of variance 1, low-pass at `fastest_hz`."""
    spec = np.fft.rfft(random.standard_normal(n_frames))
    hertz = np.fft.rfftfreq(n_frames, 1 / sample_rate)
    slow = np.fft.irfft(spec * np.exp(-((hertz / fastest_hz) ** 2)), n_frames)
    return slow / slow.std()


def _harmonics(random: Generator, n_frames: int, sample_rate: int, hertz: float) -> np.ndarray:
    """A tone and its harmonics up to 4 kHz, with random phases and slowly changing levels."""
    seconds = np.arange(n_frames) / sample_rate
    steepness = random.uniform(0.7, 1.8)
    total = np.zeros(n_frames)
    for number in range(1, max(2, int(min(4000.0, 0.45 * sample_rate) / hertz))):
        level = number**-steepness * 10 ** (random.normal(0.0, 6.0) / 20)
        phase = random.uniform(0.0, 2 * np.pi)
        total += level * np.sin(2 * np.pi * number * hertz * seconds + phase)
    return total * 10 ** (_slow(random, n_frames, sample_rate, 0.5) / 20)


def _click(random: Generator, sample_rate: int) -> np.ndarray:
    decay_s = random.uniform(0.005, 0.04)
    seconds = np.arange(round(decay_s * sample_rate)) / sample_rate
    return random.standard_normal(len(seconds)) * 10 ** (-DECAY_DB / 20 * seconds / decay_s)


def _knock(random: Generator, sample_rate: int) -> np.ndarray:
    decay_s = random.uniform(0.05, 0.3)
    seconds = np.arange(round(decay_s * sample_rate)) / sample_rate
    sound = np.zeros(len(seconds))
    for hertz in random.uniform(120.0, 2000.0, 4):
        faster = 1 + hertz / 500  # high partials die first
        decay = 10 ** (-DECAY_DB / 20 * faster * seconds / decay_s)
        sound += random.uniform(0.3, 1.0) * decay * np.sin(2 * np.pi * hertz * seconds)
    return sound


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))
