"""What commands print: tables on stdout, messages on stderr."""

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechlab.errors import shown

QUIET = "SPEECHLAB_QUIET"  # as in `speechlab.progress`, which imports tqdm
OFFLINE = "SPEECHLAB_OFFLINE"  # as in `speechlab.weights.hub`


def tell(line: str) -> None:
    """A message on stderr, above a progress bar."""
    from speechlab.progress import on_stderr

    on_stderr(f"speechlab: {shown(line)}")


def say(line: object) -> None:
    """A line on stdout at once; control characters of names in it are escaped."""
    print(shown(line), flush=True)


def escape_all() -> None:
    """No character stops a command: escapes for those that the terminal's encoding lacks.

    Warnings become one line, whatever characters a name in them has.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = _warning


def _warning(message: Any, category: type, filename: str, lineno: int, line: str = "") -> str:
    return f"{shown(filename)}:{lineno}: {category.__name__}: {shown(message)}\n"


@contextlib.contextmanager
def surroundings(options: argparse.Namespace) -> Iterator[None]:
    """What a command prints and fetches.

    -q: only errors and warnings; -v: also what the package decided; --offline: nothing is fetched.
    """
    logger, handler = logging.getLogger("speechlab"), _Told()
    with contextlib.ExitStack() as stack:
        stack.callback(logger.setLevel, logger.level)
        stack.callback(logger.removeHandler, handler)
        logger.addHandler(handler)
        if options.quiet:
            stack.enter_context(_variable(QUIET))
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        if options.verbose:
            logger.setLevel(logging.INFO)
        if options.offline:
            stack.enter_context(_variable(OFFLINE))
        yield


@contextlib.contextmanager
def _variable(name: str) -> Iterator[None]:
    """The environment variable is set, also for the processes of the command."""
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


class _Told(logging.Handler):
    """Prints records as messages of the command."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(record.getMessage())


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per row under the column names; numbers are aligned to the right."""
    columns = {name: [name, *(_text(row[name]) for row in rows)] for name in rows[0]}
    for name, cells in columns.items():
        width = max(map(len, cells))
        right = all(isinstance(row[name], int | float | None) for row in rows)
        columns[name] = [cell.rjust(width) if right else cell.ljust(width) for cell in cells]
    for cells in zip(*columns.values(), strict=True):
        print("  ".join(cells).rstrip())


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else shown(value)


def print_settings(config: Any, prefix: str = "  ") -> None:
    """A configuration, or a mapping inside it, as KEY=VALUE lines, as --set takes them."""
    from speechlab.config import to_dict

    settings = config if isinstance(config, Mapping) else to_dict(config)
    for key, value in settings.items():
        if isinstance(value, Mapping):
            print_settings(value, f"{prefix}{key}.")
        else:
            print(f"{prefix}{key}={json.dumps(value)}")
