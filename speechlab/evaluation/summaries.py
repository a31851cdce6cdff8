"""Summaries of the rows of `evaluate`: one row per file, means with intervals, failures.

Speakers of one mixture are not independent, so means and intervals are over files. What no system
has a value for (`separation_metrics.LEFT_OUT`) is skipped and counted apart from failures. Rows may
come from `evaluate` or from its CSV file.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from speechlab.data import test_sets
from speechlab.evaluation.rows import each_reason
from speechlab.evaluation.separation_metrics import LEFT_OUT, METRICS, SILENT, numbered
from speechlab.evaluation.statistics import Mean, mean_interval

TOLERANCE = 0.02  # between a measured and a known mean, in the metric's own unit


@dataclass(frozen=True)
class Check:
    """The noisy files of a test set against their known row."""

    test_set: str
    passed: bool | None  # None: not comparable, the set is incomplete or unknown
    reason: str
    table: pd.DataFrame  # metric, measured, known, difference, n, n_failed, verdict
    failed: dict[str, str]  # files without a value of a metric, and why

    def __str__(self) -> str:
        numbers = self.table.to_string(index=False, na_rep="", float_format="{:.3f}".format)
        return f"{self.test_set}: {self.reason}\n{numbers}"


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per file: file, seconds, permutation, means over speakers, n_silent, failed.

    Rows of one source are returned as they are. permutation: the numbers, from 1, of the estimates
    of speaker 1, 2, ...: "2 1". A speaker who is left out is in no mean; n_silent of them have a
    silent source. A mean is NaN where another speaker has no value.
    """
    rows = _with_reasons(rows)
    if "speaker" not in rows:
        return rows
    metrics = metrics_of(rows)
    table = []
    for file, speakers in rows.groupby("file", sort=False):
        order = speakers["estimate"]
        scored = speakers[["all" not in _left_out(reasons) for reasons in speakers["failed"]]]
        failed = [f"s{row.speaker}: {row.failed}" for row in speakers.itertuples() if row.failed]
        table.append(
            {
                "file": file,
                "seconds": speakers["seconds"].iloc[0],
                "permutation": "" if order.isna().any() else numbered(order.astype(int) - 1),
                **scored[metrics].mean(skipna=False),
                "n_silent": int((speakers["failed"] == f"all: {SILENT}").sum()),
                "failed": " | ".join(failed),
            }
        )
    columns = ["file", "seconds", "permutation", *metrics, "n_silent", "failed"]
    return pd.DataFrame(table, columns=columns)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Per metric: mean over files, 95 % bootstrap interval (low, high), n, n_failed.

    n: files in the mean; n_failed: files without a value, for at least one speaker. Of several
    speakers also n_left_out: files of which no system has a value, not counted in n_failed.
    """
    table = means(rows)
    intervals = {name: mean_interval(table[name].dropna()) for name in metrics_of(table)}
    index = pd.Index(intervals, name="metric")
    summary = pd.DataFrame(list(intervals.values()), index, Mean._fields)
    summary["n_failed"] = len(table) - summary["n"]
    if "speaker" in rows:
        rows = _with_reasons(rows)
        summary["n_left_out"] = [_n_left_out(rows, metric) for metric in summary.index]
        summary["n_failed"] -= summary["n_left_out"]
    return summary


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
    without = failed(rows)
    passed = bool(judged.any() and met[judged].all() and not without) if complete else None
    if known is None:
        reason = f"{len(rows)} files; no set with a known row has these names"
    elif not complete:
        reason = f"incomplete, {len(rows)} of {known.n_files} files: not comparable"
    else:
        reason = f"complete, {len(rows)} files; known row {'met' if passed else 'NOT met'}"
    reason += f"; {len(without)} failed" if without else ""
    table = table.drop(columns=["low", "high"])
    return Check(test_sets.title(mixtures), passed, reason, table, without)


def failed(rows: pd.DataFrame) -> dict[str, str]:
    """The files without a value of a metric, each with its first reasons; none is left out."""
    found = {}
    for file, reasons in zip(rows["file"], _with_reasons(rows)["failed"], strict=True):
        left_out = _left_out(reasons)
        parts = ["".join(part) for part in each_reason(reasons) if part[0] not in left_out]
        if parts:
            found.setdefault(file, "; ".join(parts))
    return found


def metrics_of(rows: pd.DataFrame) -> list[str]:
    """The columns that are metrics."""
    return [name for name in rows.columns if name in METRICS]


def _n_left_out(rows: pd.DataFrame, metric: str) -> int:
    """Mixtures of which no speaker could have a value."""
    without = rows["failed"].map(lambda reasons: not _left_out(reasons).isdisjoint((metric, "all")))
    return int(without.groupby(rows["file"]).all().sum())


def _with_reasons(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose empty reasons are empty text; read from a CSV file they are NaN."""
    return rows.assign(failed=rows["failed"].astype(object).where(rows["failed"].notna(), ""))


def _left_out(reasons: str) -> set[str]:
    """The metrics, or "all", that no system has a value of."""
    return {metric for metric, _, reason in each_reason(reasons) if reason in LEFT_OUT}
