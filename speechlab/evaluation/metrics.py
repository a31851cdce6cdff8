"""Objective measures of an estimate against its clean reference, by the field's libraries.

Signals are 1-D, float, full scale at 1, of equal length. A measure that is not defined for its
input (silence, a short clip, an unknown rate) raises MetricError with the reason and returns no
substitute. Each variant has its own name, because published tables use different ones: `pesq_wb`
and `pesq_nb`, `si_sdr` (no mean removal) and `si_snr` (zero mean), `csig_float` and `csig_int16`
(samples as floats or as 16-bit integers).
"""

import importlib.metadata
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

import fast_bss_eval
import numpy as np
import pesq as pesq_package
import pystoi

from speechlab.evaluation import composite
from speechlab.evaluation.composite import MetricError

PACKAGES = ("pesq", "pystoi", "fast_bss_eval", "numpy", "scipy", "soundfile")
RESAMPLER = "soxr"  # for files of another rate than the one they are scored at
INT16 = 32768.0  # full scale in steps of 16-bit samples
SCALES = {"float": 1.0, "int16": INT16}
PESQ_PAUSES = 40  # utterances as counted here; PESQ itself may count some more
SDR_TAPS = 512  # BSS-eval v3: taps of the filter that the reference may pass

Scores = tuple[dict[str, float], dict[str, str]]  # values; reasons of those that are NaN
Cache = dict[str, float]  # intermediate values that metrics of one pair of signals share


def pesq_wb(
    estimate: np.ndarray, reference: np.ndarray, sample_rate: int, cache: Cache | None = None
) -> float:
    """Wide-band PESQ (ITU-T P.862.2, package `pesq`), MOS-LQO 1.0 to 4.64, higher is better.

    16 kHz only. The package divides both signals by their common peak: a common gain has no effect.
    """
    return _once(cache, "pesq_wb", lambda: _pesq(estimate, reference, sample_rate, "wb"))


def pesq_nb(estimate: np.ndarray, reference: np.ndarray, sample_rate: int) -> float:
    """Narrow-band PESQ (ITU-T P.862 and P.862.1, package `pesq`), MOS-LQO 1.0 to 4.55.

    Higher is better. 8 kHz or 16 kHz; a common gain has no effect, as in `pesq_wb`.
    """
    return _pesq(estimate, reference, sample_rate, "nb")


def stoi(estimate: np.ndarray, reference: np.ndarray, sample_rate: int) -> float:
    """Short-time objective intelligibility (Taal et al. 2011, package `pystoi`).

    About 0 to 1, no unit, higher is better.
    """
    return _stoi(estimate, reference, sample_rate, extended=False)


def estoi(estimate: np.ndarray, reference: np.ndarray, sample_rate: int) -> float:
    """Extended STOI (Jensen and Taal 2016, package `pystoi`), about 0 to 1, higher is better."""
    return _stoi(estimate, reference, sample_rate, extended=True)


def si_sdr(estimate: np.ndarray, reference: np.ndarray, sample_rate: int) -> float:
    """Scale-invariant SDR in dB (Le Roux et al. 2019, arXiv 1811.02508), higher is better.

    No mean is removed. Infinite where the estimate equals the reference times a constant to the
    last bit. The sample rate is not used.
    """
    estimate, reference = _audible(*_signals(estimate, reference))
    target = np.dot(estimate, reference) / np.dot(reference, reference) * reference
    return _ratio_db(np.dot(target, target), np.sum((estimate - target) ** 2))


def si_snr(estimate: np.ndarray, reference: np.ndarray, sample_rate: int) -> float:
    """SI-SDR in dB without the signals' means (Luo and Mesgarani 2019), higher is better."""
    estimate, reference = (_centred(x) for x in _signals(estimate, reference))
    return si_sdr(estimate, reference, sample_rate)


