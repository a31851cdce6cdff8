"""A batch of files: which go where, and what became of each, in a log that a kill cannot tear."""

import contextlib
import csv
import errno
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

from speechlab.audio import SUFFIXES
from speechlab.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

OTHER = "choose another output"


@dataclass(frozen=True)
class Job:
    """One file to make of another."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Result:
    """What became of a job: a row of the log. Numbers are None where nothing was written."""

    input: str
    output: str  # in the log, as seen from its folder
    status: str  # ok, skipped (it was there already; numbers of then), failed
    reason: str = ""
    seconds: float | None = None  # of audio
    sample_rate: int | None = None  # Hz
    channels: int | None = None
    clipped: int | None = None  # samples beyond full scale, cut by an integer subtype
    rtf: float | None = None  # seconds of work per second of audio
    made_with: str = ""  # digest of the model and the settings


COLUMNS = tuple(field.name for field in fields(Result))
NUMBERS = {"seconds": float, "sample_rate": int, "channels": int, "clipped": int, "rtf": float}


def plan(inputs: Iterable[str | Path], output: Path) -> list[Job]:
    """What to make of files, folders and patterns: `<output>/<relative path>.wav`.

    A path is relative to the folder that was given, to the part of a pattern before its first
    wildcard, or to the file's own folder. In folders only sound files count, hidden ones and those
    of `output` do not; links are followed, but never round in a circle.
    Raises UserError where nothing is found, or two files would become one, or one itself.
    """
    jobs: dict[Path, Job] = {}
    for given in inputs:
        found = [
            Job(source, _target(source, root, output)) for root, source in _find(given, output)
        ]
        if not found:
            raise UserError(f"{given}: no sound files there ({', '.join(SUFFIXES)})")
        for job in found:
            other = jobs.setdefault(job.target, job)
            if _identity(other.source) != _identity(job.source):
                raise UserError(
                    f"{other.source} and {job.source} would both become {job.target}; "
                    "rename one, or enhance them into two outputs"
                )
    sources = {_identity(job.source): job.source for job in jobs.values()}
    for job in jobs.values():
        above = next((parent for parent in job.target.parents if parent in jobs), None)
        if above:
            raise UserError(f"{above} would be a file and the folder of {job.target}; rename one")
        if job.target.exists() and _identity(job.target) in sources:
            raise UserError(f"{job.target}: is an input, and would be overwritten; {OTHER}")
    return list(jobs.values())


def _target(source: Path, root: Path, output: Path) -> Path:
    target = output / source.relative_to(root)
    sound = target.suffix.lower() in SUFFIXES
    return target.with_name((target.stem if sound else target.name) + ".wav")


def _find(given: str | Path, output: Path) -> Iterator[tuple[Path, Path]]:
    """(root, file) of one input."""
    path, pattern = Path(given), ()
    try:
        if not os.path.lexists(path):
            path, pattern = _split(path)
        if not path.is_dir():
            yield path.parent, path
            return
        own = _identity(output) if output.exists() else None
        if own == _identity(path):
            raise UserError(f"{path}: is the input and the output folder; {OTHER}")
        for parts in _walk(path, pattern, (own,)):
            yield path, path.joinpath(*parts)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}; leave it out") from error


def _split(given: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder before the first wildcard, and the rest of the pattern."""
    parts = given.parts
    first = next((i for i, part in enumerate(parts) if re.search(r"[*?[]", part)), len(parts))
    root = Path(*parts[:first])
    if first == len(parts) or not root.is_dir():
        raise UserError(f"{given}: no such file or folder; check the name")
    return root, parts[first:]


