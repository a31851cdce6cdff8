"""Tables of the study: what is published beside what is reproduced here, and their difference.

metrics/<test set>/<checkpoint>.csv (a row per file) -> tables/*.csv and *.md -> figures/*.svg, all
under results/. `python -m speechlab.report.cleanumamba` rebuilds every table and figure, and the
results block of README.md, from the per-file CSVs and the published tables alone: same input,
same bytes.
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from speechlab.errors import UserError
from speechlab.evaluation.statistics import mean_interval
from speechlab.report import figures
from speechlab.storage.atomic import replacing

RESULTS = Path("results")
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
SAME_SIZE = 0.01  # published sizes are rounded: within one per cent it is the same model
WAYS = ("file", "stream")
README_MARKS = ("<!-- results:begin -->", "<!-- results:end -->")

Row = dict[str, Any]


def published_table(name: str, folder: str | Path = RESULTS / "published") -> pd.DataFrame:
    """A table as published ("cleanumamba_ablation"), its sizes as numbers.

    Columns params_published and <metric>_published, and those that name the model.
    """
    path = Path(folder) / f"{name}.csv"
    if not path.is_file():
        raise UserError(f"{path}: no such table; restore it from the repository")
    table = pd.read_csv(path)
    table["params_published"] = table.pop("params").map(number)
    return table.rename(columns={metric: f"{metric}_published" for metric in METRICS})


def number(text: str) -> int:
    """A size as papers print it: 451K -> 451000"""
    digits, unit = re.fullmatch(r"([\d.]+)([KM])", text).groups()
    return round(float(digits) * {"K": 1e3, "M": 1e6}[unit])


def reproduced(*folders: str | Path) -> pd.DataFrame:
    """The runs in folders of per-file CSVs, one row each, by name; no folder, no rows.

    Where two folders have a run of one name, that of the first counts.

    Columns: checkpoint, n_params, n, n_failed (files that lack a metric), <metric>, <metric>_low
    and <metric>_high (mean, ends of its 95 % interval; STOI in per cent), test_set, versions,
    quantize.
    """
    metrics = [metric + end for metric in METRICS for end in ("", "_low", "_high")]
    about = ["test_set", "versions", "quantize"]
    columns = ["checkpoint", "n_params", "n", "n_failed", *metrics, *about]
    found = {path.name: path for folder in folders[::-1] for path in Path(folder).glob("*.csv")}
    rows = [_run(found[name]) for name in sorted(found)]
    return pd.DataFrame(rows, columns=columns).astype({"n_params": "Int64"})


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
    """The mixer ablation, one row per mixer, then the noisy files.

    Mamba-2 has no published row; a checkpoint that was not run has no reproduced columns.
    """
    printed = {row["mixer"]: row for row in published.to_dict("records")}
    measured = {row["checkpoint"]: row for row in runs.to_dict("records")}
    rows = [
        {"mixer": mixer, "checkpoint": name} | printed.get(mixer, {}) | measured.get(name, {})
        for mixer, name in MIXERS.items()
    ]
    if "noisy" in measured:
        rows.append({"mixer": "noisy"} | measured["noisy"])
    return _compared(rows, ["mixer", "checkpoint"])


def pruning(published: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Size against quality, one row per published model; a run belongs to the row of its size.

    A run of these families that has no published size is a row of its own; the noisy files end it.
    """
    left = [run | _family(run["checkpoint"]) for run in runs.to_dict("records")]
    rows = []
    for printed in published.to_dict("records"):
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
    """Published, reproduced, difference, rounded; on another test set there is no difference."""
    metrics = [
        metric + end
        for metric in METRICS
        for end in ("_published", "", "_low", "_high", "_difference")
    ]
    columns = [*keys, "params_published", "n_params", *metrics, "n", "n_failed"]
    table = pd.DataFrame(rows, columns=[*columns, "test_set"])
    same_set = table.pop("test_set") == PUBLISHED_ON
    for metric in METRICS:
        ends = [metric, f"{metric}_low", f"{metric}_high"]
        table[ends] = table[ends].astype(float).round(DECIMALS[metric])
        difference = table[metric] - table[f"{metric}_published"].astype(float)
        table[f"{metric}_difference"] = difference.where(same_set).round(DECIMALS[metric])
    return table.astype(dict.fromkeys(["params_published", "n_params", "n", "n_failed"], "Int64"))


