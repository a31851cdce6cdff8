"""Scores of a test set: a row per file, with several sources a row per speaker.

    test set ─► mixtures ─┬─► estimates: of a model, of files, or the mixtures themselves
                          └─► sources ─► score_mixture ─► rows on disk ─► `evaluation.summaries`

One source is enhancement: the mixture is the noisy file. Several sources are separation: the best
order of the estimates is found once per mixture.

Test sets are for final numbers only: no module of training imports this one. An interrupted run
resumes (`evaluation.rows`). A file or a metric that fails is NaN with its reason in the column
`failed`: counted, never averaged.
"""

import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from speechlab.data import test_sets
from speechlab.data.test_sets import Mixture
from speechlab.errors import UserError, unknown
from speechlab.evaluation import separation_metrics
from speechlab.evaluation.estimates import (
    Estimates,
    find_estimates,
    mono,
    processed,
    rate_and_versions,
    scored,
)
from speechlab.evaluation.metrics import METRICS, defined_at, rounded, score, truncated
from speechlab.evaluation.rows import Row, Rows, cell, failures, refuse_unwritable
from speechlab.evaluation.separation_metrics import Speaker
from speechlab.evaluation.summaries import summarise

QUANTIZE = ("int16", "float")
TOLERANCE = 0.02  # between a measured and a known mean, in the metric's own unit


@dataclass(frozen=True)
class Task:
    """What a process needs for the rows of one mixture."""

    mixture: Mixture
    checkpoint: Path | None
    files: tuple[Path, ...]  # the estimates, one per source; with a checkpoint none
    paths: tuple[Path, ...]  # all files to read, the sources first
    sample_rate: int | None  # Hz, to score at; None: the files' own
    metrics: tuple[str, ...]
    quantize: str


@dataclass(frozen=True)
class Check:
    """The noisy files of a test set against their known row."""

    test_set: str
    passed: bool | None  # None: not comparable, the set is incomplete or unknown
    reason: str
    table: pd.DataFrame  # metric, measured, known, difference, n, n_failed, verdict

    def __str__(self) -> str:
        numbers = self.table.to_string(index=False, na_rep="", float_format="{:.3f}".format)
        return f"{self.test_set}: {self.reason}\n{numbers}"


