"""The rows of a run on disk: a CSV file that a rerun resumes, and its settings beside it.

`<output>.partial` grows row by row; at the end `<output>` holds all rows in the order of the test
set. `<name>.json` keeps the settings, so that rows of two different runs never mix.
"""

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from speechlab.errors import UserError, reason
from speechlab.progress import Report
from speechlab.storage.atomic import replacing

Row = tuple[str, ...]  # the cells of a line; the first name the row
TEXT = ("failed", "warnings", "inputs")  # columns that are no numbers
NOT_YET = "not scored yet"  # reason of a metric that a row lacks
UNCOMPARED = ("versions", "n_files")  # settings that may differ while no row is added

REMEDY = "remove it or choose another output"


def cell(value: float) -> str:
    """6 significant digits; empty where there is no value."""
    return "" if math.isnan(value) else f"{value:.6g}"


def failures(reasons: Mapping[str, str]) -> str:
    """Reasons by metric as a cell: "metric: reason; ..."."""
    return "; ".join(f"{name}: {' '.join(reason.split())}" for name, reason in reasons.items())


def each_reason(failed: str) -> list[tuple[str, str, str]]:
    """The parts of a cell of `failures`, each in three: metric, ": ", reason."""
    return [part.partition(": ") for part in failed.split("; ") if part]


def joined(failed: str, reasons: Mapping[str, str]) -> str:
    """A cell of `failures` with the reasons of metrics that it lacked so far."""
    old = "; ".join("".join(part) for part in each_reason(failed) if part[2] != NOT_YET)
    new = failures(reasons)
    return "; ".join(dict.fromkeys(filter(None, (old, new))))


def lacking(failed: str) -> tuple[str, ...]:
    """The metrics that a row lacks, by its cell `failed`."""
    return tuple(name for name, _, reason in each_reason(failed) if reason == NOT_YET)


def partial(output: Path) -> Path:
    """The file that grows row by row."""
    return output.with_name(output.name + ".partial")


def kept_metrics(output: Path) -> tuple[str, ...]:
    """The metrics of the rows on disk; none where there are no rows or settings."""
    if not output.exists() and not partial(output).exists():
        return ()
    try:
        settings = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
        return tuple(settings["metrics"]) if "n_files" in settings else ()
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def refuse_unwritable(output: Path) -> None:
    """UserError where no row could be written, before any work; it creates nothing.

    A complete run may be in a folder where nothing can be written.
    """
    if output.is_file():
        return
    folder = next(path for path in output.absolute().parents if path.exists())
    if output.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"{folder} is no folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = f"no permission in {folder}"
    else:
        return
    raise UserError(f"{output} cannot be written: {reason}; choose another output")


