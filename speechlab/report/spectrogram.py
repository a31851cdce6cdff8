"""Spectrograms to look at: levels in dB over time and frequency.

For eyes, not for models: a 32 ms window, and no more frames than a figure has room for. The tables
of spectra are of what models see: their front end's bins and frames.
"""

import math
from collections.abc import Mapping

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from speechlab.audio.spectrum import FrontEnd, Spectrum
from speechlab.audio.stft import stft

WINDOW_S = 0.032
FRAMES_MAX = 1000  # about as many columns as a figure has pixels
FLOOR = 1e-12  # power that counts as silence: -120 dB


def spectrogram_db(waveform: Tensor, sample_rate: int) -> pd.DataFrame:
    """(C, T) at sample_rate Hz -> levels in dB, a sine of full scale at 0, channels averaged.

    Frequencies in Hz as index, seconds as columns.
    """
    n_fft = 2 * max(1, round(WINDOW_S * sample_rate / 2))
    hop_length = max(1, n_fft // 4, waveform.shape[1] // FRAMES_MAX)
    waveform = F.pad(waveform, (0, max(0, n_fft - waveform.shape[1])))  # a picture needs a width
    spec = stft(waveform, n_fft, hop_length, n_fft) * 4 / n_fft  # a sine has 1; (C, F, L)
    level = 10 * (spec.abs().square().mean(0) + FLOOR).log10()  # (F, L)
    hertz = torch.fft.rfftfreq(n_fft, 1 / sample_rate).numpy()
    seconds = torch.arange(level.shape[1]).numpy() * hop_length / sample_rate
    return pd.DataFrame(level.numpy(), hertz, seconds)


def as_table(values: Tensor, front_end: FrontEnd, sample_rate: int) -> pd.DataFrame:
    """Magnitudes or phases (F, L): frequencies in Hz as index, seconds as columns."""
    hertz = torch.arange(values.shape[0]).numpy() * sample_rate / front_end.n_fft
    seconds = torch.arange(values.shape[1]).numpy() * front_end.hop_length / sample_rate
    return pd.DataFrame(values.numpy(), hertz, seconds)


def is_loud(reference: Spectrum, front_end: FrontEnd, span_db: float = 40.0) -> Tensor:
    """Bins at most so far below the loudest one, (F, L): where there is energy there is a phase."""
    level = reference.mag / reference.mag.amax().clamp_min(FLOOR)
    return level > 10 ** (-span_db / 20 * front_end.compress)


def loudest_phases(
    spectra: Mapping[str, Spectrum],
    reference: Spectrum,
    front_end: FrontEnd,
    sample_rate: int,
    span_s: float = 0.3,
    hertz: float = 1500.0,
) -> dict[str, pd.DataFrame]:
    """Phases around the loudest frame of the reference, below `hertz`; NaN where it is not loud.

    A step from frame to frame turns the phase of a steady tone by its frequency times the hop,
    which hides all else. That turn of each bin's middle is taken out.
    """
    quiet = ~is_loud(reference, front_end)
    n_freqs, n_frames = quiet.shape
    bins, frames = torch.arange(n_freqs)[:, None], torch.arange(n_frames)
    turn = 2 * math.pi * bins * frames * front_end.hop_length / front_end.n_fft
    middle = reference.mag.sum(0).argmax() * front_end.hop_length / sample_rate
    begin = max(0.0, float(middle) - span_s / 2)
    tables = {}
    for name, spectrum in spectra.items():
        phase = _wrapped(spectrum.phase - turn).masked_fill(quiet, math.nan)
        table = as_table(phase, front_end, sample_rate)
        tables[name] = table.loc[:hertz, begin : begin + span_s]
    return tables


def phase_errors(
    spectra: Mapping[str, Spectrum], reference: Spectrum, front_end: FrontEnd
) -> pd.DataFrame:
    """Signed distance to the reference's phase the short way round, -pi to pi: a column each.

    A row per bin where the reference is loud: elsewhere there is nothing to hear.
    """
    loud = is_loud(reference, front_end)
    errors = {
        name: _wrapped(spectrum.phase - reference.phase)[loud].numpy()
        for name, spectrum in spectra.items()
    }
    return pd.DataFrame(errors)


def _wrapped(angle: Tensor) -> Tensor:
    return torch.atan2(angle.sin(), angle.cos())
