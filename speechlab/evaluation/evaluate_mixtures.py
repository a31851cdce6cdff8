"""Scores of a test set of mixtures, a row per speaker: of a model, of files, or of the mixtures.

As `evaluation.evaluate`, whose contract this is: rows on disk that can be gone on with, failures
that are NaN with a reason. Which estimate is whose is resolved once per mixture. A mean, and its
interval, is over mixtures, for their speakers are not independent: `means` has a row for each, to
be summarised here, or compared between systems by `evaluation.statistics`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from speechlab.data.test_sets import Mixture, find_mixtures, names_of_sources, sample_rates, title
from speechlab.errors import UserError
from speechlab.evaluation import evaluate as evaluation
from speechlab.evaluation.estimates import find, mono, processed, rate_and_versions, scored
from speechlab.evaluation.metrics import rounded, truncated
from speechlab.evaluation.rows import Row, Rows, cell, refuse_unwritable
from speechlab.evaluation.separation_metrics import LEFT_OUT, METRICS, SILENT, said, score, usual

UNPROCESSED = "mixtures"  # what the settings call them


@dataclass(frozen=True)
class Task:
    """What a process needs for the rows of one mixture."""

    mixture: Mixture
    checkpoint: Path | None
    files: tuple[Path, ...]  # the estimates, one per source; with a checkpoint none
    sample_rate: int | None  # Hz, to score at; None: the files' own
    metrics: tuple[str, ...]
    quantize: str


def evaluate(
    test_set: str | Path,
    output: str | Path,
    checkpoint: str | Path | None = None,
    estimates: str | Path | None = None,
    metrics: Iterable[str] | None = None,
    jobs: int | None = None,
    quantize: str = "float",
    limit: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Score a test set. Columns: file, speaker, seconds, estimate, each metric, failed.

    speaker: 1 for s1, ...; estimate: which of the estimates is this speaker's, from 1 on.
    test_set: a folder that `data.find_mixtures` takes. output: the CSV file.
    checkpoint: what `load` takes; estimates: a folder with s1/, s2/, ..., the mixtures'
    names in each, in any order; neither: the mixtures themselves, as every speaker's estimate.
    metrics: names in separation_metrics.METRICS; default those that are usual at the rate, which is
    the model's, or else the files' own. quantize: "float" as it is, for a model may have any level;
    "int16" as in `evaluate.evaluate`. jobs, limit: as there, limit in mixtures.
    Raises UserError for wrong input, and where `output` holds rows of other settings.
    """
    kind, everything = find_mixtures(test_set)
    mixtures, parts = everything[:limit], names_of_sources(len(everything[0].sources))
    names = None if metrics is None else tuple(metrics)
    evaluation.check_options(METRICS if names is None else names, METRICS, quantize, jobs, limit)
    refuse_unwritable(Path(output))
    inputs = {mixture.name: mixture.mixture for mixture in everything}
    needed = [mixture.name for mixture in mixtures]
    source = find(checkpoint, estimates, inputs, needed, parts, UNPROCESSED)
    paths = [path for mixture in everything for path in (mixture.mixture, *mixture.sources)]
    paths += [path for files in source.files.values() for path in files]
    if names is None:
        names = usual(source.sample_rate or min(sample_rates(paths), default=0))
    else:
        evaluation.check_rates(names, source.sample_rate, paths)
    settings = {
        "test_set": title(everything[0].mixture.parents[1], None),
        "mixture": kind,
        **source.record,
        "quantize": quantize,
        "metrics": list(names),
        **rate_and_versions(source.sample_rate, source, paths),
    }
    header = ("file", "speaker", "seconds", "estimate", *names, "failed")
    rows = Rows(Path(output), header, settings, n_names=2)
    order = _row_names(everything)
    rows.refuse_strangers(order)
    given = source.sample_rate, names, quantize
    todo = [
        Task(mixture, source.checkpoint, source.files.get(mixture.name, ()), *given)
        for mixture in mixtures
        if not set(_row_names([mixture])) <= rows.done.keys()
    ]
    if todo:
        made = scored(score_mixture, todo, jobs)
        rows.fill(made, len(mixtures) - len(todo), len(mixtures), progress)
        rows.finish(order)
    return rows.frame(_row_names(mixtures)).astype({"speaker": int})


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per mixture of the rows of `evaluate`: file, seconds, permutation, means, failed.

    permutation: the estimates of speaker 1, 2, ..., from 1 on: "2 1". A mean is over the speakers
    that are not left out: n_silent are, for their source is silent, and one that is the mixture
    itself. It is NaN where one of the others has no value.
    """
    metrics = [name for name in rows.columns if name in METRICS]
    rows = _told(rows)
    table = []
    for file, speakers in rows.groupby("file", sort=False):
        order = speakers["estimate"]
        heard = speakers[["all" not in _names_left_out(told) for told in speakers["failed"]]]
        failed = [f"s{row.speaker}: {row.failed}" for row in speakers.itertuples() if row.failed]
        table.append(
            {
                "file": file,
                "seconds": speakers["seconds"].iloc[0],
                "permutation": "" if order.isna().any() else said(order.astype(int) - 1),
                **heard[metrics].mean(skipna=False),
                "n_silent": int((speakers["failed"] == f"all: {SILENT}").sum()),
                "failed": " | ".join(failed),
            }
        )
    columns = ["file", "seconds", "permutation", *metrics, "n_silent", "failed"]
    return pd.DataFrame(table, columns=columns)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Per metric, of the rows of `evaluate`: mean over mixtures, its 95 % interval, the counts.

    n: mixtures in the mean; n_failed: those that are not, for one of their speakers has no value;
    n_left_out: those that are not, for no system has a value (`separation_metrics.LEFT_OUT`).
    """
    summary = evaluation.summarise(means(rows), METRICS)
    rows = _told(rows)
    summary["n_left_out"] = [_n_left_out(rows, metric) for metric in summary.index]
    summary["n_failed"] -= summary["n_left_out"]
    return summary


