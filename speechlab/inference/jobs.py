"""Which files a command reads and writes: inputs to jobs.

files, folders, patterns ─ _find ─► Job(source, target) ─ plan ─► jobs without collisions
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from speechlab.audio.files import SUFFIXES
from speechlab.errors import UserError

OTHER = "choose another output"


@dataclass(frozen=True)
class Job:
    """An input file and its output files; or an unreadable folder with its fault."""

    source: Path
    target: Path  # the first output, which names the job in the log
    fault: str = ""  # why the job cannot be done
    others: tuple[Path, ...] = ()  # the other outputs

    @property
    def targets(self) -> tuple[Path, ...]:
        """All outputs: the job is done when all exist."""
        return self.target, *self.others


def plan(inputs: Iterable[str | Path], output: Path, parts: Sequence[str] = ("",)) -> list[Job]:
    """Jobs of files, folders and patterns: outputs are `<output>/<part>/<relative path>.wav`.

    parts: folders in `output`, each with one file per input; default `output` itself.

    A path is relative to the input folder, to the part of a pattern before its first wildcard, or
    to the file's own folder. Folders are searched for sound files; hidden files and those in
    `output` are left out. Links are followed, but no folder is entered from inside itself. An
    unreadable folder inside an input is a job with a fault; such jobs come first.
    Raises UserError for an input without sound files, for two inputs with one output, and for an
    output that is an input.
    """
    jobs: dict[Path, Job] = {}
    faulty: dict[Path | tuple[int, int], Job] = {}
    for given in inputs:
        found = [_in_parts(job, output, parts) for job in _find(given, output)]
        if not found:
            raise UserError(f"{given}: no sound files there ({', '.join(SUFFIXES)})")
        faulty |= {_identity(job.source): job for job in found if job.fault}
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
    return [*faulty.values(), *jobs.values()]


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
    """Sound files under a folder that match the pattern, as parts of a path from the first folder.

    Each has an empty fault. An unreadable folder has its parts and the fault. above: folders that
    contain this one, none of which is entered again.
    """
    identity = _identity(folder)
    if identity in above:
        return
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        yield parts, f"{folder}: {reason}; change its permissions, or leave it out"
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
    """Of a link, its target; False, without an error, for a link to itself.

    The listing identifies a folder even where the permission to examine its entries is missing.
    """
    return entry.is_dir(follow_symlinks=False) or os.path.isdir(entry)  # noqa: PTH112


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...], so_far: bool = False) -> bool:
    """Whether a path, or a folder above it, matches; `so_far`: or could with more parts."""
    if not pattern:
        return True
    if not parts:
        return so_far
    if pattern[0] == "**":
        return _fits(parts, pattern[1:], so_far) or _fits(parts[1:], pattern, so_far)
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:], so_far)


def _identity(path: Path) -> tuple[int, int] | Path:
    """The same value for all names of a file; the path itself where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return path
    return status.st_dev, status.st_ino
