"""Measures of separated speech: S estimates against S sources, whose order is free.

The order is found once per mixture, by the best mean SI-SDR, and is used for every measure. A
speaker has all of `evaluation.metrics`, `sir`, and four improvements: the value of the estimate
minus that of the mixture against the same source. No measure depends on the gain of an estimate,
except `ssnr` and the composite measures.

A measure that is not defined is NaN with its reason. So is an infinite one, which cannot be
averaged: SI-SDR of an estimate that equals its source to the last bit, as in `evaluation.metrics`.

Measures that are undefined for every system are left out, not counted as failures (LEFT_OUT). A
silent source has no measure. Nor has a source that equals the mixture, alone and without noise: the
mixture's own score is infinite. It is left out of all measures, so that a measure and its
improvement are means over the same sources. One speaker in noise has all measures but SIR. Any
other failure makes the mean of a mixture NaN: the mean of the other speakers would be too high.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from fast_bss_eval.numpy.metrics import square_cosine_metrics

from speechlab.evaluation import metrics
from speechlab.evaluation.metrics import SDR_TAPS, Scores
from speechlab.losses.pit import best_permutation

IMPROVEMENTS = {"si_snri": "si_snr", "si_sdri": "si_sdr", "sdri": "sdr", "siri": "sir"}
METRICS = (*IMPROVEMENTS, "sir", *metrics.METRICS)
USUAL = (*IMPROVEMENTS, *IMPROVEMENTS.values(), "stoi", "estoi")  # of a table
PESQ = {8000: "pesq_nb", 16000: "pesq_wb"}  # of a table, at these rates in Hz
SILENT = "the source is silent"
ALONE = "the source is the mixture, nothing is to be separated"
NO_OTHER = "no other source is heard"  # of SIR
LEFT_OUT = (SILENT, ALONE, NO_OTHER)  # reasons that are no failure; rows on disk have them
SHARE_MIN = 1e-12  # of an energy: an order is resolved by SI-SDR of -120 to 120 dB


class Speaker(NamedTuple):
    """The scores of one source."""

    estimate: int | None  # index of this speaker's estimate; None where there is none
    values: dict[str, float]
    reasons: dict[str, str]  # of NaN among the values; {"all": SILENT}, {"all": ALONE}

    @property
    def is_left_out(self) -> bool:
        return self.reasons.get("all") in LEFT_OUT


def usual(sample_rate: int) -> tuple[str, ...]:
    """The metrics of a table: with narrow-band PESQ at 8 kHz, wide-band at 16 kHz, else none."""
    return (*USUAL, *([PESQ[sample_rate]] if sample_rate in PESQ else []))


def score(
    estimates: np.ndarray,
    sources: np.ndarray,
    mixture: np.ndarray,
    sample_rate: int,
    names: Iterable[str],
) -> list[Speaker]:
    """The speakers in the order of their sources. ValueError for other shapes.

    estimates (S, T) in any order, sources (S, T), mixture (T,); names: in METRICS
    """
    estimates, sources, mixture = (
        np.asarray(x, dtype=np.float64) for x in (estimates, sources, mixture)
    )
    if sources.ndim != 2 or not estimates.shape == sources.shape == (len(sources), len(mixture)):
        shapes = [x.shape for x in (estimates, sources, mixture)]
        raise ValueError(f"shapes {shapes} are not (S, T), (S, T) and (T,)")
    names = tuple(names)
    order = permutation(estimates, sources)
    measures = tuple(dict.fromkeys(IMPROVEMENTS.get(name, name) for name in names))
    of_estimates = _measured(estimates[list(order)], sources, sample_rate, measures)
    improved = tuple(IMPROVEMENTS[name] for name in names if name in IMPROVEMENTS)
    of_mixture = _measured(np.stack([mixture] * len(sources)), sources, sample_rate, improved)
    return [
        _left_out(index, source, mixture, names) or _speaker(index, *of_signals, names)
        for index, source, *of_signals in zip(order, sources, of_estimates, of_mixture, strict=True)
    ]


def permutation(estimates: np.ndarray, sources: np.ndarray) -> tuple[int, ...]:
    """Index of the estimate of each source, (S, T) both: the order of the best mean SI-SDR.

    All orders are tried up to 4 sources; beyond that an assignment is solved. A silent or broken
    signal favours no order. Of equal orders the first is taken, which is that of the estimates.
    """
    estimates, sources = (
        np.where(np.isfinite(x).all(-1, keepdims=True), x, 0.0).astype(np.float64)
        for x in (estimates, sources)
    )
    energy = np.square(estimates).sum(-1)[:, None] * np.square(sources).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.square(estimates @ sources.T) / energy  # (estimate, source)
    share = np.clip(np.where(energy > 0, share, 0.5), SHARE_MIN, 1 - SHARE_MIN)
    si_sdr = 10 * np.log10(share / (1 - share))
    best = best_permutation(torch.from_numpy(-si_sdr)[None])[0]
    return tuple(best.tolist())


def mean(speakers: Sequence[Speaker], names: Iterable[str]) -> dict[str, float]:
    """Mean over the speakers of a mixture who are not left out; NaN where one of them failed."""
    scored = [speaker for speaker in speakers if not speaker.is_left_out]
    nan = float("nan")
    return {
        name: float(np.mean([speaker.values[name] for speaker in scored])) if scored else nan
        for name in names
    }


def numbered(order: Iterable[int]) -> str:
    """A permutation as text, counted from 1: "2 1" where the estimates are swapped."""
    return " ".join(str(index + 1) for index in order)


def sir(estimates: np.ndarray, sources: np.ndarray) -> list[tuple[float, str]]:
    """BSS-eval SIR in dB (Vincent et al. 2006, package `fast_bss_eval`), higher is better.

    For each estimate (S, T), in the order of the sources: energy of its source over that of the
    other sources, each filtered by up to 512 taps. NaN with a reason where it is undefined.
    """
    heard = np.flatnonzero(sources.any(-1))
    found = [(float("nan"), SILENT)] * len(sources)
    for index in heard:
        found[index] = float("nan"), _no_sir(estimates[index], sources[heard])
    able = [index for index in heard if not found[index][1]]
    if not able:
        return found
    try:
        parts, spans = square_cosine_metrics(sources[heard], estimates[able], SDR_TAPS)
    except np.linalg.LinAlgError:
        parts = spans = np.full((len(heard), len(able)), np.nan)
    for column, index in enumerate(able):
        row = heard.tolist().index(index)
        found[index] = _sir(parts[row, column], spans[row, column])
    return found


def _sir(part: float, span: float) -> tuple[float, str]:
    """SIR from shares of the estimate's energy: `part` of its source, `span` of all sources."""
    if np.isnan(part):
        return float("nan"), f"the sources have no unique {SDR_TAPS}-tap filters"
    if not 0 < part < span:
        return float("nan"), "the estimate holds nothing of " + ("others" if part else "the source")
    return float(10 * np.log10(part / (span - part))), ""


