"""Scores of a test set: a row per file, with several sources a row per speaker.

    test set ─► mixtures ─┬─► estimates: of a model, of files, or the mixtures themselves
                          └─► sources ─► score_mixture ─► rows on disk ─► `evaluation.summaries`

One source is enhancement: the mixture is the noisy file. Several sources are separation: the best
order of the estimates is found once per mixture.

Test sets are for final numbers only: no module of training imports this one. An interrupted run
resumes (`evaluation.rows`). A file or a metric that fails is NaN with its reason in the column
`failed`: counted, never averaged. Rows whose files have changed are scored again, and what is wrong
with a file or a pair is in the column `warnings` (`evaluation.inputs`).
"""

import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from speechlab.config import RATES
from speechlab.data import test_sets
from speechlab.data.test_sets import Mixture
from speechlab.errors import UserError, shown, some, unknown
from speechlab.evaluation import inputs, separation_metrics
from speechlab.evaluation.estimates import (
    Estimates,
    find_estimates,
    mono,
    processed,
    rate_and_versions,
    scored,
)
from speechlab.evaluation.metrics import METRICS, defined_at, rounded, score, truncated
from speechlab.evaluation.rows import (
    Row,
    Rows,
    cell,
    joined,
    kept_metrics,
    lacking,
    refuse_unwritable,
)
from speechlab.evaluation.separation_metrics import Speaker
from speechlab.evaluation.summaries import Check, compare
from speechlab.progress import Tell, on_stderr

QUANTIZE = ("int16", "float")


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
    model: str = ""  # digest of the checkpoint
    device: str = "cpu"  # of the model
    todo: tuple[str, ...] = ()  # metrics to compute; of the others `before` has the cells
    before: tuple[dict[str, str], ...] = ()  # rows on disk by column, one per source

    @property
    def names(self) -> list[str]:
        """Of the rows: of the file, with several sources followed by the speaker's number."""
        numbers = range(1, 1 + len(self.mixture.sources))
        one = len(numbers) == 1
        return [self.mixture.name if one else f"{self.mixture.name} {n}" for n in numbers]

    @property
    def digest(self) -> str:
        return inputs.fingerprint(self.paths, self.model)


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
    sample_rate: int | None = None,
    tell: Tell = on_stderr,
    device: str = "cpu",
) -> pd.DataFrame:
    """Score a test set. Columns: file, seconds, each metric, failed, those of `evaluation.inputs`.

    With several sources also speaker (1 for s1, ...) and estimate: the number, from 1, of the
    estimate that is this speaker's. Rows in `output` stay, except those whose files have changed;
    of other metrics than theirs only the new columns are computed. Raises UserError for wrong
    input, and where `output` holds rows of other settings.

    test_set: a folder with noisy/ and clean/, or mix/ (mix_clean/, ...), s1/, s2/, ...
    output: the CSV file; the settings are written beside it as .json; may hold rows already
    checkpoint: what `load` takes
    estimates: a folder of files named as the mixtures, with several sources in s1/, s2/, ... in
        any order; with neither, the mixtures are scored as their own estimates
    metrics: names in `metrics.METRICS` (default: all); with several sources in
        `separation_metrics.METRICS` (default: the usual ones at the rate)
    jobs: processes; default: one per processor
    quantize: "int16" cuts a model's estimate to 16 bits as the published tables do (clipped,
        x 32767, towards zero) and rounds a file without clipping it; "float" changes nothing;
        default: int16, with several sources float, for a separator may have any level
    limit: only the first files of the set
    progress: report on stderr
    sample_rate: in Hz; files of another rate are resampled, and the settings record it; default:
        a published set's, the model's, or else the files' own
    tell: gets a line for rows that are scored again, resampled files and warnings
    device: of the model, see `models.device`; all processes share it
    """
    mixtures = test_sets.find(test_set, tell)
    several = len(mixtures[0].sources) > 1
    known = separation_metrics.METRICS if several else METRICS
    names = tuple(known if metrics is None else metrics)
    quantize = quantize or ("float" if several else "int16")
    _check_options(names, known, quantize, jobs=jobs, limit=limit)
    refuse_unwritable(Path(output))
    source = find_estimates(checkpoint, estimates, mixtures, mixtures[:limit], device)
    rate = _rate(sample_rate, mixtures, source)
    every = [path for mixture in mixtures for path in source.paths(mixture)]
    if metrics is not None:
        _check_rates(names, rate, every)
    elif several:
        names = separation_metrics.usual(rate or min(test_sets.sample_rates(every), default=0))
    kept = [name for name in kept_metrics(Path(output)) if name in known]
    names = tuple(dict.fromkeys((*kept, *names)))
    tasks = [_task(source, m, rate, names, quantize) for m in mixtures]
    rows = _rows(Path(output), tasks, source)
    for line in _notices(mixtures, tasks[:limit], rate, Path(output), kept):
        tell(line)
    return _fill(rows, tasks, tasks[:limit], jobs, progress, tell)


