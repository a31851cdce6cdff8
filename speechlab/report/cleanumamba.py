"""Tables of CleanUMamba: published scores, our scores and their difference; file and stream.

published/cleanumamba_*.csv and metrics/<test set>/<checkpoint>.csv (a row per file) ->
tables/cleanumamba_{ablation,pruning}_<test set>.*; streamed/ beside metrics/ -> tables/streaming.*
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from speechlab.errors import UserError
from speechlab.evaluation.statistics import mean_interval
from speechlab.report.figures import LABELS
from speechlab.report.markdown import (
    TEXT,
    Column,
    PaperTable,
    Row,
    count,
    number,
    read_table,
    records,
)

TEST_SET = "dns2020_no_reverb"  # the folder of the set below
PUBLISHED_ON = "DNS-2020 synthetic no_reverb"  # the set of both published tables, by its title
N_PUBLISHED_ON = 150  # files in it

METRICS = ("pesq_wb", "pesq_nb", "stoi_percent")
DECIMALS = {"pesq_wb": 3, "pesq_nb": 3, "stoi_percent": 2}
HEADS = {"pesq_wb": "PESQ-WB", "pesq_nb": "PESQ-NB", "stoi_percent": "STOI %"}
MIXERS = {
    "mamba": "Experiment_CleanU_Mamba",
    "mamba2": "Experiment_CleanU_Mamba2",
    "mamba_s4": "Experiment_CleanU_MambaS4",
    "mha": "Experiment_CleanU_MHA",
    "lstm": "Experiment_CleanU_LSTM",
}
SAME_SIZE = 0.01  # relative; published sizes are rounded


def tables(
    given: str | Path, results: Sequence[str | Path] = (), test_set: str = TEST_SET
) -> dict[str, PaperTable]:
    """The mixer ablation and the pruned sizes on one test set, by name.

    given, results: as `paper.tables` takes them.
    """
    runs = reproduced(*(Path(folder) / "metrics" / test_set for folder in results or [given]))
    made = {}
    for name, compare in (("ablation", ablation), ("pruning", pruning)):
        rows = compare(published_table(name, Path(given) / "published"), runs)
        made[f"cleanumamba_{name}_{test_set}"] = PaperTable(rows, columns(rows), note(runs))
    return made


def published_table(name: str, folder: str | Path) -> pd.DataFrame:
    """A table as published ("ablation"), its sizes as numbers.

    Columns params_published and <metric>_published, and those that name the model.
    """
    table = read_table(Path(folder) / f"cleanumamba_{name}.csv")
    table["params_published"] = table.pop("params").map(number)
    return table.rename(columns={metric: f"{metric}_published" for metric in METRICS})


def reproduced(*folders: str | Path) -> pd.DataFrame:
    """One row per CSV of scores in the folders, by name; of two with one name the first counts.

    Columns: checkpoint, n_params, n, n_failed (files that lack a metric), <metric>, <metric>_low
    and <metric>_high (mean, ends of its 95 % interval; STOI in per cent), test_set, versions,
    quantize.
    """
    metrics = [metric + end for metric in METRICS for end in ("", "_low", "_high")]
    about = ["test_set", "versions", "quantize"]
    keys = ["checkpoint", "n_params", "n", "n_failed", *metrics, *about]
    found = {path.name: path for folder in folders[::-1] for path in Path(folder).glob("*.csv")}
    rows = [_run(found[name]) for name in sorted(found)]
    return pd.DataFrame(rows, columns=keys).astype({"n_params": "Int64"})


def _run(path: Path) -> Row:
    files, settings = pd.read_csv(path), path.with_suffix(".json")
    missing = {"pesq_wb", "pesq_nb", "stoi"} - set(files.columns)
    if missing or not settings.is_file():
        what = (
            f"the columns {', '.join(sorted(missing))}" if missing else f"{settings.name} beside it"
        )
        raise UserError(f"{path}: lacks {what}; make it again with `speechlab evaluate`")
    files["stoi_percent"] = 100 * files["stoi"]
    about = json.loads(settings.read_text(encoding="utf-8"))
    row = {key: about.get(key) for key in ("n_params", "test_set", "quantize", "versions")}
    n_failed = files[list(METRICS)].isna().any(axis=1).sum()
    row |= {"checkpoint": path.stem, "n": len(files), "n_failed": n_failed}
    for metric in METRICS:
        mean = mean_interval(files[metric].dropna().to_numpy())
        row |= {metric: mean.mean, f"{metric}_low": mean.low, f"{metric}_high": mean.high}
    return row


def ablation(published: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The mixer ablation: one row per mixer, then the noisy files.

    Mamba-2 has no published row; a checkpoint that was not run has no reproduced columns.
    """
    printed = {row["mixer"]: row for row in records(published)}
    measured = {row["checkpoint"]: row for row in records(runs)}
    rows = [
        {"mixer": mixer, "checkpoint": name} | printed.get(mixer, {}) | measured.get(name, {})
        for mixer, name in MIXERS.items()
    ]
    if "noisy" in measured:
        rows.append({"mixer": "noisy"} | measured["noisy"])
    return _compared(rows, ["mixer", "checkpoint"])


