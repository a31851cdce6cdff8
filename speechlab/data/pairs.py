"""Whether a noisy file and its clean file belong together, as numbers and as words.

`measure` compares two signals: lag of the cross-correlation, SNR, correlation, level. `outliers`
names the pairs of a list that look wrong. `check_scale` refuses what cannot be used.

The limits were set on the 974 pairs of the DNS-2020 (no_reverb) and VoiceBank-DEMAND test sets, of
which none is an outlier, and on the same files delayed, inverted, swapped and paired wrongly.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from speechlab.errors import UserError, shown

CUT_MS = 10.0  # longest difference of two lengths that is cut
FULL_SCALE_MOST = 2.0  # peak from which samples are taken for another scale
LONGEST_S = 60.0  # of a longer pair the loudest part of the clean file is compared
LAG_MS = 0.06  # from here on a lag is named: one sample at 16 kHz
RELATED = 0.4  # correlation above which two signals belong together, at any prominence
PROMINENT = 3.0  # cross-correlation at the lag over its next peak; of wrong pairs 1 to 2.7
APART_S = 0.02  # a next peak is at least this far from the lag
EQUAL_DB = 90.0  # SNR from which two 16-bit files are one
GAIN_DB = 4.0  # level of the clean speech in the noisy file, in dB from its level in the clean file
PAUSE_DB = -1.0  # a noisy file has louder pauses than its clean file: 0.4 dB and more
FRAME_S = 0.02
SNR_APART_DB = 25.0  # from the median of the list
DEAD_DB = -60.0  # a channel's level, from that of the loudest
CANCELLED_DB = -10.0  # energy of the mean of the channels, from the mean of their energies
N_NAMED = 8  # in a message


@dataclass(frozen=True)
class Pair:
    """A noisy signal compared with its clean signal; NaN where one of them is silent."""

    lag_ms: float  # of the noisy signal behind the clean one
    snr_db: float  # of the clean part of the noisy signal over the rest, at that lag
    correlation: float  # at that lag, -1 to 1; negative: inverted polarity
    prominence: float  # of the cross-correlation at that lag over its next peak
    gain_db: float  # level of the clean part of the noisy signal, over the clean signal
    pause_db: float  # how much louder the noisy signal is in pauses, over in loud speech
    peak: float  # the largest absolute sample of both
    silent: tuple[str, ...] = ()  # of "noisy", "clean"


def measure(noisy: np.ndarray, clean: np.ndarray, sample_rate: int) -> Pair:
    """Compare two signals (T,) of the same length; ValueError for other shapes.

    The means are removed. Of signals longer than LONGEST_S one part is compared.
    """
    noisy, clean = (np.asarray(x, dtype=np.float64) for x in (noisy, clean))
    if noisy.ndim != 1 or noisy.shape != clean.shape or not len(noisy):
        raise ValueError(f"shapes {noisy.shape} and {clean.shape} are not (T,) and (T,), T > 0")
    peak = float(max(np.abs(noisy).max(), np.abs(clean).max()))
    both = {"noisy": noisy, "clean": clean}
    silent = tuple(name for name, signal in both.items() if not np.ptp(signal))
    if silent:
        return Pair(*[float("nan")] * 6, peak, silent)
    part = _loudest(clean, round(LONGEST_S * sample_rate))
    noisy, clean = (_centred(x[part]) for x in (noisy, clean))
    lag, prominence = _lag(noisy, clean, sample_rate)
    shifted = noisy[max(0, lag) :], clean[max(0, -lag) :]
    n = min(map(len, shifted))
    correlation, gain = _fit(shifted[0][:n], shifted[1][:n])
    return Pair(
        lag_ms=1000 * lag / sample_rate,
        snr_db=_snr_db(correlation),
        correlation=correlation,
        prominence=prominence,
        gain_db=_db(gain**2),
        pause_db=_pause_db(shifted[0][:n], shifted[1][:n], round(FRAME_S * sample_rate)),
        peak=peak,
    )


def faults(pair: Pair, kind: str = "noisy", clean: str = "clean") -> list[str]:
    """What looks wrong in one pair, in words.

    kind, clean: names of the two; an "estimate" may have any level and quiet pauses
    """
    if pair.silent:
        return [f"{kind if name == 'noisy' else clean} is silent" for name in pair.silent]
    if abs(pair.correlation) < RELATED and pair.prominence < PROMINENT:
        return [f"{kind} and {clean} do not belong together (correlation {pair.correlation:.2f})"]
    found = []
    if pair.snr_db >= EQUAL_DB:
        found.append(f"{kind} and {clean} are the same signal")
    if pair.correlation < 0:
        found.append(f"the polarity of {kind} is inverted")
    if abs(pair.lag_ms) >= LAG_MS:
        where = "behind" if pair.lag_ms > 0 else "ahead of"
        found.append(f"{kind} is {abs(pair.lag_ms):.2f} ms {where} {clean}")
    if kind != "estimate" and pair.pause_db < PAUSE_DB:
        found.append(f"{kind} and {clean} look swapped ({clean} has the louder pauses)")
    elif kind != "estimate" and abs(pair.gain_db) > GAIN_DB:
        found.append(f"the speech in {kind} has {pair.gain_db:+.1f} dB of its level in {clean}")
    return found


def outliers(pairs: Mapping[str, Pair]) -> dict[str, str]:
    """The pairs of a list that look wrong, by name: `faults`, or an SNR that is `far`."""
    apart = far({name: pair.snr_db for name, pair in pairs.items()})
    found = {}
    for name, pair in pairs.items():
        reasons = faults(pair) or ([apart[name]] if name in apart else [])
        if reasons:
            found[name] = "; ".join(reasons)
    return found


def far(snrs: Mapping[str, float]) -> dict[str, str]:
    """The SNRs in dB of a list that are far from its median, by name, in words."""
    known = [snr for snr in snrs.values() if np.isfinite(snr)]
    median = float(np.median(known)) if known else float("nan")
    return {
        name: f"SNR {snr:.1f} dB, the median is {median:.1f} dB"
        for name, snr in snrs.items()
        if abs(snr - median) > SNR_APART_DB
    }


def told(found: Mapping[str, str], n: int, what: str = "pairs look wrong") -> str:
    """`outliers` among n as one line of bounded length, the first by name; "" if there are none."""
    if not found:
        return ""
    first = [f"{shown(name, 80)}: {reason}" for name, reason in [*found.items()][:N_NAMED]]
    more = f" | and {len(found) - N_NAMED} more" if len(found) > N_NAMED else ""
    return f"{len(found)} of {n} {what}: {' | '.join(first)}{more}"


def check_scale(samples: np.ndarray, name: str) -> int:
    """Number of samples beyond full scale, 1. UserError from about twice full scale on."""
    beyond = np.abs(samples)
    check_peak(float(beyond.max(initial=0.0)), name)
    return int(np.count_nonzero(beyond > 1))


def check_peak(peak: float, name: str) -> None:
    """UserError for a largest absolute sample of about twice full scale or more."""
    if peak >= FULL_SCALE_MOST:
        raise UserError(
            f"{name}: its peak is {peak:.4g} times full scale; divide the samples by 32768 if they "
            "are 16-bit numbers, or else by their peak, noisy and clean by the same number"
        )


def channel_faults(waveform: np.ndarray) -> list[str]:
    """Channels of (C, T) whose mean is not the signal: silent ones, and ones that cancel."""
    waveform = np.asarray(waveform, dtype=np.float64)
    return faults_of_products(waveform @ waveform.T)


def faults_of_products(products: np.ndarray) -> list[str]:
    """`channel_faults` of the inner products of all channels (C, C), summed over blocks."""
    energy = np.diag(products)
    if len(energy) < 2 or not energy.any():
        return []
    quiet = energy < energy.max() * 10 ** (DEAD_DB / 10)
    found = [f"channel {n} of {len(energy)} is silent" for n in 1 + np.flatnonzero(quiet)]
    mean = products[~quiet][:, ~quiet].mean()  # energy of the mean of the channels
    if mean < energy[~quiet].mean() * 10 ** (CANCELLED_DB / 10):
        found.append(f"the {len(energy)} channels cancel each other")
    return found


def _loudest(signal: np.ndarray, length: int) -> slice:
    """The part of this length with the most energy; a shorter signal is one part."""
    if len(signal) <= length:
        return slice(None)
    total = np.cumsum(np.square(signal))
    start = int(np.argmax(total[length:] - total[:-length]))
    return slice(start, start + length)


def _lag(noisy: np.ndarray, clean: np.ndarray, sample_rate: int) -> tuple[int, float]:
    """Samples that the noisy signal is behind, and the prominence of this peak.

    Of the cross-correlation with a half-whitened spectrum: in 5 to -20 dB of noise its peak is at
    the lag, and stands out more than with the plain or the fully whitened spectrum.
    """
    length = next_fast_len(2 * len(clean), real=True)
    cross = rfft(noisy, length) * rfft(clean, length).conj()
    cross /= np.sqrt(np.abs(cross) + 1e-12 * np.abs(cross).max())
    found = np.abs(irfft(cross, length))
    at = int(found.argmax())
    apart = max(1, round(APART_S * sample_rate))
    others = np.roll(found, -at)[apart:-apart]
    prominence = float(found[at] / others.max()) if others.any() else float("inf")
    return (at if at < length // 2 else at - length), prominence


def _fit(noisy: np.ndarray, clean: np.ndarray) -> tuple[float, float]:
    """Correlation of two signals, and the gain of the clean signal in the noisy one."""
    both, energy = float(noisy @ clean), float(clean @ clean)
    norm = np.sqrt(energy * float(noisy @ noisy))
    return (both / norm, both / energy) if norm > 0 else (0.0, 0.0)


def _pause_db(noisy: np.ndarray, clean: np.ndarray, frame: int) -> float:
    """Noisy over clean in dB: median of the quietest third of frames, less the loudest tenth's.

    A gain of either signal has no effect.
    """
    n_frames = len(clean) // frame
    if n_frames < 10:
        return 0.0
    levels = []
    for signal in (noisy, clean):
        power = np.square(signal[: n_frames * frame]).reshape(n_frames, frame).mean(1)
        levels.append(10 * np.log10(power / np.square(signal).max() + 1e-9))
    order, excess = np.argsort(levels[0] + levels[1]), levels[0] - levels[1]
    quiet, loud = order[: n_frames // 3], order[-n_frames // 10 :]
    return float(np.median(excess[quiet]) - np.median(excess[loud]))


def _snr_db(correlation: float) -> float:
    return _db(correlation**2) - _db(max(0.0, 1 - correlation**2))


def _db(power: float) -> float:
    return float(10 * np.log10(power)) if power > 0 else float("-inf")


def _centred(signal: np.ndarray) -> np.ndarray:
    return signal - signal.mean()