def evaluate(
    test_set: str | Path,
    output: str | Path,
    checkpoint: str | Path | None = None,
    estimates: str | Path | None = None,
    metrics: Iterable[str] | None = None,
    jobs: int | None = None,
    quantize: str | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Score a test set. Columns: file, seconds, each metric, failed ("metric: reason; ...").

    With several sources also speaker (1 for s1, ...) and estimate: the number, from 1, of the
    estimate that is this speaker's. A published set is scored at its rate, another at the model's
    or else the files' own. Files of another rate are resampled, and the settings record it.
    Raises UserError for wrong input, and where `output` holds rows of other settings.

    test_set: a folder with noisy/ and clean/, or mix/ (mix_clean/, ...), s1/, s2/, ...
    output: the CSV file; the settings are written beside it as .json
    checkpoint: what `load` takes
    estimates: a folder of files named as the mixtures, with several sources in s1/, s2/, ... in
        any order; with neither, the mixtures are scored as their own estimates
    metrics: names in `metrics.METRICS` (default: all); with several sources in
        `separation_metrics.METRICS` (default: the usual ones at the rate)
    jobs: processes; default: one per processor
    quantize: "int16" cuts a model's estimate to 16 bits as the published tables do (clipped,
        x 32767, towards zero) and rounds what is read from a file; "float" changes nothing;
        default: int16, with several sources float, for a separator may have any level
    limit: only the first files of the set
    progress: report on stderr
    """
    mixtures = test_sets.find(test_set)
    several = len(mixtures[0].sources) > 1
    known = separation_metrics.METRICS if several else METRICS
    names = tuple(known if metrics is None else metrics)
    quantize = quantize or ("float" if several else "int16")
    _check_options(names, known, quantize, jobs=jobs, limit=limit)
    refuse_unwritable(Path(output))
    source = find_estimates(checkpoint, estimates, mixtures, mixtures[:limit])
    published = test_sets.recognise(mixtures)
    rate = published.sample_rate if published else source.sample_rate
    paths = {mixture.name: source.paths(mixture) for mixture in mixtures}
    every = [path for of_mixture in paths.values() for path in of_mixture]
    if metrics is not None:
        _check_rates(names, rate, every)
    elif several:
        names = separation_metrics.usual(rate or min(test_sets.sample_rates(every), default=0))
    tasks = [
        Task(m, source.checkpoint, source.of(m), paths[m.name], rate, names, quantize)
        for m in mixtures
    ]
    rows = _rows(Path(output), tasks, source)
    return _fill(rows, tasks, tasks[:limit], jobs, progress)


def _rows(output: Path, tasks: list[Task], source: Estimates) -> Rows:
    """The rows of these tasks on disk; their settings name the run."""
    mixtures, first = [task.mixture for task in tasks], tasks[0]
    paths = [path for task in tasks for path in task.paths]
    several = len(first.mixture.sources) > 1
    settings: dict[str, Any] = {"test_set": test_sets.title(mixtures)}
    if several:
        settings["mixture"] = first.mixture.folder.name
    settings |= source.record
    settings |= {"quantize": first.quantize, "metrics": list(first.metrics)}
    settings |= rate_and_versions(first.sample_rate, source, paths)
    start = ("file", "speaker", "seconds", "estimate") if several else ("file", "seconds")
    rows = Rows(output, (*start, *first.metrics, "failed"), settings, n_names=1 + several)
    rows.refuse_strangers(_names(tasks))
    return rows


def _fill(
    rows: Rows, tasks: list[Task], first: list[Task], jobs: int | None, progress: bool
) -> pd.DataFrame:
    """Score those of the first tasks that have no rows yet; returns the rows of the first."""
    todo = [task for task in first if not set(_names([task])) <= rows.done.keys()]
    if todo:
        made = scored(score_mixture, todo, jobs)
        rows.fill(made, len(first) - len(todo), len(first), progress)
        rows.finish(_names(tasks))
    frame = rows.frame(_names(first))
    return frame.astype({"speaker": int}) if "speaker" in frame else frame


def _names(tasks: Iterable[Task]) -> list[str]:
    """The names of the rows: of the file, with several sources followed by the speaker's number."""
    return [
        f"{task.mixture.name} {number}" if len(task.mixture.sources) > 1 else task.mixture.name
        for task in tasks
        for number in range(1, 1 + len(task.mixture.sources))
    ]


def score_mixture(task: Task) -> list[Row]:
    """The rows of one mixture; an error of a file or the model is the reason in them."""
    seconds, sources = float("nan"), task.mixture.sources
    try:
        first, sample_rate = mono(sources[0], task.sample_rate)
        if len(sources) == 1:  # known without the estimate; of a mixture, if all files agree
            seconds = len(first) / sample_rate
        signals = {path: _like(first, sample_rate, path, task) for path in task.paths[1:]}
        seconds = len(first) / sample_rate
        speakers = _speakers(task, signals | {sources[0]: first}, sample_rate)
    except UserError as error:
        reason = str(error)
        for path in task.paths:  # rows are published: only the name of the last folder stays
            reason = reason.replace(str(path), f"{path.parent.name}/{path.name}")
        nothing = dict.fromkeys(task.metrics, float("nan"))
        speakers = [Speaker(None, nothing, {"all": reason})] * len(sources)
    rows = []
    for number, speaker in enumerate(speakers, start=1):
        estimate = "" if speaker.estimate is None else str(speaker.estimate + 1)
        start = (str(number), cell(seconds), estimate) if len(sources) > 1 else (cell(seconds),)
        values = (cell(speaker.values[metric]) for metric in task.metrics)
        rows.append((task.mixture.name, *start, *values, failures(speaker.reasons)))
    return rows


def _like(first: np.ndarray, sample_rate: int, path: Path, task: Task) -> np.ndarray:
    """A file (T,). UserError where its length or rate differs from that of the first source."""
    samples, rate = mono(path, task.sample_rate)
    source = task.mixture.sources[0].parent.name
    if rate != sample_rate:
        raise UserError(f"{path} has {rate} Hz, that in {source}/ has {sample_rate} Hz")
    if len(samples) != len(first):
        raise UserError(f"{path} has {len(samples)} samples, that in {source}/ has {len(first)}")
    return samples


