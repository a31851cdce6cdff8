"""Scores of a test set, a row per file: of a model, a folder of estimates, or the noisy files.

Test sets are for final numbers only: nothing here is imported by training.

An interrupted run goes on where it was (`evaluation.rows`). A file or a metric that fails is NaN
with its reason in the column `failed`: counted, never averaged.
"""

import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from speechlab.data.test_sets import Pair, find_pairs, recognise, sample_rates, title
from speechlab.errors import UserError
from speechlab.evaluation.estimates import find, mono, processed, rate_and_versions, scored
from speechlab.evaluation.metrics import METRICS, defined_at, rounded, score, truncated
from speechlab.evaluation.rows import Row, Rows, cell, refuse_unwritable
from speechlab.evaluation.statistics import mean_interval

QUANTIZE = ("int16", "float")
UNPROCESSED = "noisy files"  # what the settings call them
TOLERANCE = 0.02  # between a measured and a known mean, in the metric's own unit


@dataclass(frozen=True)
class Task:
    """What a process needs for one row."""

    pair: Pair
    checkpoint: Path | None
    file: Path  # the estimate, or with a checkpoint what it is given
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
    quantize: str = "int16",
    limit: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Score a test set. Columns: file, seconds, each metric, failed ("metric: reason; ...").

    test_set: a folder with noisy/ and clean/. output: the CSV file.
    checkpoint: what `load` takes; estimates: a folder with the noisy files' names;
    neither: the noisy files themselves. metrics: names in METRICS; default all.
    jobs: processes; default one per processor. quantize: "int16" cuts a model's estimate to 16 bits
    as the published tables do (clipped, x 32767, towards zero) and rounds what comes from a file;
    "float" leaves all as it is. limit: just the first files of the set.
    A published set is scored at its rate, another at the model's or else the files' own; files of
    another rate are resampled, and then the settings say so.
    Raises UserError for wrong input, and where `output` holds rows of other settings.
    """
    names = tuple(METRICS if metrics is None else metrics)
    check_options(names, METRICS, quantize, jobs, limit)
    everything = find_pairs(test_set)
    pairs = everything[:limit]
    known = recognise(everything)
    refuse_unwritable(Path(output))
    inputs = {pair.name: pair.noisy for pair in everything}
    source = find(checkpoint, estimates, inputs, [pair.name for pair in pairs], ("",), UNPROCESSED)
    sample_rate = known.sample_rate if known else source.sample_rate
    files = {pair.name: source.files.get(pair.name, (pair.noisy,))[0] for pair in everything}
    paths = [*(pair.clean for pair in everything), *files.values()]
    if metrics is not None:
        check_rates(names, sample_rate, paths)
    settings = {
        "test_set": title(test_set, known),
        **source.record,
        "quantize": quantize,
        "metrics": list(names),
        **rate_and_versions(sample_rate, source, paths),
    }
    rows = Rows(Path(output), ("file", "seconds", *names, "failed"), settings)
    order = [pair.name for pair in everything]
    rows.refuse_strangers(order)
    todo = [
        Task(pair, source.checkpoint, files[pair.name], sample_rate, names, quantize)
        for pair in pairs
        if pair.name not in rows.done
    ]
    if todo:
        made = ([row] for row in scored(score_file, todo, jobs))
        rows.fill(made, len(pairs) - len(todo), len(pairs), progress)
        rows.finish(order)
    return rows.frame([pair.name for pair in pairs])


def summarise(rows: pd.DataFrame, known: Collection[str] = METRICS) -> pd.DataFrame:
    """Per metric: mean, 95 % bootstrap interval (low, high), n files in it, n_failed left out.

    known: the names of columns that are metrics.
    """
    summary = []
    for metric in [name for name in rows.columns if name in known]:
        values = rows[metric].dropna()
        mean = mean_interval(values.to_numpy())
        summary.append((metric, *mean, len(rows) - len(values)))
    columns = ["metric", "mean", "low", "high", "n", "n_failed"]
    return pd.DataFrame(summary, columns=columns).set_index("metric")


def failed(rows: pd.DataFrame) -> dict[str, str]:
    """The files of which a value is missing, each with its first reasons."""
    told = rows[rows["failed"] != ""].drop_duplicates("file")
    return dict(zip(told["file"], told["failed"], strict=True))


def check_metrics(
    test_set: str | Path,
    jobs: int | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    progress: bool = True,
) -> Check:
    """Score the noisy files with all metrics and say whether the set's known row is met.

    output: a CSV file to keep the rows in (and to go on from); None keeps none.
    """
    if output is None:
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / "noisy.csv"
            return check_metrics(test_set, jobs, limit, rows, progress)
    rows = evaluate(test_set, output, jobs=jobs, limit=limit, progress=progress)
    return compare(rows, test_set)


def compare(rows: pd.DataFrame, test_set: str | Path) -> Check:
    """Rows of the noisy files of `test_set` (some or all) against its known row."""
    pairs = find_pairs(test_set)
    known = recognise(pairs)
    table = summarise(rows).reset_index().rename(columns={"mean": "measured"})
    table["known"] = table["metric"].map(known.known if known else {}).astype(float)
    table["difference"] = table["measured"] - table["known"]
    complete = known is not None and len(rows) == known.n_files
    judged = complete & table["known"].notna()
    met = (table["difference"].abs() <= TOLERANCE) & (table["n_failed"] == 0)
    table["verdict"] = np.where(judged, np.where(met, "met", "NOT met"), "")
    columns = ["metric", "measured", "known", "difference", "n", "n_failed", "verdict"]
    n_failed = int(rows[list(table["metric"])].isna().any(axis=1).sum())
    if known is None:
        passed, reason = None, f"{len(rows)} files; no set with a known row has these names"
    elif not complete:
        passed, reason = None, f"incomplete, {len(rows)} of {known.n_files} files: not comparable"
    else:
        passed = bool(judged.any() and met[judged].all() and not n_failed)
        reason = f"complete, {len(rows)} files; known row {'met' if passed else 'NOT met'}"
    reason += f"; {n_failed} failed" if n_failed else ""
    return Check(title(test_set, known), passed, reason, table[columns])


def score_file(task: Task) -> Row:
    """The row of one file; what goes wrong with the file stands in the row."""
    values = dict.fromkeys(task.metrics, float("nan"))
    seconds = float("nan")
    try:
        clean, sample_rate = mono(task.pair.clean, task.sample_rate)
        seconds = len(clean) / sample_rate
        estimate = _estimate(task, sample_rate)
        if len(estimate) != len(clean):
            raise UserError(f"the estimate has {len(estimate)} samples, the clean {len(clean)}")
        if task.quantize == "int16":
            clean = rounded(clean)
        values, reasons = score(estimate, clean, sample_rate, task.metrics)
    except UserError as error:
        reasons = {"all": without_folders(str(error), (task.pair.clean, task.file))}
    return task.pair.name, cell(seconds), *map(cell, values.values()), failures(reasons)


def _estimate(task: Task, sample_rate: int) -> np.ndarray:
    """The estimate, (T,), quantized as asked; UserError where there is none."""
    samples, rate = mono(task.file, task.sample_rate)
    if rate != sample_rate:
        raise UserError(f"the clean file has {sample_rate} Hz, the other {rate} Hz")
    if task.checkpoint is None:
        return rounded(samples) if task.quantize == "int16" else samples
    (estimate,) = processed(task.checkpoint, samples, rate)
    return truncated(estimate) if task.quantize == "int16" else estimate


def failures(reasons: Mapping[str, str]) -> str:
    """Reasons by metric, as a cell."""
    return "; ".join(f"{name}: {' '.join(reason.split())}" for name, reason in reasons.items())


def without_folders(reason: str, files: Iterable[Path]) -> str:
    """Rows are published: the name of a file stays in a reason, the folder does not."""
    for path in files:
        reason = reason.replace(str(path), path.name)
    return reason


def check_rates(names: Iterable[str], sample_rate: int | None, paths: Iterable[Path]) -> None:
    """UserError for a metric that no file has a value of; sample_rate in Hz, None: the files'."""
    rates = sorted({sample_rate} if sample_rate else sample_rates(paths))
    for name in names:
        if rates and not any(defined_at(name, rate) for rate in rates):
            at = " and ".join(map(str, rates))
            narrow = name == "pesq_wb" and any(defined_at("pesq_nb", rate) for rate in rates)
            fix = "take pesq_nb" if narrow else "leave it out of the metrics"
            raise UserError(f"{name} is not defined at {at} Hz; {fix}")


def check_options(
    metrics: tuple[str, ...],
    known: Collection[str],
    quantize: str,
    jobs: int | None,
    limit: int | None,
) -> None:
    """UserError for what cannot be; known: names of the metrics there are."""
    unknown = [name for name in metrics if name not in known]
    if unknown or not metrics:
        raise UserError(f"no metric {' '.join(unknown)}; known: {', '.join(known)}")
    if len(set(metrics)) < len(metrics):
        raise UserError("a metric is named twice; name each once")
    if quantize not in QUANTIZE:
        raise UserError(f"quantize {quantize!r} is not one of {', '.join(QUANTIZE)}")
    for name, value in (("jobs", jobs), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more")