def markdown(table: pd.DataFrame, runs: pd.DataFrame, intervals: bool = True) -> str:
    """A table of `ablation` or `pruning` for people, and under it what its numbers mean."""
    heads = ["model", "parameters"]
    for metric in METRICS:
        span = " [95 %]" if intervals else ""
        heads += [f"{HEADS[metric]} published", f"reproduced{span}", "difference"]
    heads.append("n")
    decimals = {metric: _decimals(table[f"{metric}_published"]) for metric in METRICS}
    rows = [_cells(row, decimals, intervals) for row in table.to_dict("records")]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return markdown_table(lines) + f"\n{note(runs)}\n"


def _decimals(values: pd.Series) -> int:
    """As many as the authors print: the most that any value of the column needs."""
    return max((len(repr(value).partition(".")[2]) for value in values.dropna()), default=0)


def _cells(row: Row, decimals: dict[str, int], intervals: bool) -> list[str]:
    exact = _text(row["n_params"], ",d")
    n_params = exact or ("" if pd.isna(row["params_published"]) else count(row["params_published"]))
    cells = [_model(row), n_params]
    for metric in METRICS:
        n = DECIMALS[metric]
        span = (
            f" [{row[f'{metric}_low']:.{n}f}, {row[f'{metric}_high']:.{n}f}]" if intervals else ""
        )
        cells.append(_text(row[f"{metric}_published"], f".{decimals[metric]}f"))
        cells.append(_text(row[metric], f".{n}f", span))
        cells.append(_text(row[f"{metric}_difference"], f"+.{n}f"))
    return [*cells, _text(row["n"], "d")]


def count(n: float) -> str:
    """A number of parameters as papers print it: 492K, 1.94M."""
    return f"{n / 1e6:#.3g}M" if n >= 1e6 else f"{n / 1e3:.0f}K"


def _model(row: Row) -> str:
    if "noisy" in (row.get("mixer"), row.get("variant")):
        return figures.LABELS["noisy"]
    return figures.LABELS[row["mixer"]] if "mixer" in row else f"{row['family']} {row['variant']}"


def _text(value: Any, form: str, tail: str = "") -> str:
    return "" if pd.isna(value) else f"{value:{form}}{tail}"


def note(runs: pd.DataFrame) -> str:
    """What stands under a table: test set, completeness, units, packages."""
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


def per_file(checkpoint: str, test_set: str, *metrics: str | Path) -> Path | None:
    """<test_set>/<checkpoint>.csv in the first of these folders that has it."""
    paths = [Path(folder) / test_set / f"{checkpoint}.csv" for folder in metrics]
    return next((path for path in paths if path.is_file()), None)


