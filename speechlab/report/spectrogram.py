"""Spectrograms for figures: levels in dB, magnitudes and phases over time and frequency.

A table has frequencies in Hz as index and seconds as columns. `spectrogram_db` analyses a waveform
with librosa: a 32 ms window, and no more frames than a figure has pixels. The other tables show the
bins and frames of a model's front end. Arrays are NumPy's, or PyTorch's on the CPU.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from speechlab.audio.spectrum import FrontEnd, Spectrum

WINDOW_S = 0.032
FRAMES_MAX = 1000  # about as many columns as a figure has pixels
PHASES_S, PHASES_HZ = 0.3, 1500.0  # length and highest frequency of an excerpt of phases
FLOOR = 1e-12  # power that counts as silence: -120 dB


def spectrogram_db(waveform: ArrayLike, sample_rate: int) -> pd.DataFrame:
    """(C, T) at sample_rate Hz -> levels in dB, channels averaged; a full-scale sine has 0 dB."""
    import librosa

    waveform = np.asarray(waveform)
    n_samples = waveform.shape[1]
    n_fft = 2 * max(1, round(WINDOW_S * sample_rate / 2))
    hop_length = max(1, n_fft // 4, n_samples // FRAMES_MAX)
    waveform = librosa.util.fix_length(waveform, size=max(n_fft, n_samples))
    spec = librosa.stft(waveform, n_fft=n_fft, hop_length=hop_length) * 4 / n_fft  # (C, F, L)
    power = np.square(np.abs(spec)).mean(0)  # (F, L)
    level = librosa.power_to_db(power, amin=FLOOR, top_db=None)
    return _table(level, sample_rate, n_fft, hop_length)


def as_table(values: ArrayLike, front_end: "FrontEnd", sample_rate: int) -> pd.DataFrame:
    """Magnitudes or phases (F, L) of a front end as a table."""
    return _table(np.asarray(values), sample_rate, front_end.n_fft, front_end.hop_length)


def _table(values: np.ndarray, sample_rate: int, n_fft: int, hop_length: int) -> pd.DataFrame:
    import librosa

    hertz = librosa.fft_frequencies(sr=sample_rate, n_fft=n_fft)
    seconds = librosa.times_like(values, sr=sample_rate, hop_length=hop_length)
    return pd.DataFrame(values, hertz, seconds)


def is_loud(reference: "Spectrum", front_end: "FrontEnd", span_db: float = 40.0) -> np.ndarray:
    """Bins at most span_db below the loudest one, (F, L): quieter bins have no reliable phase."""
    mag = np.asarray(reference.mag)
    return mag > max(FLOOR, mag.max()) * 10 ** (-span_db / 20 * front_end.compress)


def loudest_phases(
    spectra: Mapping[str, "Spectrum"],
    reference: "Spectrum",
    front_end: "FrontEnd",
    sample_rate: int,
) -> dict[str, pd.DataFrame]:
    """Phases around the loudest frame of the reference; NaN where the reference is quiet.

    From frame to frame the phase of a steady tone turns by its frequency times the hop, which hides
    everything else. The turn of each bin's centre frequency is removed.

    spectra: title -> spectrum.
    reference: the clean spectrum.
    """
    quiet = ~is_loud(reference, front_end)
    bins, frames = np.ogrid[: quiet.shape[0], : quiet.shape[1]]
    turn = 2 * math.pi * bins * frames * front_end.hop_length / front_end.n_fft
    loudest = np.asarray(reference.mag).sum(0).argmax()
    begin = max(0.0, loudest * front_end.hop_length / sample_rate - PHASES_S / 2)
    tables = {}
    for name, spectrum in spectra.items():
        phase = np.where(quiet, np.nan, _wrapped(np.asarray(spectrum.phase) - turn))
        table = as_table(phase, front_end, sample_rate)
        tables[name] = table.loc[:PHASES_HZ, begin : begin + PHASES_S]
    return tables


def phase_errors(
    spectra: Mapping[str, "Spectrum"], reference: "Spectrum", front_end: "FrontEnd"
) -> pd.DataFrame:
    """Signed distance to the reference's phase round the circle, -pi to pi: a column each.

    A row per bin where the reference is loud.
    """
    loud = is_loud(reference, front_end)
    phase = np.asarray(reference.phase)
    errors = {
        name: _wrapped(np.asarray(spectrum.phase) - phase)[loud]
        for name, spectrum in spectra.items()
    }
    return pd.DataFrame(errors)


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return np.angle(np.exp(1j * angle))
