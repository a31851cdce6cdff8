"""Composite measures of Hu and Loizou (2008, doi 10.1109/TASL.2007.911054) and their distances.

Computes the same as the evaluation scripts of the published enhancement systems (Loizou's
`composite.m` with wide-band instead of narrow-band PESQ), with the same frame count, trimming and
floors, because the published numbers depend on them. Frames are 30 ms with a hop of a quarter,
under a Hann window without its zeros; the last frame is left out.

The floors are absolute, so the scale of the samples matters. `scale` multiplies float samples (full
scale 1): 1 for scripts that read files as floats, 32768 for those that read 16-bit integers.
"""

from collections.abc import Iterator

import numpy as np

FRAME_S = 0.03  # seconds
KEPT = 0.95  # share of frames in LLR and WSS: the worst 5 % are dropped
SSNR_RANGE = (-10.0, 35.0)  # dB, each frame is limited to it
BLOCK = 4096  # frames at a time, which bounds memory on long files

# Critical bands of WSS (Klatt 1982): centre and width in Hz.
BAND_CENTRES = (
    50, 120, 190, 260, 330, 400, 470, 540, 617.372, 703.378, 798.717, 904.128, 1020.38,
    1148.30, 1288.72, 1442.54, 1610.70, 1794.16, 1993.93, 2211.08, 2446.71, 2701.97, 2978.04,
    3276.17, 3597.63,
)  # fmt: skip
BAND_WIDTHS = (
    70, 70, 70, 70, 70, 70, 70, 77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914,
    140.423, 153.823, 168.154, 183.457, 199.776, 217.153, 235.631, 255.255, 276.072, 298.126,
    321.465, 346.136,
)  # fmt: skip


class MetricError(ValueError):
    """A metric is not defined for these signals; the message is the reason."""


def csig(pesq: float, llr: float, wss: float) -> float:
    """Predicted rating of signal distortion, 1 to 5, higher is better."""
    return _rating(3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss)


def cbak(pesq: float, wss: float, ssnr: float) -> float:
    """Predicted rating of background intrusiveness, 1 to 5, higher is better."""
    return _rating(1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * ssnr)


def covl(pesq: float, llr: float, wss: float) -> float:
    """Predicted overall rating, 1 to 5, higher is better."""
    return _rating(1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss)


