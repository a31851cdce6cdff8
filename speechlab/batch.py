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
from speechlab.files import replacing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

OTHER = "choose another output"


@dataclass(frozen=True)
class Job:
    """One file to make of another; or a folder, whose files are not known, with its fault."""

    source: Path
    target: Path
    fault: str = ""  # why this cannot be done


@dataclass(frozen=True)
class Result:
    """What became of a job: a row of the log. Numbers are None where nothing was written."""

    input: str
    output: str  # in the log, as seen from its folder
    status: str  # ok, skipped (there already; numbers of then), failed, started (a run that died)
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
    of `output` do not; links are followed, but never round in a circle. A folder inside of them
    that cannot be read is a job with a fault, before all others.
    Raises UserError where nothing is found, or two files would become one, or one itself.
    """
    jobs: dict[Path, Job] = {}
    shut: dict[Path | tuple[int, int], Job] = {}
    for given in inputs:
        found = list(_find(given, output))
        if not found:
            raise UserError(f"{given}: no sound files there ({', '.join(SUFFIXES)})")
        shut |= {_identity(job.source): job for job in found if job.fault}
        for job in (job for job in found if not job.fault):
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
    return [*shut.values(), *jobs.values()]


def _target(source: Path, root: Path, output: Path) -> Path:
    target = output / source.relative_to(root)
    sound = target.suffix.lower() in SUFFIXES
    return target.with_name((target.stem if sound else target.name) + ".wav")


def _find(given: str | Path, output: Path) -> Iterator[Job]:
    """The jobs of one input."""
    path, pattern = Path(given), ()
    try:
        if not os.path.lexists(path):
            path, pattern = _split(path)
        if not path.is_dir():
            yield Job(path, _target(path, path.parent, output))
            return
        own = _identity(output) if output.exists() else None
        if own == _identity(path):
            raise UserError(f"{path}: is the input and the output folder; {OTHER}")
        for parts, fault in _walk(path, pattern, (own,)):
            source = path.joinpath(*parts)
            if fault and not parts:
                raise UserError(fault)
            target = output.joinpath(*parts) if fault else _target(source, path, output)
            yield Job(source, target, fault)
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
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Sound files under a folder that fit the pattern, as parts of a path from the first folder.

    With each an empty fault; or the parts of a folder that cannot be read, with the fault.
    above: the folders it is in, none of which is entered again.
    """
    identity = _identity(folder)
    if identity in above:
        return
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        yield parts, f"{folder}: {reason}; mend its permissions, or leave it out"
        return
    for entry in entries:
        own = (*parts, entry.name)
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            if _fits(own, pattern, so_far=True):
                yield from _walk(folder / entry.name, pattern, (*above, identity), own)
        elif Path(entry.name).suffix.lower() in SUFFIXES and _fits(own, pattern):
            yield own, ""


def _is_folder(entry: os.DirEntry) -> bool:
    """Of a link, what it leads to; False, and no error, for one to itself.

    The listing tells a folder also where none of its entries may be looked at.
    """
    return entry.is_dir(follow_symlinks=False) or os.path.isdir(entry)  # noqa: PTH112


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

    def start(self, job: Job, made_with: str) -> None:
        """To be told before an output takes its name: a run that dies then leaves its settings.

        What lies there after that is this output or an older one, and has to be made again.
        """
        self.add(Result(str(job.source), str(job.target), "started", made_with=made_with))
        with _told(self.path):
            os.fsync(self._file.fileno())

    def add(self, result: Result) -> Result:
        values = asdict(result) | {"output": self._name(Path(result.output))}
        row = tuple("" if value is None else _text(value) for value in values.values())
        self.rows[row[1]] = row
        with _told(self.path):
            self._file.write(_lines([row]))
        return result

    def unsure(self, target: Path) -> bool:
        """Whether the last try failed or never ended: what lies there may be of an earlier run."""
        return self._last(target).get("status") in ("failed", "started")

    def forget_folders(self, targets: Iterable[Path]) -> None:
        """Drop the rows of folders that could not be read then, and now have files."""
        for target in targets:
            for folder in target.relative_to(self.path.parent).parents:
                self.rows.pop(self._name(self.path.parent / folder), None)

    def skipped(self, job: Job) -> Result:
        """The result of a job that is not done because its target is there."""
        row = self._last(job.target)
        numbers = {name: kind(row[name]) for name, kind in NUMBERS.items() if row.get(name)}
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
        with _told(self.path), replacing(self.path) as part:
            part.write_bytes(_lines([COLUMNS, *self.rows.values()]))


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