def failed(rows: pd.DataFrame) -> dict[str, str]:
    """The mixtures of which a value is missing, each with its first reasons.

    What no system has a value of is no failure.
    """
    rows = _told(rows)
    told = rows["failed"].map(
        lambda cell: "; ".join(p for p in _parts(cell) if not _is_left_out(p))
    )
    return evaluation.failed(rows.assign(failed=told))


def _n_left_out(rows: pd.DataFrame, metric: str) -> int:
    """Mixtures of which no speaker could have a value."""
    without = rows["failed"].map(lambda cell: not _names_left_out(cell).isdisjoint((metric, "all")))
    return int(without.groupby(rows["file"]).all().sum())


def _told(rows: pd.DataFrame) -> pd.DataFrame:
    """Read from a CSV file, an empty cell of reasons is NaN: made empty again."""
    told = rows["failed"].astype(object)
    return rows.assign(failed=told.where(told.notna(), ""))


def _parts(reasons: str) -> list[str]:
    """Of a cell of `evaluate.failures`, "metric: reason" each."""
    return reasons.split("; ")


def _is_left_out(part: str) -> bool:
    return part.partition(": ")[2] in LEFT_OUT


def _names_left_out(reasons: str) -> set[str]:
    return {part.partition(": ")[0] for part in _parts(reasons) if _is_left_out(part)}


def score_mixture(task: Task) -> list[Row]:
    """The rows of one mixture; what goes wrong with it stands in the rows."""
    name, seconds = task.mixture.name, float("nan")
    try:
        mixture, sources, sample_rate = _signals(task)
        seconds = len(mixture) / sample_rate
        estimates = _estimates(task, mixture, sample_rate)
        if task.quantize == "int16":
            mixture, sources = rounded(mixture), rounded(sources)
        speakers = score(estimates, sources, mixture, sample_rate, task.metrics)
    except UserError as error:
        blank = ("",) * (1 + len(task.metrics))
        failed = evaluation.failures({"all": _without_folders(str(error), task)})
        numbers = range(1, len(task.mixture.sources) + 1)
        return [(name, str(number), cell(seconds), *blank, failed) for number in numbers]
    return [
        (
            *(name, str(number), cell(seconds), str(speaker.estimate + 1)),
            *(cell(speaker.values[metric]) for metric in task.metrics),
            evaluation.failures(speaker.reasons),
        )
        for number, speaker in enumerate(speakers, start=1)
    ]


def _signals(task: Task) -> tuple[np.ndarray, np.ndarray, int]:
    """Mixture (T,), sources (S, T) and their rate in Hz."""
    mixture, sample_rate = mono(task.mixture.mixture, task.sample_rate)
    return mixture, _together(task.mixture.sources, task, len(mixture), sample_rate), sample_rate


def _estimates(task: Task, mixture: np.ndarray, sample_rate: int) -> np.ndarray:
    """(S, T), quantized as asked; UserError where there are none."""
    if task.checkpoint is None:
        estimates = _together(task.files, task, len(mixture), sample_rate)
        return rounded(estimates) if task.quantize == "int16" else estimates
    n_sources = len(task.mixture.sources)
    estimates = processed(task.checkpoint, mixture, sample_rate, n_sources)
    return truncated(estimates) if task.quantize == "int16" else estimates


def _together(paths: Sequence[Path], task: Task, length: int, sample_rate: int) -> np.ndarray:
    """Files of one mixture, (S, T)."""
    signals = []
    for path in paths:
        samples, rate = mono(path, task.sample_rate)
        where = f"{path.parent.name}/{path.name}"
        if rate != sample_rate:
            raise UserError(f"{where} has {rate} Hz, the mixture {sample_rate} Hz")
        if len(samples) != length:
            raise UserError(f"{where} has {len(samples)} samples, the mixture {length}")
        signals.append(samples)
    return np.stack(signals)


def _without_folders(reason: str, task: Task) -> str:
    """Rows are published: "s1/name.wav" stays in a reason, the folders before it do not."""
    for path in (task.mixture.mixture, *task.mixture.sources, *task.files):
        reason = reason.replace(str(path), f"{path.parent.name}/{path.name}")
    return reason


def _row_names(mixtures: Iterable[Mixture]) -> list[str]:
    """One per speaker, as `Rows` names them."""
    return [
        f"{mixture.name} {number}"
        for mixture in mixtures
        for number in range(1, len(mixture.sources) + 1)
    ]