def llr(estimate: np.ndarray, reference: np.ndarray, sample_rate: int) -> float:
    """Log-likelihood ratio of the linear predictors, trimmed mean of frames; >= 0, lower is better.

    Independent of the scale. A frame with digital silence in either signal has no predictor. Such
    frames are trimmed first as the worst ones; the rest of them are left out. That is CleanUMamba's
    rule; in CMGAN's script more than 5 % of them give the lowest rating.
    """
    order = 16 if sample_rate >= 10000 else 10
    lags = np.abs(np.arange(order + 1)[:, None] - np.arange(order + 1))
    values = []
    for ours, theirs in _frames(estimate, reference, sample_rate):
        correlation = _autocorrelation(theirs, order)  # (L, order + 1)
        matrix = correlation[:, lags]  # (L, order + 1, order + 1)
        error, least = (
            np.einsum("li,lij,lj->l", a, matrix, a, optimize=True)
            for a in (_predictor(_autocorrelation(ours, order)), _predictor(correlation))
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            values.append(np.log(error / least))
    return _trimmed_mean(np.concatenate(values), "LLR")


def wss(estimate: np.ndarray, reference: np.ndarray, sample_rate: int, scale: float = 1.0) -> float:
    """Weighted spectral slope distance (Klatt 1982), trimmed mean of frames; >= 0, lower is better.

    The scripts divide by 32768 in both cases, so that on floats the floor of 1e-10 hides quiet
    bands.
    """
    n_fft = 2 ** int(np.ceil(np.log2(2 * round(FRAME_S * sample_rate))))
    bands = _critical_bands(sample_rate, n_fft)
    gain = scale / 32768
    values = []
    for ours, theirs in _frames(estimate, reference, sample_rate):
        ours_db, theirs_db = (_band_levels(x * gain, bands, n_fft) for x in (ours, theirs))
        weight = _slope_weights(ours_db) + _slope_weights(theirs_db)  # (L, 24)
        difference = np.diff(ours_db) - np.diff(theirs_db)
        values.append((weight * difference**2).sum(1) / weight.sum(1))
    return _trimmed_mean(np.concatenate(values), "WSS")


def ssnr(
    estimate: np.ndarray, reference: np.ndarray, sample_rate: int, scale: float = 1.0
) -> float:
    """Segmental SNR in dB, mean over frames limited to -10..35 each, higher is better.

    A frame in which the reference is silent counts as -10, as in the scripts.
    """
    epsilon = np.spacing(1.0)
    values = []
    for ours, theirs in _frames(estimate, reference, sample_rate):
        signal = np.sum((theirs * scale) ** 2, axis=1)
        noise = np.sum(((theirs - ours) * scale) ** 2, axis=1)
        values.append(10 * np.log10(signal / (noise + epsilon) + epsilon))
    return float(np.clip(np.concatenate(values), *SSNR_RANGE).mean())


def _rating(value: float) -> float:
    return float(np.clip(value, 1.0, 5.0))


def _trimmed_mean(values: np.ndarray, name: str) -> float:
    kept = np.sort(values)[: round(len(values) * KEPT)]  # NaN sorts last
    if not len(kept):
        raise MetricError("too short: less than two frames of 30 ms")
    kept = kept[~np.isnan(kept)]
    if not np.isfinite(kept).all() or not len(kept):
        undefined = int(np.sum(~np.isfinite(values)))
        raise MetricError(f"{name} is undefined in {undefined} of {len(values)} frames (silence)")
    return float(kept.mean())


def _frames(
    estimate: np.ndarray, reference: np.ndarray, sample_rate: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windowed frames of both signals, (L, win_length) each, a block at a time."""
    win_length = round(FRAME_S * sample_rate)
    hop_length = win_length // 4
    n_frames = (len(reference) - win_length) // hop_length
    if n_frames < 1:
        raise MetricError("too short: less than two frames of 30 ms")
    window = np.hanning(win_length + 2)[1:-1]
    views = [
        np.lib.stride_tricks.sliding_window_view(x, win_length)[::hop_length][:n_frames]
        for x in (estimate, reference)
    ]
    for start in range(0, n_frames, BLOCK):
        ours, theirs = (view[start : start + BLOCK] * window for view in views)
        yield ours, theirs


def _autocorrelation(frames: np.ndarray, order: int) -> np.ndarray:
    """(L, win_length) -> (L, order + 1): lags 0..order."""
    n = frames.shape[1]
    return np.stack(
        [np.einsum("lt,lt->l", frames[:, : n - lag], frames[:, lag:]) for lag in range(order + 1)],
        axis=1,
    )


def _predictor(correlation: np.ndarray) -> np.ndarray:
    """Levinson-Durbin on all frames: (L, order + 1) -> prediction error filters of the same shape.

    The first tap is 1. A silent frame gives NaN, which the mean leaves out.
    """
    taps = np.zeros_like(correlation)
    taps[:, 0] = 1.0
    error = correlation[:, 0].copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        for order in range(1, correlation.shape[1]):
            reflection = -np.sum(taps[:, :order] * correlation[:, order:0:-1], axis=1) / error
            taps[:, : order + 1] += reflection[:, None] * taps[:, order::-1]
            error *= 1 - reflection**2
    return taps


def _critical_bands(sample_rate: int, n_fft: int) -> np.ndarray:
    """Gaussian filters on the bins below Nyquist, cut below -30 dB: (25, n_fft / 2)."""
    per_hz = n_fft / sample_rate  # bins
    centre = np.floor(np.array(BAND_CENTRES) * per_hz)[:, None]
    width = np.array(BAND_WIDTHS)[:, None]
    distance = (np.arange(n_fft // 2) - centre) / (width * per_hz)
    gain = np.exp(-11 * distance**2) * BAND_WIDTHS[0] / width
    return np.where(gain > np.exp(-30 / (2 * 2.303)), gain, 0.0)


def _band_levels(frames: np.ndarray, bands: np.ndarray, n_fft: int) -> np.ndarray:
    """(L, win_length) -> level of each critical band in dB, (L, 25)."""
    power = np.abs(np.fft.rfft(frames, n_fft)[:, : n_fft // 2]) ** 2
    return 10 * np.log10(np.maximum(power @ bands.T, 1e-10))


def _slope_weights(level: np.ndarray) -> np.ndarray:
    """Klatt's weights of the slopes between bands, (L, 25) -> (L, 24): 1 at peaks, less in valleys.

    The peak of a band is searched along its rising slope. On the way up the scripts stop one band
    before the peak, on the way down they take the peak: the published numbers depend on it.
    """
    n_slopes = level.shape[1] - 1
    rising = np.diff(level) > 0
    band = np.arange(n_slopes)
    next_fall = np.where(rising, n_slopes, band)
    next_fall = np.minimum.accumulate(next_fall[:, ::-1], axis=1)[:, ::-1]
    last_rise = np.maximum.accumulate(np.where(rising, band, -1), axis=1)
    peak = np.take_along_axis(level, np.where(rising, next_fall - 1, last_rise + 1), axis=1)
    here = level[:, :-1]
    return 20 / (20 + level.max(1, keepdims=True) - here) / (1 + peak - here)
