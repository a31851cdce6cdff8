"""Every table and figure of the papers, and the results block of README.md: `make paper`.

results/published, benchmarks, metrics and streamed -> results/tables/*.csv and *.md,
results/figures/*.svg. The same input gives the same bytes.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from speechlab.errors import UserError
from speechlab.report import cleanumamba, figures, separation, spectral
from speechlab.report.markdown import PaperTable, write_tables
from speechlab.storage import atomic

RESULTS = Path("results")
README_MARKS = ("<!-- results:begin -->", "<!-- results:end -->")
DRAWN = {  # names of tables begin so
    "cleanumamba_ablation": figures.mixers,
    "cleanumamba_pruning": figures.pesq_against_parameters,
}


def tables(
    given: str | Path, results: Sequence[str | Path] = (), test_set: str = cleanumamba.TEST_SET
) -> dict[str, PaperTable]:
    """Every table of scores and costs, by name.

    given: the folder with published/ and benchmarks/.
    results: folders with metrics/<test set>/<checkpoint>.csv; the first that has a file counts;
        default: `given`.
    test_set: of CleanUMamba's tables.
    """
    made = cleanumamba.tables(given, results, test_set)
    return made | spectral.tables(given, results) | separation.tables(given)


def write(made: Mapping[str, PaperTable], output: str | Path) -> list[Path]:
    """Write tables and their figures under `output`; returns the paths."""
    written = write_tables(Path(output) / "tables", made)
    for name, table in made.items():
        for draw in (draw for prefix, draw in DRAWN.items() if name.startswith(prefix)):
            written.append(figures.save(draw(table.rows), Path(output) / f"figures/{name}.svg"))
    return written


def readme_block(made: Mapping[str, PaperTable]) -> str:
    """The results as README shows them: CleanUMamba's tables without intervals, and a figure."""
    mixers = made[f"cleanumamba_ablation_{cleanumamba.TEST_SET}"]
    pruned = made[f"cleanumamba_pruning_{cleanumamba.TEST_SET}"]
    ran = pruned.rows.dropna(subset="pesq_wb")
    ran = ran[ran["variant"] != "noisy"]
    parts = []
    for title, rows in (
        ("Mixers, one small CleanUMamba with each", mixers.rows),
        ("Pruned CleanUMamba, the sizes reproduced", ran),
    ):
        shown = replace(mixers, rows=rows, columns=cleanumamba.columns(rows, intervals=False))
        parts.append(f"**{title}**\n\n{shown.grid()}")
    figure = f"results/figures/cleanumamba_pruning_{cleanumamba.TEST_SET}.svg"
    parts.append(f"{mixers.note}\nIntervals and all published sizes: `results/tables/`.\n")
    parts.append(f"![PESQ-WB against the number of parameters]({figure})\n")
    return "\n".join(parts)


def update_readme(path: str | Path, block: str) -> None:
    """Put `block` between the marks of a README; UserError if it lacks them."""
    path, (begin, end) = Path(path), README_MARKS
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise UserError(f"{path}: lacks the lines {begin} and {end}, between which results go")
    atomic.write(path, f"{before}{begin}\n{block}{end}{after}")


def main() -> None:
    """Rebuild the committed tables, figures and README's results from the committed CSVs."""
    parser = argparse.ArgumentParser(
        prog="python -m speechlab.report.paper", description=main.__doc__
    )
    parser.add_argument(
        "--root", type=Path, default=Path(), help="of the repository; default: here"
    )
    root = parser.parse_args().root
    try:
        made = tables(root / RESULTS)
        write(made | {"streaming": cleanumamba.streaming(root / RESULTS)}, root / RESULTS)
        update_readme(root / "README.md", readme_block(made))
    except UserError as error:
        parser.exit(2, f"speechlab: {error}\n")


if __name__ == "__main__":
    main()