def _walk(
    folder: Path, pattern: tuple[str, ...], above: tuple, parts: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Sound files under a folder that fit the pattern, as parts of a path from the first folder.

    above: the folders it is in, none of which is entered again.
    """
    identity = _identity(folder)
    if identity in above:
        return
    for path in sorted(folder.iterdir()):
        own = (*parts, path.name)
        if path.name.startswith("."):
            continue
        if os.path.isdir(path):  # noqa: PTH112  False, and no error, for a link to itself
            if _fits(own, pattern, so_far=True):
                yield from _walk(path, pattern, (*above, identity), own)
        elif path.suffix.lower() in SUFFIXES and _fits(own, pattern):
            yield own


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...], so_far: bool = False) -> bool:
    """Whether a path, or a folder that it is in, fits; `so_far`: or could with more parts."""
    if not pattern:
        return True
    if not parts:
        return so_far
    if pattern[0] == "**":
        return _fits(parts, pattern[1:], so_far) or _fits(parts[1:], pattern, so_far)
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:], so_far)


def _identity(path: Path) -> tuple[int, int] | Path:
    """What tells a file under all its names; one that is not there has its name alone."""
    try:
        status = path.stat()
    except OSError:
        return path
    return status.st_dev, status.st_ino


class Log:
    """A row per output, the last one counts: `with Log(path) as log: log.add(result)`.

    A row is on disk when `add` returns. Rows of other files that were made here before stay.
    """

    def __init__(self, path: Path) -> None:
        """UserError for a file of another kind; a torn last line is dropped without a word."""
        self.path = path
        self.rows: dict[str, tuple[str, ...]] = {}
        if path.exists():
            self._read()

    def __enter__(self) -> Self:
        self._rewrite()
        self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._rewrite()

    def add(self, result: Result) -> Result:
        values = asdict(result) | {"output": self._name(Path(result.output))}
        row = tuple("" if value is None else _text(value) for value in values.values())
        self.rows[row[1]] = row
        with _told(self.path):
            self._file.write(_lines([row]))
        return result

    def failed(self, target: Path) -> bool:
        """Whether the last try at a target failed: what lies there is of an earlier run."""
        return self._last(target).get("status") == "failed"

    def skipped(self, job: Job) -> Result:
        """The result of a job that is not done because its target is there."""
        row = self._last(job.target)
        numbers = {
            name: kind(row[name])
            for name, kind in NUMBERS.items()
            if row.get(name) and row["status"] != "failed"
        }
        made_with = row.get("made_with", "")
        reason = "the output is there already"
        return Result(
            str(job.source), str(job.target), "skipped", reason, **numbers, made_with=made_with
        )

    def refuse_others(self, targets: Iterable[Path], made_with: str) -> None:
        """UserError for a target that another model or other settings made."""
        for target in targets:
            if self._last(target).get("made_with", "") not in ("", made_with):
                raise UserError(
                    f"{target}: was made with another model or other settings; "
                    f"use --overwrite, or {OTHER}"
                )

    def _last(self, target: Path) -> dict[str, str]:
        """The last row of a target by column; empty where there is none."""
        row = self.rows.get(self._name(target))
        return dict(zip(COLUMNS, row, strict=True)) if row else {}

    def _name(self, target: Path) -> str:
        name = target.relative_to(self.path.parent).as_posix()
        return name.encode("utf-8", "backslashreplace").decode()

    def _read(self) -> None:
        with _told(self.path):
            whole = self.path.read_bytes()
        text = whole[: whole.rfind(b"\n") + 1].decode("utf-8", "replace")
        lines = [tuple(line) for line in csv.reader(io.StringIO(text, newline=""))]
        if lines and lines[0] != COLUMNS:
            raise UserError(f"{self.path}: is not the log of an earlier run; move it away")
        self.rows = {line[1]: line for line in lines[1:] if len(line) == len(COLUMNS)}

    def _rewrite(self) -> None:
        part = self.path.with_name(self.path.name + ".part")
        with _told(self.path):
            part.write_bytes(_lines([COLUMNS, *self.rows.values()]))
            part.replace(self.path)


def _text(value: object) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _lines(rows: Iterable[tuple[str, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")  # of names that are not Unicode


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system refuses, as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; look at its permissions and the disk"
        ) from error


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder and hold it for this process; UserError where another one works in it.

    The system lets go of it when the process ends, however that comes. Where it has no such locks
    (Windows, some network drives) nothing is held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"{folder}: no folder to write to ({error.strerror}); {OTHER}") from error
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            _lock(folder, handle)
        yield


def _lock(folder: Path, handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{folder}: another run writes there; wait for it, or {OTHER}") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
