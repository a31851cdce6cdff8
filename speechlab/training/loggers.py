"""Logs of a training: always CSV, others by name.

A logger takes rows of two tables: `history`, one per interval of steps, and `validations`, one per
scoring of the dev files. Every row has its `step`.
"""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from speechlab.errors import UserError, reason, unknown
from speechlab.storage.atomic import write

Row = Mapping[str, float]
TABLES = ("history", "validations")


class Logger(Protocol):
    def log(self, table: str, row: Row) -> None:
        """Add a row, with its "step", to one of TABLES."""

    def close(self) -> None:
        """All rows are written."""


class CsvLogger:
    """history.csv and validations.csv in the run directory; a row is written at once.

    Rows after `step`, from a killed process after its last checkpoint, are dropped first: they will
    be logged again.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        self._paths = {table: folder / f"{table}.csv" for table in TABLES}
        self._columns = {table: _cut(path, step) for table, path in self._paths.items()}

    def log(self, table: str, row: Row) -> None:
        path, columns = self._paths[table], self._columns[table]
        if columns and tuple(row) != columns:
            unlike = sorted(set(row) ^ set(columns))
            raise UserError(f"{path}: has other columns than this row: {', '.join(unlike)}")
        lines = b"" if columns else _line(row)
        self._columns[table] = tuple(row)
        try:
            with path.open("ab") as file:
                file.write(lines + _line(map(_cell, row.values())))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({reason(error)})") from error

    def close(self) -> None:
        """Nothing to do."""


class TensorBoardLogger:
    """Event files in the folder `tensorboard` of the run; repeated steps hide the old ones."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(_missing("tensorboard")) from error
        purge = step + 1 if step else None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, table: str, row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(f"{table}/{name}", value, int(row["step"]))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbLogger:
    """A run of Weights & Biases; a resumed training resumes it.

    WANDB_MODE=offline keeps everything in the run directory; WANDB_PROJECT names the project
    (default: speechlab).
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(_missing("wandb")) from error
        identity = hashlib.sha256(f"{folder.name} {settings['created']}".encode()).hexdigest()
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "speechlab"),
                name=folder.name,
                id=identity[:16],
                resume="allow",
                dir=str(folder),
                config=dict(settings),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(f"wandb: {reason}; log in, or set WANDB_MODE=offline") from error
        for table in TABLES:  # the step is a column, so a repeated row is no error
            self._run.define_metric(f"{table}/*", step_metric=f"{table}/step")

    def log(self, table: str, row: Row) -> None:
        self._run.log({f"{table}/{name}": value for name, value in row.items()})

    def close(self) -> None:
        self._run.finish()


LOGGERS: dict[str, Callable[[Path, Mapping[str, Any], int], Logger]] = {
    "csv": CsvLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}


def started(
    names: Sequence[str], folder: Path, settings: Mapping[str, Any], step: int
) -> list[Logger]:
    """Loggers by name, always csv; they continue after `step`. UserError if one is missing.

    folder: the run directory; settings: its configuration.
    """
    for name in names:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
    with contextlib.ExitStack() as stack:
        outputs = []
        for name in dict.fromkeys(("csv", *names)):
            outputs.append(LOGGERS[name](folder, settings, step))
            stack.callback(outputs[-1].close)  # if a later one is missing
        stack.pop_all()
    return outputs


def _missing(package: str) -> str:
    return (
        f"the logger {package} needs the package {package}: run `pip install -e '.[loggers]'` in "
        f"the repository, or leave {package} out of `loggers`"
    )


def _cut(path: Path, step: int) -> tuple[str, ...]:
    """Drop rows after `step` and a torn last line; returns the columns, () without rows."""
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return ()
    kept = whole[: whole.rfind(b"\n") + 1]
    header, *rows = kept.decode().splitlines() or [""]
    columns = header.split(",")
    try:
        rows = [row for row in rows if int(row.split(",")[columns.index("step")]) <= step]
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: damaged; delete it or restore it") from error
    cut = "".join(f"{line}\n" for line in (header, *rows)).encode()
    if not rows:
        path.unlink()
    elif cut != whole:
        write(path, cut)
    return tuple(columns) if rows else ()


def _line(cells: Iterable[str]) -> bytes:
    """Names of columns and numbers need no quotes."""
    return (",".join(cells) + "\n").encode()


def _cell(value: float) -> str:
    """Every digit: a resumed run has the history of an uninterrupted one."""
    return "" if isinstance(value, float) and math.isnan(value) else repr(value)
