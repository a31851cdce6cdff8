"""Scores of a test set, a row per file: of a model, a folder of estimates, or the noisy files.

Test sets are for final numbers only: nothing here is imported by training.

An interrupted run goes on where it was (`speechlab.rows`). A file or a metric that fails is NaN
with its reason in the column `failed`: counted, never averaged.
"""

import functools
import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import speechlab
from speechlab import audio
from speechlab.data import Pair, find_pairs, recognise, sample_rates, sound_files, title
from speechlab.errors import UserError
from speechlab.files import sha256
from speechlab.metrics import METRICS, PACKAGES, RESAMPLER, rounded, score, truncated, versions
from speechlab.processes import finished, n_processors
from speechlab.rows import Row, Rows, cell, refuse_unwritable
from speechlab.statistics import mean_interval

QUANTIZE = ("int16", "float")
TOLERANCE = 0.02  # between a measured and a known mean, in the metric's own unit


@dataclass(frozen=True)
class Source:
    """Where estimates come from: a model, or one file per pair."""

    record: dict[str, Any]  # for the settings: names and digests, no folders
    checkpoint: Path | None = None
    sample_rate: int | None = None  # Hz, of the model
    files: dict[str, Path] = field(default_factory=dict)  # pair's name -> file


@dataclass(frozen=True)
class Task:
    """What a process needs for one row."""

    pair: Pair
    checkpoint: Path | None
    file: Path | None
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
    checkpoint: what `speechlab.load` takes; estimates: a folder with the noisy files' names;
    neither: the noisy files themselves. metrics: names in METRICS; default all.
    jobs: processes; default one per processor. quantize: "int16" cuts a model's estimate to 16 bits
    as the published tables do (clipped, x 32767, towards zero) and rounds what comes from a file;
    "float" leaves all as it is. limit: just the first files of the set.
    A published set is scored at its rate, another at the model's or else the files' own; files of
    another rate are resampled, and then the settings say so.
    Raises UserError for wrong input, and where `output` holds rows of other settings.
    """
    names = tuple(METRICS if metrics is None else metrics)
    _check_options(names, quantize, jobs, limit)
    everything = find_pairs(test_set)
    pairs = everything[:limit]
    known = recognise(everything)
    refuse_unwritable(Path(output))
    source = _source(checkpoint, estimates, everything, pairs)
    sample_rate = known.sample_rate if known else source.sample_rate
    settings = {
        "test_set": title(test_set, known),
        **source.record,
        "quantize": quantize,
        "metrics": list(names),
        **_rate_and_versions(sample_rate, source, everything),
    }
    rows = Rows(Path(output), ("file", "seconds", *names, "failed"), settings)
    order = [pair.name for pair in everything]
    rows.refuse_strangers(order)
    todo = [
        Task(pair, source.checkpoint, source.files.get(pair.name), sample_rate, names, quantize)
        for pair in pairs
        if pair.name not in rows.done
    ]
    if todo:
        with rows.appending() as append:
            bar = tqdm(
                _rows(todo, jobs or n_processors()),
                total=len(pairs),
                initial=len(pairs) - len(todo),
                unit="file",
                disable=not progress,
            )
            for row in bar:
                append(row)
        rows.finish(order)
    return rows.frame([pair.name for pair in pairs])


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Per metric: mean, 95 % bootstrap interval (low, high), n files in it, n_failed left out."""
    summary = []
    for metric in [name for name in rows.columns if name in METRICS]:
        values = rows[metric].dropna()
        mean = mean_interval(values.to_numpy())
        summary.append((metric, *mean, len(rows) - len(values)))
    columns = ["metric", "mean", "low", "high", "n", "n_failed"]
    return pd.DataFrame(summary, columns=columns).set_index("metric")


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
        clean, sample_rate = _mono(task.pair.clean, task.sample_rate)
        seconds = len(clean) / sample_rate
        estimate = _estimate(task, sample_rate)
        if len(estimate) != len(clean):
            raise UserError(f"the estimate has {len(estimate)} samples, the clean {len(clean)}")
        if task.quantize == "int16":
            clean = rounded(clean)
        values, reasons = score(estimate, clean, sample_rate, task.metrics)
    except UserError as error:
        reasons = {"all": _without_folder(str(error), task)}
    failed = "; ".join(f"{name}: {' '.join(reason.split())}" for name, reason in reasons.items())
    return task.pair.name, cell(seconds), *map(cell, values.values()), failed


def _estimate(task: Task, sample_rate: int) -> np.ndarray:
    """The estimate, (T,), quantized as asked; UserError where there is none."""
    samples, rate = _mono(task.file or task.pair.noisy, task.sample_rate)
    if rate != sample_rate:
        raise UserError(f"the clean file has {sample_rate} Hz, the other {rate} Hz")
    if task.checkpoint is None:
        return rounded(samples) if task.quantize == "int16" else samples
    estimate = _enhanced(task.checkpoint, samples, rate)
    return truncated(estimate) if task.quantize == "int16" else estimate


