"""A paper's table is data: its rows, its columns and a note. One writer makes CSV and Markdown.

The CSV has every value of the rows. The Markdown shows the columns, and the note below them.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from speechlab.errors import UserError
from speechlab.storage.atomic import write

ABSENT = "–"
TEXT = "---"  # alignment of a column of words

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a Markdown table.

    key: name of the value in a row.
    head: title of the column.
    form: template of a cell, {} is the value and {name} another value of the row; or a function
        of the row.
    absent: text of a cell without a value; or the column that gives it.
    align: Markdown's rule below the title.
    """

    key: str
    head: str = ""
    form: str | Callable[[Row], str] = "{}"
    absent: "str | Column" = ABSENT
    align: str = "---:"

    def cell(self, row: Row) -> str:
        """The text for one row."""
        value = row[self.key]
        if pd.isna(value):
            return self.absent if isinstance(self.absent, str) else self.absent.cell(row)
        return self.form.format(value, **row) if isinstance(self.form, str) else self.form(row)


PAGE_COLUMNS = 7  # of a part of a wide table, besides the first column


@dataclass(frozen=True)
class PaperTable:
    """rows: every value; columns: those that the Markdown shows; note: the text below them."""

    rows: pd.DataFrame
    columns: Sequence[Column]
    note: str

    def csv(self) -> str:
        return self.rows.to_csv(index=False, lineterminator="\n")

    def grid(self, columns: Sequence[Column] = ()) -> str:
        """The Markdown table of all columns, or of these, without its note."""
        columns = columns or self.columns
        cells = [[column.cell(row) for column in columns] for row in records(self.rows)]
        heads = [column.head for column in columns]
        return markdown_table([heads, [column.align for column in columns], *cells])

    def markdown(self) -> str:
        return f"{self.grid()}\n{self.note}\n"

    def page(self) -> str:
        """Like `markdown`, in parts as wide as a page; each begins with the first column."""
        first, *others = self.columns
        parts = (others[i : i + PAGE_COLUMNS] for i in range(0, len(others), PAGE_COLUMNS))
        return "\n".join([*(self.grid([first, *part]) for part in parts), f"{self.note}\n"])


def records(table: pd.DataFrame) -> list[Row]:
    """Its rows as dictionaries."""
    return table.to_dict("records")


def markdown_table(lines: Iterable[Iterable[str]]) -> str:
    """Lines of cells as Markdown; the first two are titles and alignment."""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_tables(folder: Path, tables: Mapping[str, PaperTable]) -> list[Path]:
    """Write each table as NAME.csv and NAME.md; returns the paths."""
    written = []
    for name, table in tables.items():
        for suffix, text in ((".csv", table.csv()), (".md", table.markdown())):
            written.append(folder / (name + suffix))
            write(written[-1], text)
    return written


def read_table(path: str | Path, fix: str = "restore it from the repository") -> pd.DataFrame:
    """A CSV. UserError with the fix if there is none."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such table; {fix}")
    return pd.read_csv(path)


def read_counts(path: Path) -> pd.DataFrame:
    """Sizes and multiply-accumulates that `benchmarks/macs.py` wrote."""
    return read_table(
        path, "restore it from the repository, or write it with `python -m benchmarks.macs`"
    )


def per_file(checkpoint: str, test_set: str, folders: Iterable[str | Path]) -> Path | None:
    """metrics/<test_set>/<checkpoint>.csv in the first of these folders that has it."""
    paths = [Path(folder) / "metrics" / test_set / f"{checkpoint}.csv" for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def number(text: str) -> int:
    """A size as papers print it: 451K -> 451000"""
    digits, unit = re.fullmatch(r"([\d.]+)([KM])", text).groups()
    return round(float(digits) * {"K": 1e3, "M": 1e6}[unit])


def count(n: float) -> str:
    """A number of parameters as papers print it: 492K, 1.94M."""
    return f"{n / 1e6:#.3g}M" if n >= 1e6 else f"{n / 1e3:.0f}K"