def _task(
    source: Estimates,
    mixture: Mixture,
    sample_rate: int | None,
    metrics: tuple[str, ...],
    quantize: str,
) -> Task:
    model = source.record["sha256"] if source.checkpoint else ""
    files = source.of(mixture), source.paths(mixture)
    settings = sample_rate, metrics, quantize, model, source.device
    return Task(mixture, source.checkpoint, *files, *settings)


def _notices(
    mixtures: list[Mixture], tasks: list[Task], rate: int | None, output: Path, kept: list[str]
) -> list[str]:
    """What is known before any score; kept: metrics of the rows on disk."""
    new = tasks[0].metrics[len(kept) :] if kept else ()
    files = [path for task in tasks for path in task.paths]
    lines = (
        f"{output}: adds {', '.join(new)}; {', '.join(kept)} are not computed again" if new else "",
        test_sets.impostor(mixtures),
        inputs.resampled(files, rate) if rate else "",
    )
    return [line for line in lines if line]


def _rate(sample_rate: int | None, mixtures: list[Mixture], source: Estimates) -> int | None:
    """The rate in Hz to score at; None: the files' own. UserError where the model has another."""
    if sample_rate is not None and not RATES.least <= sample_rate <= RATES.most:
        raise UserError(f"sample_rate is {sample_rate}; it must be {RATES} Hz")
    if sample_rate and source.sample_rate not in (None, sample_rate):
        raise UserError(
            f"the model is for {source.sample_rate} Hz and cannot be scored at {sample_rate} Hz; "
            "leave the sample rate out"
        )
    published = test_sets.recognise(mixtures)
    return sample_rate or (published.sample_rate if published else source.sample_rate)


def _rows(output: Path, tasks: list[Task], source: Estimates) -> Rows:
    """The rows of these tasks on disk; their settings name the run."""
    mixtures, first = [task.mixture for task in tasks], tasks[0]
    paths = [path for task in tasks for path in task.paths]
    several = len(first.mixture.sources) > 1
    settings: dict[str, Any] = {"test_set": test_sets.title(mixtures)}
    if several:
        settings["mixture"] = first.mixture.mixture.parent.name
    settings |= source.record
    settings |= {"quantize": first.quantize, "metrics": list(first.metrics)}
    settings |= rate_and_versions(first.sample_rate, source, paths)
    start = ("file", "speaker", "seconds", "estimate") if several else ("file", "seconds")
    header = (*start, *first.metrics, "failed", *inputs.COLUMNS)
    rows = Rows(output, header, settings, n_names=1 + several, optional=inputs.COLUMNS)
    rows.refuse_strangers(name for task in tasks for name in task.names)
    return rows


def _fill(
    rows: Rows,
    tasks: list[Task],
    first: list[Task],
    jobs: int | None,
    progress: bool,
    tell: Tell,
) -> pd.DataFrame:
    """Score those of the first tasks that have no valid rows yet; the rows of the first."""
    n_removed = _remove_changed(rows, tasks, tell)
    todo = [left for task in first if (left := _left(rows, task))]
    if todo:
        made = scored(score_mixture, todo, jobs)
        rows.fill(made, len(first) - len(todo), len(first), progress)
    if todo or n_removed:
        rows.finish(name for task in tasks for name in task.names)
    names = [name for task in first for name in task.names]
    frame = rows.frame(names)
    warnings, snrs = (dict(zip(names, frame[key], strict=True)) for key in ("warnings", "snr_db"))
    if line := inputs.told(warnings, snrs):
        tell(line)
    return frame.astype({"speaker": int}) if "speaker" in frame else frame


def _remove_changed(rows: Rows, tasks: list[Task], tell: Tell) -> int:
    """Remove the rows of files that have changed since; returns their number."""
    changed, unknown, removed = [], 0, 0
    for task in tasks:
        names = [name for name in task.names if name in rows.done]
        digests = {rows.cells(name)["inputs"] for name in names}
        unknown += "" in digests
        if digests - {""} and digests - {""} != {task.digest}:
            changed.append(shown(task.mixture.name, 80))
            removed += len([rows.done.pop(name) for name in names])
    if changed:
        tell(
            f"{rows.output}: {len(changed)} file(s) have changed since they were scored and are "
            f"scored again: {some(changed)}"
        )
    if unknown:
        tell(
            f"{rows.output}: WARNING: the rows of {unknown} file(s) are of an older version, "
            "without a digest of their files: if these have changed, the scores are stale. "
            "Remove it to score again"
        )
    return removed