def _no_sir(estimate: np.ndarray, heard: np.ndarray) -> str:
    if not (np.isfinite(estimate).all() and np.isfinite(heard).all()):
        return "a signal holds NaN or infinite samples"
    if len(heard) < 2:
        return NO_OTHER
    if too_short := _too_short(heard):
        return too_short
    return "" if estimate.any() else "the estimate is silent"


def _too_short(heard: np.ndarray) -> str:
    """One limit for SDR and SIR, so that their means are over the same mixtures; (S, T)."""
    fits_anything = heard.shape[-1] <= SDR_TAPS * len(heard)
    return f"too short: {SDR_TAPS} taps fit anything" if fits_anything else ""


def _measured(
    signals: np.ndarray, sources: np.ndarray, sample_rate: int, names: tuple[str, ...]
) -> list[Scores]:
    """Values and reasons of each signal against its source, (S, T) both."""
    alone = [name for name in names if name != "sir"]
    found = [
        metrics.score(signal, source, sample_rate, alone)
        for signal, source in zip(signals, sources, strict=True)
    ]
    if "sdr" in names and (too_short := _too_short(sources[sources.any(-1)])):
        for values, reasons in found:
            values["sdr"] = float("nan")
            reasons.setdefault("sdr", too_short)
    if "sir" in names:
        for (values, reasons), (value, reason) in zip(found, sir(signals, sources), strict=True):
            values["sir"] = value
            reasons |= {"sir": reason} if reason else {}
    return found


def _left_out(
    estimate: int, source: np.ndarray, mixture: np.ndarray, names: tuple[str, ...]
) -> Speaker | None:
    """The speaker without values, where no system could have one; else None."""
    if source.any() and not np.array_equal(source, mixture):
        return None
    reason = ALONE if source.any() else SILENT
    return Speaker(estimate, dict.fromkeys(names, float("nan")), {"all": reason})


def _speaker(
    estimate: int, of_estimate: Scores, of_mixture: Scores, names: tuple[str, ...]
) -> Speaker:
    (values, reasons), (before, unknown) = of_estimate, of_mixture
    chosen, why = {}, {}
    for name in names:
        measure = IMPROVEMENTS.get(name, name)
        chosen[name], reason = values[measure], reasons.get(measure, "")
        if name in IMPROVEMENTS:
            chosen[name] -= before[measure]
            reason = reason or (f"of the mixture: {unknown[measure]}" if measure in unknown else "")
        why |= {name: reason} if reason else {}
    return Speaker(estimate, chosen, why)