def _speakers(task: Task, signals: dict[Path, np.ndarray], sample_rate: int) -> list[Speaker]:
    """Values and reasons of each source, quantized as asked. UserError where the model fails."""
    n_sources = len(task.mixture.sources)
    made = None
    if task.checkpoint:
        mixture = signals[task.mixture.mixture]
        made = processed(task.checkpoint, mixture, sample_rate, n_sources)
    if task.quantize == "int16":
        signals = {path: rounded(signal) for path, signal in signals.items()}
        made = None if made is None else truncated(made)
    sources = np.stack([signals[path] for path in task.mixture.sources])  # (S, T)
    estimates = np.stack([signals[path] for path in task.files]) if made is None else made
    if n_sources == 1:
        return [Speaker(0, *score(estimates[0], sources[0], sample_rate, task.metrics))]
    mixture = signals[task.mixture.mixture]
    return separation_metrics.score(estimates, sources, mixture, sample_rate, task.metrics)


def check_metrics(
    test_set: str | Path,
    jobs: int | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    progress: bool = True,
) -> Check:
    """Score the noisy files with all metrics and compare the means with the set's known row.

    test_set: a folder with noisy/ and clean/
    output: a CSV file for the rows, from which a rerun resumes; None keeps none
    jobs, limit, progress: as `evaluate` takes them
    """
    if len(test_sets.find(test_set)[0].sources) > 1:
        raise UserError(
            f"{test_set}: mixtures of several speakers have no known row; `speechlab evaluate` "
            "scores them"
        )
    if output is None:
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / "noisy.csv"
            return check_metrics(test_set, jobs, limit, rows, progress)
    rows = evaluate(test_set, output, jobs=jobs, limit=limit, progress=progress)
    return compare(rows, test_set)


def compare(rows: pd.DataFrame, test_set: str | Path) -> Check:
    """Rows of the noisy files of `test_set` (some or all) against its known row."""
    mixtures = test_sets.find(test_set)
    known = test_sets.recognise(mixtures)
    table = summarise(rows).reset_index().rename(columns={"mean": "measured"})
    table.insert(2, "known", table["metric"].map(known.known if known else {}).astype(float))
    table.insert(3, "difference", table["measured"] - table["known"])
    complete = known is not None and len(rows) == known.n_files
    judged = complete & table["known"].notna()
    met = (table["difference"].abs() <= TOLERANCE) & (table["n_failed"] == 0)
    table["verdict"] = np.where(judged, np.where(met, "met", "NOT met"), "")
    n_failed = int(rows[list(table["metric"])].isna().any(axis=1).sum())
    passed = bool(judged.any() and met[judged].all() and not n_failed) if complete else None
    if known is None:
        reason = f"{len(rows)} files; no set with a known row has these names"
    elif not complete:
        reason = f"incomplete, {len(rows)} of {known.n_files} files: not comparable"
    else:
        reason = f"complete, {len(rows)} files; known row {'met' if passed else 'NOT met'}"
    reason += f"; {n_failed} failed" if n_failed else ""
    table = table.drop(columns=["low", "high"])
    return Check(test_sets.title(mixtures), passed, reason, table)


def _check_rates(names: Iterable[str], sample_rate: int | None, paths: Iterable[Path]) -> None:
    """UserError for a metric that is defined at no rate; sample_rate in Hz, None: the files'."""
    rates = sorted({sample_rate} if sample_rate else test_sets.sample_rates(paths))
    for name in names:
        if rates and not any(defined_at(name, rate) for rate in rates):
            at = " and ".join(map(str, rates))
            narrow = name == "pesq_wb" and any(defined_at("pesq_nb", rate) for rate in rates)
            fix = "use pesq_nb" if narrow else "remove it from the metrics"
            raise UserError(f"{name} is not defined at {at} Hz; {fix}")


def _check_options(
    metrics: tuple[str, ...], known: Collection[str], quantize: str, **counts: int | None
) -> None:
    """UserError for wrong options. known: names of all metrics; counts: None, or 1 and more."""
    for name in metrics:
        if name not in known:
            raise unknown("metric", name, known)
    if not metrics:
        raise UserError(f"no metric is named; there are: {', '.join(known)}")
    if len(set(metrics)) < len(metrics):
        raise UserError("a metric is named twice; name each once")
    if quantize not in QUANTIZE:
        raise UserError(f"quantize {quantize!r} is not one of {', '.join(QUANTIZE)}")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more")