class Rows:
    """Rows by name. UserError where the rows on disk are damaged or of another run.

    A torn last line is dropped. The first cell is the file.

    output: the CSV file
    header: names of the columns
    settings: of the run; a rerun must have the same, and may have more metrics
    optional: columns that rows of an older version lack
    n_names: number of first cells that name a row, joined by a blank; 1 where a file has one row
    """

    def __init__(
        self,
        output: Path,
        header: Row,
        settings: dict[str, Any],
        n_names: int = 1,
        optional: Sequence[str] = (),
    ) -> None:
        if output.suffix != ".csv":
            raise UserError(f"{output}: the output must end in .csv")
        self.output, self.header, self.settings = output, header, settings
        self.n_names, self.optional = n_names, tuple(optional)
        self.partial = partial(output)
        self.sidecar = output.with_suffix(".json")
        self.kept = self._kept_settings()
        self.done = self._read(self.output) | self._read(self.partial)

    def refuse_strangers(self, names: Iterable[str]) -> None:
        """UserError for rows whose name is not in `names`: the test set has changed."""
        strangers = sorted(self.done.keys() - set(names))
        if strangers:
            raise UserError(
                f"{self.output}: the test set has no file of {len(strangers)} rows, the first is "
                f"{strangers[0]}; {REMEDY}"
            )

    def cells(self, name: str) -> dict[str, str]:
        """A row by column; empty where there is none."""
        return dict(zip(self.header, self.done.get(name, ()), strict=False))

    @contextlib.contextmanager
    def appending(self) -> Iterator[Callable[[Row], None]]:
        """A function that adds a row; the row is in the file when it returns."""
        if self.done and self.kept.get("versions") != self.settings.get("versions"):
            raise UserError(
                f"{self.output}: begun with other package versions (see {self.sidecar.name}); "
                f"restore them, or {REMEDY}"
            )
        begun = _lines([self.header, *self._read(self.partial).values()])
        with _writing(self.output):
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._write_settings()
            _write(self.partial, begun)
            file = self.partial.open("ab", buffering=0)  # a row that was not written is not retried
        with file:

            def append(row: Row) -> None:
                with _writing(self.partial):
                    file.write(_lines([row]).encode())
                self.done[self._name(row)] = row

            yield append

    def fill(
        self, made: Iterable[Sequence[Row]], n_done: int, n_files: int, progress: bool
    ) -> None:
        """Append the rows of each file as they are made, and report the progress."""
        n_failed, label = 0, f"scores of {self.output.stem}"
        at = self.header.index("failed")
        with (
            self.appending() as append,
            Report(label, n_files, initial=n_done, shown=progress) as report,
        ):
            for rows in made:
                for row in rows:
                    append(row)
                n_failed += any(row[at] for row in rows)
                report.outcome = f"{n_failed} new files failed; rows: {self.output}"
                report.update()

    def finish(self, order: Iterable[str]) -> None:
        """Write all rows to `output`, in this order."""
        rows = [self.done[name] for name in order if name in self.done]
        with _writing(self.output):
            _write(self.output, _lines([self.header, *rows]))
            self._write_settings()
            self.partial.unlink(missing_ok=True)

    def frame(self, names: Iterable[str]) -> pd.DataFrame:
        """Rows of these names as they are on disk, NaN for an empty number."""
        frame = pd.DataFrame([self.done[name] for name in names], columns=list(self.header))
        for column in self._numbers(self.header):
            frame[column] = [float(value or "nan") for value in frame[column]]
        return frame

    def _kept_settings(self) -> dict[str, Any]:
        begun = self.output.exists() or self.partial.exists()
        if not self.sidecar.exists():
            if begun:
                raise UserError(
                    f"{self.output}: {self.sidecar.name} beside it is missing; {REMEDY}"
                )
            return {}
        try:
            kept = json.loads(self.sidecar.read_text(encoding="utf-8"))
        except ValueError:
            kept = None
        if not isinstance(kept, dict) or "n_files" not in kept:
            raise UserError(f"{self.sidecar}: not the settings of a run; {REMEDY}")
        asked = json.loads(json.dumps(self.settings))  # with JSON's types
        keys = [key for key in asked | kept if key not in UNCOMPARED]
        other = [key for key in keys if not _agree(key, kept.get(key), asked.get(key))]
        if begun and other:
            raise UserError(
                f"{self.output}: holds another run, which differs in {', '.join(other)}; {REMEDY}"
            )
        return kept

    def _write_settings(self) -> None:
        settings = self.settings | {"n_files": len({row[0] for row in self.done.values()})}
        _write(self.sidecar, json.dumps(settings, indent=2) + "\n")

    def _read(self, path: Path) -> dict[str, Row]:
        if not path.exists():
            return {}
        whole = path.read_bytes()
        whole = whole[: whole.rfind(b"\n") + 1]  # a line that was being written is not a row
        try:
            lines = [tuple(line) for line in csv.reader(io.StringIO(whole.decode("utf-8")))]
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: no table of this command; {REMEDY}") from error
        if not lines:
            return {}
        header, metrics = lines[0], self.settings.get("metrics", ())
        fewer = {*metrics, *self.optional} - {*header}
        if header != tuple(column for column in self.header if column not in fewer):
            raise UserError(f"{path}: has other columns; {REMEDY}")
        rows = {}
        absent = failures(dict.fromkeys((name for name in metrics if name in fewer), NOT_YET))
        for number, line in enumerate(lines[1:], start=2):
            cells = dict(zip(header, line, strict=False))
            numbers = [cells.get(column, "") for column in self._numbers(header)]
            if len(line) != len(header) or not all(map(_is_number, numbers)):
                raise UserError(f"{path}: line {number} is damaged; delete that line")
            cells["failed"] = "; ".join(filter(None, (cells.get("failed"), absent)))
            rows[self._name(line)] = tuple(cells.get(column, "") for column in self.header)
        return rows

    def _numbers(self, header: Row) -> list[str]:
        return [column for column in header[self.n_names :] if column not in TEXT]

    def _name(self, row: Row) -> str:
        return " ".join(row[: self.n_names])


def _agree(key: str, kept: Any, asked: Any) -> bool:
    """Whether a setting of the rows on disk is that of this run, which may add metrics."""
    added = key == "metrics" and isinstance(kept, list) and isinstance(asked, list)
    return kept == asked or (added and asked[: len(kept)] == kept)


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _lines(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fault = f"{path} cannot be written: {reason(error)}; choose another output"
        raise UserError(fault) from error


def _write(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")
