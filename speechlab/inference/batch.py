"""A batch of files: which go where, and what became of each, in a log that a kill cannot tear."""

import contextlib
import csv
import functools
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from tqdm import tqdm

from speechlab.audio.files import SUFFIXES
from speechlab.errors import UserError
from speechlab.storage.atomic import replacing, unfinished
from speechlab.storage.locks import alone

OTHER = "choose another output"


@dataclass(frozen=True)
class Job:
    """What to make of a file; or of a folder, whose files are not known, with its fault."""

    source: Path
    target: Path  # by which the log knows it; of several files the first
    fault: str = ""  # why this cannot be done
    others: tuple[Path, ...] = ()  # the other files it becomes

    @property
    def targets(self) -> tuple[Path, ...]:
        """All files that it becomes: it is done when all are there."""
        return self.target, *self.others


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


def plan(inputs: Iterable[str | Path], output: Path, parts: Sequence[str] = ("",)) -> list[Job]:
    """What to make of files, folders and patterns: `<output>/<part>/<relative path>.wav`.

    parts: folders in `output`, in each of which a source has a file; default `output` itself.

    A path is relative to the folder that was given, to the part of a pattern before its first
    wildcard, or to the file's own folder. In folders only sound files count, hidden ones and those
    of `output` do not; links are followed, but never round in a circle. A folder inside of them
    that cannot be read is a job with a fault, before all others.
    Raises UserError where nothing is found, or two files would become one, or one itself.
    """
    jobs: dict[Path, Job] = {}
    shut: dict[Path | tuple[int, int], Job] = {}
    for given in inputs:
        found = [_in_parts(job, output, parts) for job in _find(given, output)]
        if not found:
            raise UserError(f"{given}: no sound files there ({', '.join(SUFFIXES)})")
        shut |= {_identity(job.source): job for job in found if job.fault}
        for job in (job for job in found if not job.fault):
            other = jobs.setdefault(job.target, job)
            if _identity(other.source) != _identity(job.source):
                raise UserError(
                    f"{other.source} and {job.source} would both become {job.target}; "
                    "rename one, or take two outputs"
                )
    sources = {_identity(job.source): job.source for job in jobs.values()}
    for job in jobs.values():
        above = next((parent for parent in job.target.parents if parent in jobs), None)
        if above:
            raise UserError(f"{above} would be a file and the folder of {job.target}; rename one")
        for target in job.targets:
            if target.exists() and _identity(target) in sources:
                raise UserError(f"{target}: is an input, and would be overwritten; {OTHER}")
    return [*shut.values(), *jobs.values()]


def _in_parts(job: Job, output: Path, parts: Sequence[str]) -> Job:
    first, *others = (output / part / job.target.relative_to(output) for part in parts)
    return replace(job, target=first, others=tuple(others))


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


def run(
    jobs: Sequence[Job],
    path: Path,
    made_with: str,
    work: Callable[[Job, Callable[[float], Any], Callable[[], Any]], Result],
    overwrite: bool = False,
    progress: bool = True,
    tell: Callable[[str], Any] = lambda line: None,
) -> list[Result]:
    """Do the jobs one after another, a result for each, with the log in `path`.

    made_with: see `digest`. work: a job's; it is given what takes the part of the file that is done
    since last time, and what to call when all is written and nothing has its name yet. What is
    there already is skipped, unless `overwrite`. A job that fails with UserError gets its reason,
    in its result, in the log and by `tell`, and the rest go on.
    UserError before any work for an output of other settings, or that another run writes to.
    """
    results = []
    with alone(path.parent), Log(path) as log:
        if not overwrite:
            there = [job.target for job in jobs if any(map(Path.exists, job.targets))]
            log.refuse_others(there, made_with)
        log.forget_folders([job.target for job in jobs if not job.fault])
        for target in (target for job in jobs for target in job.targets):
            with contextlib.suppress(OSError):  # where it is in the way, the writer will tell
                unfinished(target).unlink()  # a killed run's
        with _bar(len(jobs), progress) as bar:
            for n_done, job in enumerate(jobs, start=1):
                there = all(map(Path.is_file, job.targets)) and not log.unsure(job.target)
                if there and not overwrite and not job.fault:
                    result = log.skipped(job)
                else:
                    result = _tried(
                        job, work, bar.update, functools.partial(log.start, job, made_with)
                    )
                bar.update(n_done - bar.n)
                if result.status == "ok":
                    result = replace(result, made_with=made_with)
                results.append(log.add(result))
                if result.status == "failed":
                    tell(result.reason)
    return results


def _tried(job: Job, work: Callable[..., Result], *callbacks: Callable[..., Any]) -> Result:
    try:
        if job.fault:
            raise UserError(job.fault)
        return work(job, *callbacks)
    except UserError as error:
        reason = " ".join(str(error).split())
        return Result(str(job.source), str(job.target), "failed", reason)


def _bar(n_files: int, progress: bool) -> tqdm:
    form = "{l_bar}{bar}| {n:.1f}/{total} files [{elapsed}<{remaining}]"
    return tqdm(total=n_files, bar_format=form, disable=None if progress else True)


def digest(model: nn.Module, *settings: Any) -> str:
    """What tells a model and settings from others: 12 hex digits."""
    total = hashlib.sha256(repr((model.config, *settings)).encode())
    for name, tensor in model.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:12]


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

    def knows(self, target: Path) -> bool:
        """Whether it has a row: what no run here ever began to make has none."""
        return self._name(target) in self.rows

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
