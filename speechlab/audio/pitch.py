"""The pitch of a talker: the median of the fundamental frequency over voiced frames.

By the autocorrelation of windowed frames over that of the window (Boersma 1993): of its peaks the
first that is nearly as high as the highest, so that a period is not taken for two. To describe
data; a figure that hangs on single frames needs a better tracker.
"""

import numpy as np

RANGE_HZ = (60.0, 400.0)
FRAME_S, HOP_S = 0.05, 0.01  # three periods of the lowest pitch
VOICED = 0.5  # least autocorrelation of a voiced frame, 1 at no lag
NEARLY = 0.9  # of the highest peak
SOFT_DB = -30.0  # re the loudest frame; softer ones are left out


def median_pitch(signal: np.ndarray, sample_rate: int) -> float:
    """Hz, of a signal (T,) of one talker; NaN where no frame is voiced."""
    length, hop = round(FRAME_S * sample_rate), round(HOP_S * sample_rate)
    if len(signal) < length:
        return float("nan")
    frames = np.lib.stride_tricks.sliding_window_view(signal, length)[::hop].astype(np.float64)
    frames = frames - frames.mean(-1, keepdims=True)
    power = np.square(frames).mean(-1)
    frames = frames[power > max(power.max() * 10 ** (SOFT_DB / 10), 1e-20)]
    pitches = [_pitch(row, sample_rate) for row in _autocorrelation(frames)]
    return float(np.median(heard)) if (heard := [p for p in pitches if p]) else float("nan")


def semitones(one: float, other: float) -> float:
    """Between two pitches in Hz, 0 or more; an octave is 12."""
    return abs(12 * float(np.log2(one / other)))


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    """(L, n) -> (L, n // 2), 1 at no lag; the window's part taken out."""
    n = frames.shape[-1]
    window = np.hanning(n)

    def raw(x: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft(x, 2 * n)
        found = np.fft.irfft(np.abs(spectrum) ** 2)[..., : n // 2]
        return found / found[..., :1]

    return raw(frames * window) / raw(window)


def _pitch(correlation: np.ndarray, sample_rate: int) -> float:
    """Of one frame, Hz; 0 where it is not voiced."""
    low, high = (sample_rate / hz for hz in reversed(RANGE_HZ))
    lags = np.arange(max(1, int(np.ceil(low))), min(int(high), len(correlation) - 2) + 1)
    here, before, after = (correlation[lags + step] for step in (0, -1, 1))
    is_peak = (here >= before) & (here > after) & (here >= VOICED)
    if not is_peak.any():
        return 0.0
    first = np.flatnonzero(is_peak & (here >= NEARLY * here[is_peak].max()))[0]
    return sample_rate / lags[first]
