"""Spectrograms to look at: levels in dB over time and frequency.

For eyes, not for models: a 32 ms window, and no more frames than a figure has room for.
"""

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from speechlab.stft import stft

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
