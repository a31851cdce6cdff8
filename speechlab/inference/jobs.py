"""Which files a command reads and writes: inputs to jobs.

files, folders, patterns ─ _find ─► Job(source, target) ─ plan ─► jobs without collisions
file ─ single ─► a job whose output is a named file
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from speechlab.audio.files import SUFFIXES, UNREADABLE, format_of
from speechlab.audio.folders import identity, listing
from speechlab.errors import UserError

LOG = logging.getLogger(__name__)
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


def single(
    inputs: Iterable[str | Path],
    output: str | Path,
    overwrite: bool,
    parts: Sequence[str] = ("",),
) -> Job | None:
    """The job of one file where `output` names a file; None where it names a folder.

    A name with the ending of a sound file is a file, unless it is a folder already or ends in a
    slash. With parts s1 and s2, out.wav stands for out_s1.wav and out_s2.wav. There is no log, so
    an existing file is replaced only with `overwrite`. UserError for more than one input file, for
    an ending that cannot be written, and for an output that exists or is the input.
    """
    path, inputs = Path(output), list(inputs)
    sounds = path.suffix.lower() in (*SUFFIXES, *UNREADABLE)
    if not sounds or path.is_dir() or str(output).endswith(("/", os.sep)):
        return None
    format_of(path)
    source = Path(inputs[0]) if inputs else Path()
    if len(inputs) != 1 or source.is_dir() or (_is_pattern(source) and not os.path.lexists(source)):
        raise UserError(f"{path}: names one file, for one input file; for more, name a folder")
    first, *others = (path.with_stem("_".join(filter(None, (path.stem, part)))) for part in parts)
    for target in (first, *others):
        _refuse_file_above(target.absolute())
        if target.exists() and identity(target) == identity(source):
            raise UserError(f"{target}: is the input, and would be overwritten; {OTHER}")
        if os.path.lexists(target) and not overwrite:
            raise UserError(f"{target}: exists; {OTHER}, or use --overwrite")
    LOG.info("files: 1, into %s", ", ".join(map(str, (first, *others))))
    return Job(source, first, others=tuple(others))


def _is_pattern(name: str | Path) -> bool:
    return bool(re.search(r"[*?[]", str(name)))


def plan(
    inputs: Iterable[str | Path],
    output: Path,
    parts: Sequence[str] = ("",),
    tell: Callable[[str], Any] = lambda line: None,
) -> list[Job]:
    """Jobs of files, folders and patterns: outputs are `<output>/<part>/<relative path>.wav`.

    parts: folders in `output`, each with one file per input; default `output` itself.
    tell: receives one line for each input with files that are not read as sound.

    A path is relative to the input folder, to the part of a pattern before its first wildcard, or
    to the file's own folder. Folders but `output` are searched for sound files (`audio.folders`).
    An unreadable folder inside an input is a job with a fault; such jobs come first.
    Raises UserError for an input without sound files, for two inputs with one output, for an output
    that is an input, and for a file in the place of a folder.
    """
    jobs: dict[Path, Job] = {}
    faulty: dict[Path | tuple[int, int], Job] = {}
    for given in inputs:
        found = [_in_parts(job, output, parts) for job in _find(given, output, tell)]
        if not found:
            raise UserError(f"{given}: no sound files there ({', '.join(SUFFIXES)})")
        faulty |= {identity(job.source): job for job in found if job.fault}
        for job in (job for job in found if not job.fault):
            other = jobs.setdefault(job.target, job)
            if identity(other.source) != identity(job.source):
                raise UserError(
                    f"{other.source} and {job.source} would both become {job.target}; "
                    "rename one, or take two outputs"
                )
    sources = {identity(job.source): job.source for job in jobs.values()}
    for job in jobs.values():
        above = next((parent for parent in job.target.parents if parent in jobs), None)
        if above:
            raise UserError(f"{above} would be a file and the folder of {job.target}; rename one")
        for target in job.targets:
            _refuse_file_above(target)
            if target.exists() and identity(target) in sources:
                raise UserError(f"{target}: is an input, and would be overwritten; {OTHER}")
    LOG.info("files: %d, into %s", len(jobs), output)
    return [*faulty.values(), *jobs.values()]


def _refuse_file_above(target: Path) -> None:
    """UserError where a file has the name of a folder that the target needs."""
    there = next(path for path in target.parents if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(f"{there}: is no folder, and {target} needs one of that name; {OTHER}")


def _in_parts(job: Job, output: Path, parts: Sequence[str]) -> Job:
    first, *others = (output / part / job.target.relative_to(output) for part in parts)
    return replace(job, target=first, others=tuple(others))


def _target(source: Path, root: Path, output: Path) -> Path:
    target = output / source.relative_to(root)
    sound = target.suffix.lower() in SUFFIXES
    return target.with_name((target.stem if sound else target.name) + ".wav")


def _find(given: str | Path, output: Path, tell: Callable[[str], Any]) -> Iterator[Job]:
    """The jobs of one input."""
    path, pattern = Path(given), ()
    try:
        if not os.path.lexists(path):
            path, pattern = _split(path)
        if not path.is_dir():
            yield Job(path, _target(path, path.parent, output))
            return
        if output.exists() and identity(output) == identity(path):
            raise UserError(f"{path}: is the input and the output folder; {OTHER}")
        found = listing(path, lambda parts, so_far: _fits(parts, pattern, so_far), output)
        for inner, reason in found.unreadable.items():
            fault = f"{path / inner}: cannot be read ({reason})"
            fault += "; change its permissions, or leave it out"
            if not inner.parts:
                raise UserError(fault)
            yield Job(path / inner, output / inner, fault)
        yield from (Job(path / inner, _target(path / inner, path, output)) for inner in found.files)
        if found.left_out:
            tell(f"{given}: left out: {found.left_out}")
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}; leave it out") from error


def _split(given: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder before the first wildcard, and the rest of the pattern."""
    parts = given.parts
    first = next((i for i, part in enumerate(parts) if _is_pattern(part)), len(parts))
    root = Path(*parts[:first])
    if first == len(parts) or not root.is_dir():
        raise UserError(f"{given}: no such file or folder; check the name")
    return root, parts[first:]


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...], so_far: bool = False) -> bool:
    """Whether a path, or a folder above it, matches; `so_far`: or could with more parts."""
    if not pattern:
        return True
    if not parts:
        return so_far
    if pattern[0] == "**":
        return _fits(parts, pattern[1:], so_far) or _fits(parts[1:], pattern, so_far)
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:], so_far)