def _left(rows: Rows, task: Task) -> Task | None:
    """What is left to do of a task; None where its rows are complete.

    Rows without a digest get no new metrics: all of theirs are computed again.
    """
    before = tuple(rows.cells(name) for name in task.names)
    lacks = {name: "" for cells in before if cells for name in lacking(cells["failed"])}
    if not all(before) or (lacks and not all(cells["inputs"] for cells in before)):
        return replace(task, todo=task.metrics)
    return replace(task, todo=tuple(lacks), before=before) if lacks else None


def score_mixture(task: Task) -> list[Row]:
    """The rows of one mixture; an error of a file or the model is the reason in them."""
    digest = task.digest
    seconds, sources = float("nan"), task.mixture.sources
    try:
        first, sample_rate = mono(sources[0], task.sample_rate)
        if len(sources) == 1:  # known without the estimate; of a mixture, if all files agree
            seconds = len(first) / sample_rate
        read = {path: _at_rate(path, sample_rate, task) for path in task.paths[1:]}
        signals, n_cut = inputs.cut({sources[0]: first} | read, sample_rate)
        seconds = len(signals[sources[0]]) / sample_rate
        speakers, checks = _scores_and_checks(task, signals, sample_rate, n_cut)
    except UserError as error:
        reason = str(error)
        for path in task.paths:  # rows are published: only the name of the last folder stays
            reason = reason.replace(str(path), f"{path.parent.name}/{path.name}")
        nothing = dict.fromkeys(task.todo, float("nan"))
        speakers = [Speaker(None, nothing, {"all": reason})] * len(sources)
        checks = [inputs.unknown()] * len(sources)
    rows = enumerate(zip(speakers, checks, strict=True))
    return [
        _row(task, n, seconds, speaker, found | {"inputs": digest}) for n, (speaker, found) in rows
    ]


def _row(task: Task, index: int, seconds: float, speaker: Speaker, found: Mapping[str, str]) -> Row:
    """The row of one source: what was computed now, and the cells that were there before."""
    before = task.before[index] if task.before else {}
    estimate = "" if speaker.estimate is None else str(speaker.estimate + 1)
    several = len(task.mixture.sources) > 1
    start = (str(index + 1), cell(seconds), estimate) if several else (cell(seconds),)
    values = {**before, **{name: cell(value) for name, value in speaker.values.items()}}
    failed = joined(before.get("failed", ""), speaker.reasons)
    scores = (values[metric] for metric in task.metrics)
    return (task.mixture.name, *start, *scores, failed, *(found[key] for key in inputs.COLUMNS))


def _at_rate(path: Path, sample_rate: int, task: Task) -> np.ndarray:
    """A file (T,). UserError where its rate differs from that of the first source."""
    samples, rate = mono(path, task.sample_rate)
    if rate != sample_rate:
        source = task.mixture.sources[0].parent.name
        raise UserError(f"{path} has {rate} Hz, that in {source}/ has {sample_rate} Hz")
    return samples


def _scores_and_checks(
    task: Task, signals: inputs.Signals, sample_rate: int, n_cut: int
) -> tuple[list[Speaker], list[dict[str, str]]]:
    """Of each source. UserError where the model fails, and for files of another scale."""
    mixture, made = task.mixture, None
    free = set(task.files) - {mixture.mixture} if len(mixture.sources) > 1 else ()
    beyond = inputs.beyond(signals, free)
    if task.checkpoint:
        noisy = signals[mixture.mixture]
        made = processed(task.checkpoint, noisy, sample_rate, len(mixture.sources), task.device)
        if task.quantize == "int16" and (n := int(np.count_nonzero(np.abs(made) > 1))):
            beyond["estimate, clipped"] = n
    speakers = _speakers(task, signals, made, sample_rate)
    scored = [(task.files if made is None else made)[speaker.estimate or 0] for speaker in speakers]
    return speakers, inputs.checks(mixture, scored, signals, sample_rate, n_cut, beyond)


def _speakers(
    task: Task, signals: inputs.Signals, made: np.ndarray | None, sample_rate: int
) -> list[Speaker]:
    """Values and reasons of each source, quantized as asked; made: estimates (S, T) of a model."""
    if task.quantize == "int16":
        signals = {path: rounded(signal) for path, signal in signals.items()}
        made = None if made is None else truncated(made)
    sources = np.stack([signals[path] for path in task.mixture.sources])  # (S, T)
    estimates = np.stack([signals[path] for path in task.files]) if made is None else made
    if len(sources) == 1:
        return [Speaker(0, *score(estimates[0], sources[0], sample_rate, task.todo))]
    mixture = signals[task.mixture.mixture]
    return separation_metrics.score(estimates, sources, mixture, sample_rate, task.todo)


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