def _enhanced(checkpoint: Path, noisy: np.ndarray, sample_rate: int) -> np.ndarray:
    model = _model(checkpoint)
    if model.sample_rate != sample_rate:
        raise UserError(f"the model is for {model.sample_rate} Hz, the file has {sample_rate} Hz")
    batch = torch.from_numpy(noisy.astype(np.float32))[None, None]  # (1, 1, T)
    try:
        with torch.inference_mode():
            estimate = model(batch)
    except Exception as error:  # whatever a model raises is the row's reason
        raise UserError(f"the model failed: {type(error).__name__}: {error}") from error
    if estimate.shape != batch.shape:
        raise UserError(f"the model gave {tuple(estimate.shape)} for {tuple(batch.shape)}")
    estimate = estimate[0, 0].double().numpy()
    if not np.isfinite(estimate).all():
        raise UserError("the model gave NaN or infinite samples")
    return estimate


@functools.lru_cache(maxsize=1)
def _model(checkpoint: Path) -> torch.nn.Module:
    """Loaded once per process."""
    return speechlab.load(checkpoint)


def _mono(path: Path, sample_rate: int | None) -> tuple[np.ndarray, int]:
    waveform, sample_rate = audio.load(path, sample_rate)
    if len(waveform) != 1:
        raise UserError(f"{path}: {len(waveform)} channels; scores are for one")
    return waveform[0].double().numpy(), sample_rate


def _without_folder(reason: str, task: Task) -> str:
    """Rows are published: the name of a file stays in a reason, the folder does not."""
    for path in (task.pair.clean, task.pair.noisy, task.file):
        if path is not None:
            reason = reason.replace(str(path), path.name)
    return reason


def _rows(tasks: list[Task], jobs: int) -> Iterator[Row]:
    """As they are finished."""
    try:
        yield from finished(score_file, tasks, jobs)
    finally:
        _model.cache_clear()  # of this process, where it did the work


def _check_options(
    metrics: tuple[str, ...], quantize: str, jobs: int | None, limit: int | None
) -> None:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise UserError(f"no metric {' '.join(unknown)}; known: {', '.join(METRICS)}")
    if len(set(metrics)) < len(metrics):
        raise UserError("a metric is named twice; name each once")
    if quantize not in QUANTIZE:
        raise UserError(f"quantize {quantize!r} is not one of {', '.join(QUANTIZE)}")
    for name, value in (("jobs", jobs), ("limit", limit)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more")


def _source(
    checkpoint: str | Path | None,
    estimates: str | Path | None,
    everything: list[Pair],
    pairs: list[Pair],
) -> Source:
    if checkpoint is not None and estimates is not None:
        raise UserError("both a checkpoint and estimates are given; give one")
    if checkpoint is not None:
        return _model_source(checkpoint)
    if estimates is not None:
        return _folder_source(Path(estimates), everything, pairs)
    return Source({"source": "noisy files"}, files={pair.name: pair.noisy for pair in everything})


def _model_source(checkpoint: str | Path) -> Source:
    """The model is loaded here too, so that a bad file is told before any work."""
    from speechlab.checkpoints import locate
    from speechlab.complexity import n_params

    path = locate(checkpoint)
    model = speechlab.load(path)
    record = {
        "source": "checkpoint",
        "checkpoint": Path(checkpoint).name,
        "sha256": _digest([path]),
        "n_params": n_params(model),
    }
    return Source(record, checkpoint=path, sample_rate=model.sample_rate)


def _folder_source(folder: Path, everything: list[Pair], pairs: list[Pair]) -> Source:
    """Estimates are named as the noisy files, as far as `sound_files` compares names."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of estimates")
    found = sound_files(folder)
    files = {pair.name: found[pair.name] for pair in everything if pair.name in found}
    missing = [pair.noisy.name for pair in pairs if pair.name not in files]
    if missing:
        raise UserError(
            f"{folder}: no estimate of {len(missing)} files ({missing[0]} ...); "
            "estimates have the names of the noisy files"
        )
    record = {"source": "estimates", "estimates": folder.name, "sha256": _digest(files.values())}
    return Source(record, files=files)


def _rate_and_versions(
    sample_rate: int | None, source: Source, pairs: list[Pair]
) -> dict[str, Any]:
    """For the settings. Files that all have the rate already leave no trace of a resampler."""
    paths = [p for pair in pairs for p in (pair.clean, source.files.get(pair.name, pair.noisy))]
    resampled = sample_rate is not None and bool(sample_rates(paths) - {sample_rate})
    packages = (*PACKAGES, RESAMPLER) if resampled else PACKAGES
    model = {"torch": torch.__version__} if source.checkpoint else {}
    rate = {"sample_rate": sample_rate} if resampled else {}
    return {**rate, "versions": {"speechlab": speechlab.__version__, **versions(packages), **model}}


def _digest(paths: Iterable[Path]) -> str:
    """Of the files' bytes, in the order given."""
    total = hashlib.sha256()
    for path in paths:
        total.update(bytes.fromhex(sha256(path)))
    return total.hexdigest()