def pruning(published: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Quality by size: one row per published model, with the run of the same size.

    A run of these families without a published size has a row of its own; noisy files come last.
    """
    left = [run | _family(run["checkpoint"]) for run in records(runs)]
    rows = []
    for printed in records(published):
        family, variant = printed.pop("model").split()
        row = {"family": family, "variant": variant} | printed
        run = next((run for run in left if _same_model(row, run)), None)
        if run is not None:
            left.remove(run)
        rows.append(row | (run or {}))
    rows += [run for run in left if run["family"]]
    rows += [run | {"variant": "noisy"} for run in left if run["checkpoint"] == "noisy"]
    return _compared(rows, ["family", "variant", "lookahead_ms", "checkpoint"])


def _family(checkpoint: str) -> Row:
    """CleanUMamba-3N-E8_pruned-500K -> E8, pruned"""
    found = re.search(r"-(E\d)[-_](full|high|pruned)", checkpoint)
    return {"family": found[1], "variant": found[2]} if found else {"family": None}


def _same_model(row: Row, run: Row) -> bool:
    if (row["family"], row["variant"]) != (run["family"], run.get("variant")):
        return False
    if pd.isna(run["n_params"]):
        return False
    difference = abs(run["n_params"] - row["params_published"])
    return difference <= SAME_SIZE * row["params_published"]


def _compared(rows: list[Row], keys: list[str]) -> pd.DataFrame:
    """Published, reproduced and difference, rounded; no difference on another test set."""
    ends = ("_published", "", "_low", "_high", "_difference")
    metrics = [metric + end for metric in METRICS for end in ends]
    names = [*keys, "params_published", "n_params", *metrics, "n", "n_failed"]
    table = pd.DataFrame(rows, columns=[*names, "test_set"])
    same_set = table.pop("test_set") == PUBLISHED_ON
    for metric in METRICS:
        measured = [metric, f"{metric}_low", f"{metric}_high"]
        table[measured] = table[measured].astype(float).round(DECIMALS[metric])
        difference = table[metric] - table[f"{metric}_published"].astype(float)
        table[f"{metric}_difference"] = difference.where(same_set).round(DECIMALS[metric])
    return table.astype(dict.fromkeys(["params_published", "n_params", "n", "n_failed"], "Int64"))


def columns(rows: pd.DataFrame, intervals: bool = True) -> list[Column]:
    """What Markdown shows of a table of `ablation` or `pruning`."""
    if "mixer" in rows:
        model = Column("mixer", "model", lambda row: LABELS[row["mixer"]], align=TEXT)
    else:
        model = Column("family", "model", "{} {variant}", LABELS["noisy"], TEXT)
    printed = Column("params_published", form=lambda row: count(row["params_published"]), absent="")
    shown = [model, Column("n_params", "parameters", "{:,d}", printed)]
    for metric in METRICS:
        n = DECIMALS[metric]
        span = f" [{{{metric}_low:.{n}f}}, {{{metric}_high:.{n}f}}]" if intervals else ""
        digits = _decimals(rows[f"{metric}_published"])
        head = "reproduced" + " [95 %]" * intervals
        shown += [
            Column(f"{metric}_published", f"{HEADS[metric]} published", f"{{:.{digits}f}}", ""),
            Column(metric, head, f"{{:.{n}f}}{span}", ""),
            Column(f"{metric}_difference", "difference", f"{{:+.{n}f}}", ""),
        ]
    return [*shown, Column("n", "n", absent="")]


def _decimals(values: pd.Series) -> int:
    """As many as the authors print: the most that any value of the column needs."""
    return max((len(repr(value).partition(".")[2]) for value in values.dropna()), default=0)


def note(runs: pd.DataFrame) -> str:
    """The text below a table: test set, completeness, units, packages."""
    if runs.empty:
        return f"Published on {PUBLISHED_ON}; nothing is reproduced here yet."
    title, n = runs["test_set"].iloc[0], runs["n"].max()
    size = f"{n} files"
    if title == PUBLISHED_ON and (runs["n"] < N_PUBLISHED_ON).any():
        size = (
            f"incomplete, {runs['n'].min()} of {N_PUBLISHED_ON} files: the differences say little"
        )
    elif title != PUBLISHED_ON:
        size += f"; the published columns are on {PUBLISHED_ON}, so no difference is given"
    failed = int(runs["n_failed"].sum())
    left_out = f"; {failed} files failed and are left out where they did" if failed else ""
    packages = sorted({f"{k} {v}" for row in runs["versions"] for k, v in row.items()})
    return (
        f"Test set: {title}, {size}{left_out}. Mean over files with its bootstrap 95 % interval; "
        "PESQ in MOS-LQO, STOI in per cent, higher is better; difference = reproduced - published. "
        f"Estimates scored as {'/'.join(sorted(set(runs['quantize'])))}, by {', '.join(packages)}."
    )


def streaming(results: str | Path) -> PaperTable:
    """The quality that streaming costs, from metrics/ and streamed/ of a folder."""
    shown = [Column(key, key.replace("_", " "), align=TEXT) for key in ("test_set", "checkpoint")]
    for metric, head in (("pesq_wb", "PESQ-WB"), ("pesq_nb", "PESQ-NB"), ("stoi", "STOI %")):
        form = "{:.2f}" if metric == "stoi" else "{:.3f}"
        shown.append(Column(f"{metric}_file", f"{head} file", form))
        shown.append(Column(f"{metric}_stream", "stream", form))
    loss = Column("loss", "loss [95 %]", "{:+.3f} [{loss_low:+.3f}, {loss_high:+.3f}]")
    note = "A file is divided by the level of the whole utterance, a stream by the running one."
    return PaperTable(streamed(results), [*shown[:4], loss, *shown[4:], Column("n", "n")], note)


def streamed(results: str | Path) -> pd.DataFrame:
    """File and stream on the same clips, paired.

    A row per test set and checkpoint that was run both ways: metrics/<set>/<checkpoint>.csv with
    the level of the utterance, streamed/<set>/<checkpoint>.csv with the running one. loss = file -
    stream of PESQ-WB, with the 95 % interval of its mean.
    """
    rows, names = [], ("pesq_wb", "pesq_nb", "stoi")
    for path in sorted((Path(results) / "streamed").glob("*/*.csv")):
        whole = Path(results) / "metrics" / path.parent.name / path.name
        if whole.is_file():
            file, stream = (pd.read_csv(p, index_col="file") for p in (whole, path))
            loss = mean_interval((file["pesq_wb"] - stream["pesq_wb"]).dropna().to_numpy())
            row = {"test_set": path.parent.name, "checkpoint": path.stem, "n": loss.n}
            for name in names:
                scale = 100 if name == "stoi" else 1
                row[f"{name}_file"] = scale * file[name].mean()
                row[f"{name}_stream"] = scale * stream[name].mean()
            rows.append(row | {"loss": loss.mean, "loss_low": loss.low, "loss_high": loss.high})
    metrics = [f"{name}_{way}" for name in names for way in ("file", "stream")]
    keys = ["test_set", "checkpoint", "n", *metrics, "loss", "loss_low", "loss_high"]
    return pd.DataFrame(rows, columns=keys).round(3)