def sdr(estimate: np.ndarray, reference: np.ndarray, sample_rate: int) -> float:
    """BSS-eval SDR in dB (Vincent et al. 2006, package `fast_bss_eval`), higher is better.

    A filter of 512 taps on the reference costs nothing. For one source it equals mir_eval's
    `bss_eval_sources`. The sample rate is not used.
    """
    estimate, reference = _audible(*_signals(estimate, reference))
    if len(reference) <= SDR_TAPS:
        raise MetricError(f"too short: {SDR_TAPS} taps fit anything")
    try:
        with np.errstate(divide="ignore"):  # a perfect estimate is infinite
            loss = fast_bss_eval.sdr_loss(
                estimate[None], reference[None], filter_length=SDR_TAPS, pairwise=True
            )
    except np.linalg.LinAlgError as error:
        raise MetricError(f"the reference has no unique {SDR_TAPS}-tap filter") from error
    return -float(loss[0, 0])


def rating(
    estimate: np.ndarray,
    reference: np.ndarray,
    sample_rate: int,
    name: str,
    scale: str = "float",
    cache: Cache | None = None,
) -> float:
    """Composite measure (Hu and Loizou 2008), 1 to 5, higher is better. 16 kHz only.

    name: csig (signal distortion), cbak (intrusive background) or covl (overall quality)
    scale: in SCALES
    """
    quality = pesq_wb(estimate, reference, sample_rate, cache)
    signals = (*_signals(estimate, reference), sample_rate)
    if name == "cbak":
        level = composite.ssnr(*signals, SCALES[scale])
    else:
        llr = _once(cache, "llr", lambda: composite.llr(*signals))
    wss = _once(cache, f"wss_{scale}", lambda: composite.wss(*signals, SCALES[scale]))
    if name == "cbak":
        return composite.cbak(quality, wss, level)
    return {"csig": composite.csig, "covl": composite.covl}[name](quality, llr, wss)


def ssnr(estimate: np.ndarray, reference: np.ndarray, sample_rate: int) -> float:
    """Segmental SNR in dB on float samples (Hu and Loizou 2008), -10 to 35, higher is better."""
    return composite.ssnr(*_signals(estimate, reference), sample_rate)


METRICS: dict[str, Callable[..., float]] = {
    "pesq_wb": pesq_wb,
    "pesq_nb": pesq_nb,
    "stoi": stoi,
    "estoi": estoi,
    "si_sdr": si_sdr,
    "si_snr": si_snr,
    "sdr": sdr,
    **{
        f"{name}_{scale}": partial(rating, name=name, scale=scale)
        for scale in SCALES
        for name in ("csig", "cbak", "covl")
    },
    "ssnr": ssnr,
}
SHARING = ("pesq_wb", *(name for name in METRICS if name[:4] in ("csig", "cbak", "covl")))
RATES = {"pesq_nb": (8000, 16000)} | dict.fromkeys(SHARING, (16000,))  # Hz; others: any


def defined_at(name: str, sample_rate: int) -> bool:
    """Whether a metric can have a value at this rate."""
    return name not in RATES or sample_rate in RATES[name]


def score(
    estimate: np.ndarray, reference: np.ndarray, sample_rate: int, names: Iterable[str] = METRICS
) -> Scores:
    """Values of several metrics of one pair of signals, and the reasons of those that are NaN.

    Common intermediate values are computed once. An infinite value becomes NaN: it cannot be
    averaged.
    """
    cache: Cache = {}
    values, reasons = {}, {}
    for name in names:
        shared = {"cache": cache} if name in SHARING else {}
        try:
            values[name] = METRICS[name](estimate, reference, sample_rate, **shared)
            if not np.isfinite(values[name]):
                raise MetricError(f"{values[name]} cannot be averaged")
        except MetricError as error:
            values[name], reasons[name] = float("nan"), str(error)
    return values, reasons


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of the packages that the numbers depend on."""
    return {package: _version(package) for package in packages}


_version = lru_cache(importlib.metadata.version)  # reads files


def truncated(estimate: np.ndarray) -> np.ndarray:
    """To 16 bits as the published CleanUMamba tables do: full scale is 32767, towards zero.

    Beyond full scale samples are clipped; the published cast wraps around (3 of 150 DNS clips).
    """
    return np.trunc(np.clip(estimate, -1, 1) * 32767) / INT16


def rounded(samples: np.ndarray) -> np.ndarray:
    """To the steps of 16 bits; samples of a 16-bit file do not change.

    Samples beyond full scale are not clipped: a float file may have them.
    """
    steps = np.rint(samples * INT16)
    return np.where(np.abs(samples) > 1, steps, np.minimum(steps, INT16 - 1)) / INT16


def _once(cache: Cache | None, key: str, compute: Callable[[], float]) -> float:
    if cache is None:
        return compute()
    if key not in cache:
        cache[key] = compute()
    return cache[key]


def _signals(estimate: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64. MetricError for shapes or samples that no metric can use."""
    estimate, reference = (np.asarray(x, dtype=np.float64) for x in (estimate, reference))
    if estimate.ndim != 1 or estimate.shape != reference.shape:
        raise MetricError(f"shapes {estimate.shape} and {reference.shape} are not (T,) and (T,)")
    if not len(reference):
        raise MetricError("no samples")
    for name, signal in (("estimate", estimate), ("reference", reference)):
        if not np.isfinite(signal).all():
            raise MetricError(f"the {name} holds NaN or infinite samples")
    return estimate, reference