def both(
    results: str | Path,
    test_set: str = TEST_SET,
    published: str | Path | None = None,
    output: str | Path | None = None,
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """The two CleanUMamba tables by name, and the runs they are made of.

    results: the folder with metrics/<test_set>/; published: that of the published tables, where it
    is not in `results`; output: another folder like `results`, for the runs that this lacks.
    """
    folders = [results] if output is None else [results, output]
    runs = reproduced(*(Path(folder) / "metrics" / test_set for folder in folders))
    folder = published or Path(results) / "published"
    makers = {"cleanumamba_ablation": ablation, "cleanumamba_pruning": pruning}
    return {name: make(published_table(name, folder), runs) for name, make in makers.items()}, runs


def write(
    results: str | Path,
    test_set: str = TEST_SET,
    published: str | Path | None = None,
    output: str | Path | None = None,
) -> list[Path]:
    """Write tables and figures of a test set under `output`, else `results` (see `both`)."""
    tables, runs = both(results, test_set, published, output)
    output = Path(output or results)
    pages = {f"{name}_{test_set}": (table, markdown(table, runs)) for name, table in tables.items()}
    written = write_tables(output / "tables", pages)
    draw = {
        "cleanumamba_ablation": figures.mixers,
        "cleanumamba_pruning": figures.pesq_against_parameters,
    }
    for name, table in tables.items():
        path = output / "figures" / f"{name}_{test_set}.svg"
        written.append(figures.save(draw[name](table), path))
    return written


def replace_text(path: Path, text: str) -> None:
    """Write a table or a page, whole or not at all, with the same bytes on every system."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def markdown_table(lines: Iterable[Iterable[str]]) -> str:
    """Lines of cells, those of the head and under it included, as Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_tables(folder: Path, tables: Mapping[str, tuple[pd.DataFrame, str]]) -> list[Path]:
    """Write each table and its page, by their name, as NAME.csv and NAME.md: their paths."""
    written = []
    for name, (table, text) in tables.items():
        path = folder / f"{name}.csv"
        replace_text(path, table.to_csv(index=False, lineterminator="\n"))
        replace_text(path.with_suffix(".md"), text)
        written += [path, path.with_suffix(".md")]
    return written


def streamed(results: str | Path) -> pd.DataFrame:
    """What streaming costs in quality: file and stream on the same clips, paired.

    A row per test set and checkpoint that was run both ways: metrics/<set>/<checkpoint>.csv with
    the level of the utterance, streamed/<set>/<checkpoint>.csv with the running one. loss = file -
    stream of PESQ-WB, with the 95 % interval of its mean.
    """
    rows = []
    for path in sorted((Path(results) / "streamed").glob("*/*.csv")):
        whole = Path(results) / "metrics" / path.parent.name / path.name
        if whole.is_file():
            file, stream = (pd.read_csv(p, index_col="file") for p in (whole, path))
            loss = mean_interval((file["pesq_wb"] - stream["pesq_wb"]).dropna().to_numpy())
            row = {"test_set": path.parent.name, "checkpoint": path.stem, "n": loss.n}
            for name in ("pesq_wb", "pesq_nb", "stoi"):
                scale = 100 if name == "stoi" else 1
                row[f"{name}_file"] = scale * file[name].mean()
                row[f"{name}_stream"] = scale * stream[name].mean()
            rows.append(row | {"loss": loss.mean, "loss_low": loss.low, "loss_high": loss.high})
    metrics = [f"{name}_{way}" for name in ("pesq_wb", "pesq_nb", "stoi") for way in WAYS]
    columns = ["test_set", "checkpoint", "n", *metrics, "loss", "loss_low", "loss_high"]
    return pd.DataFrame(rows, columns=columns).round(3)


def streamed_markdown(table: pd.DataFrame) -> str:
    """The table of `streamed` for people."""
    heads = ["test set", "checkpoint", "PESQ-WB file", "stream", "loss [95 %]"]
    heads += ["PESQ-NB file", "stream", "STOI % file", "stream", "n"]
    lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    for row in table.to_dict("records"):
        cells = [row["test_set"], row["checkpoint"]]
        for name, n in (("pesq_wb", 3), ("pesq_nb", 3), ("stoi", 2)):
            cells += [f"{row[f'{name}_{way}']:.{n}f}" for way in WAYS]
            if name == "pesq_wb":
                ends = f"[{row['loss_low']:+.3f}, {row['loss_high']:+.3f}]"
                cells.append(f"{row['loss']:+.3f} {ends}")
        lines.append([*cells, str(row["n"])])
    rows = markdown_table(lines)
    note = "A file is divided by the level of the whole utterance, a stream by the running one."
    return f"{rows}\n{note}\n"


def readme_block(results: str | Path) -> str:
    """The results as README shows them: both tables without intervals, and the figure."""
    tables, runs = both(results)
    ran = tables["cleanumamba_pruning"].dropna(subset="pesq_wb")
    shown = {
        "Mixers, one small CleanUMamba with each": tables["cleanumamba_ablation"],
        "Pruned CleanUMamba, the sizes reproduced": ran[ran["variant"] != "noisy"],
    }
    parts = []
    for title, table in shown.items():
        rows = markdown(table, runs, intervals=False).partition("\n\n")[0]
        parts.append(f"**{title}**\n\n{rows}\n")
    figure = f"results/figures/cleanumamba_pruning_{TEST_SET}.svg"
    parts.append(f"{note(runs)}\nIntervals and all published sizes: `results/tables/`.\n")
    parts.append(f"![PESQ-WB against the number of parameters]({figure})\n")
    return "\n".join(parts)


def update_readme(path: str | Path, block: str) -> None:
    """Put `block` between the marks of a README; UserError where the marks are not there."""
    path, (begin, end) = Path(path), README_MARKS
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise UserError(f"{path}: lacks the lines {begin} and {end}, between which results go")
    replace_text(path, f"{before}{begin}\n{block}{end}{after}")


def main() -> None:
    """Rebuild what is committed under results/ and in README.md, from the per-file CSVs."""
    parser = argparse.ArgumentParser(
        prog="python -m speechlab.report.cleanumamba", description=main.__doc__
    )
    parser.add_argument(
        "--root", type=Path, default=Path(), help="of the repository; default: here"
    )
    root = parser.parse_args().root
    from speechlab.report import separation, spectral

    try:
        write(root / RESULTS)
        spectral.write(root / RESULTS)
        separation.write(root / RESULTS)
        table = streamed(root / RESULTS)
        replace_text(root / RESULTS / "tables/streaming.csv", table.to_csv(index=False))
        replace_text(root / RESULTS / "tables/streaming.md", streamed_markdown(table))
        update_readme(root / "README.md", readme_block(root / RESULTS))
    except UserError as error:
        parser.exit(2, f"speechlab: {error}\n")


if __name__ == "__main__":
    main()