def _audible(estimate: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for name, signal in (("reference", reference), ("estimate", estimate)):
        if not np.dot(signal, signal) > 0:
            raise MetricError(f"the {name} is silent")
    return estimate, reference


def _centred(signal: np.ndarray) -> np.ndarray:
    """The signal without its mean; a constant becomes exact silence, without rounding errors."""
    return signal - signal.mean() if np.ptp(signal) > 0 else np.zeros_like(signal)


def _ratio_db(signal: float, noise: float) -> float:
    if signal == 0:
        raise MetricError("the estimate holds nothing of the reference")
    return float(10 * np.log10(signal / noise)) if noise > 0 else float("inf")


def _pesq(estimate: np.ndarray, reference: np.ndarray, sample_rate: int, mode: str) -> float:
    estimate, reference = _audible(*_signals(estimate, reference))
    rates = (16000,) if mode == "wb" else (8000, 16000)
    if sample_rate not in rates:
        known = " and ".join(map(str, rates))
        raise MetricError(f"PESQ {mode} is defined at {known} Hz, not at {sample_rate} Hz")
    if _pauses(reference, sample_rate) > PESQ_PAUSES:
        raise MetricError("too many utterances for PESQ (its table ends at 50): cut the clip")
    try:
        return float(pesq_package.pesq(sample_rate, reference, estimate, mode))
    except pesq_package.PesqError as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise MetricError(reason.decode() if isinstance(reason, bytes) else str(reason)) from error


def _pauses(reference: np.ndarray, sample_rate: int) -> int:
    """The most utterances that PESQ could find at any threshold; 0 for clips of less than 19.8 s.

    The package does not check its table of 50: more utterances give a wrong value or crash the
    process. Its utterances last 50 frames of 4 ms or more, with more than 50 frames between them,
    so that 50 of them last at least 19.8 s.
    """
    frame, least = sample_rate // 250, 50
    if len(reference) < 99 * least * frame:
        return 0
    n_frames = len(reference) // frame
    power = np.square(reference[: n_frames * frame]).reshape(n_frames, frame).mean(1)
    level = 10 * np.log10(np.maximum(power / power.max(), 1e-12))  # dB below the loudest frame
    most = 0
    for threshold in range(-60, 0):
        active = np.flatnonzero(level > threshold)
        runs = np.split(active, np.flatnonzero(np.diff(active) > least) + 1)
        most = max(most, sum(run[-1] - run[0] >= least - 1 for run in runs))
    return most


def _stoi(estimate: np.ndarray, reference: np.ndarray, sample_rate: int, extended: bool) -> float:
    """pystoi; MetricError where it warns of too little speech.

    ESTOI adds a trace of noise from NumPy's global generator. The generator is seeded here, so that
    a file always has the same value, and restored.
    """
    estimate, reference = _audible(*_signals(estimate, reference))
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
            return float(pystoi.stoi(reference, estimate, sample_rate, extended=extended))
    except (RuntimeWarning, ValueError, IndexError) as error:
        raise MetricError("too short: less than 0.4 s of speech") from error
    finally:
        np.random.set_state(state)  # noqa: NPY002
