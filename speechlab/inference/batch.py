"""Process a batch of files: one result per job, in a log that survives a kill.

    jobs ─ run ─► work(job) ─ write ─► output files (atomic), a row of the log

`enhance` and `separate` share all of this: skipping and overwriting, resuming, errors, the log.
"""

import contextlib
import csv
import functools
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

from speechlab.audio import files
from speechlab.errors import UserError, unknown
from speechlab.inference.jobs import OTHER, Job
from speechlab.models.base import Model
from speechlab.storage.atomic import replacing, unfinished
from speechlab.storage.locks import alone


@dataclass(frozen=True)
class Result:
    """The outcome of a job: a row of the log. Numbers are None where nothing was written."""

    input: str
    output: str  # in the log, relative to its folder
    status: str  # ok, skipped (exists; numbers of then), failed, started (the run was killed)
    reason: str = ""
    seconds: float | None = None  # of audio
    sample_rate: int | None = None  # Hz
    channels: int | None = None
    clipped: int | None = None  # samples beyond full scale, cut by an integer subtype
    rtf: float | None = None  # seconds of work per second of audio
    made_with: str = ""  # digest of the model and the settings


COLUMNS = tuple(field.name for field in fields(Result))
NUMBERS = {"seconds": float, "sample_rate": int, "channels": int, "clipped": int, "rtf": float}


def run(
    jobs: Sequence[Job],
    path: Path,
    made_with: str,
    work: Callable[..., Result],
    overwrite: bool = False,
    progress: bool = True,
    tell: Callable[[str], Any] = lambda line: None,
) -> list[Result]:
    """Do the jobs one after another: a result for each, also in the log.

    jobs: of `plan`.
    path: the log; its folder is the output.
    made_with: see `digest`.
    work: `work(job, advance=…, settle=…)` does a job; see `write` for the two callbacks.
    overwrite: process also the jobs whose outputs exist; these are skipped otherwise.
    progress: show a progress bar.
    tell: receives one line for each job that fails.

    A job that fails with UserError gets the reason in its result and in the log; the others
    continue. UserError before any work if another model, other settings or another run has written
    to the output.
    """
    results = []
    with alone(path.parent), Log(path) as log:
        if not overwrite:
            there = [job.target for job in jobs if any(map(Path.exists, job.targets))]
            log.refuse_others(there, made_with)
        log.forget_folders([job.target for job in jobs if not job.fault])
        for target in (target for job in jobs for target in job.targets):
            with contextlib.suppress(OSError):  # the writer reports what is in its way
                unfinished(target).unlink()  # of a killed run
        with _bar(len(jobs), progress) as bar:
            for n_done, job in enumerate(jobs, start=1):
                there = all(map(Path.is_file, job.targets)) and not log.unsure(job.target)
                if there and not overwrite and not job.fault:
                    result = log.skipped(job)
                else:
                    settle = functools.partial(log.start, job, made_with)
                    result = _tried(job, work, advance=bar.update, settle=settle)
                bar.update(n_done - bar.n)
                if result.status == "ok":
                    result = replace(result, made_with=made_with)
                results.append(log.add(result))
                if result.status == "failed":
                    tell(result.reason)
    return results


def _tried(job: Job, work: Callable[..., Result], **callbacks: Callable[..., Any]) -> Result:
    try:
        if job.fault:
            raise UserError(job.fault)
        return work(job, **callbacks)
    except UserError as error:
        reason = " ".join(str(error).split())
        return Result(str(job.source), str(job.target), "failed", reason)


def _bar(n_files: int, progress: bool) -> tqdm:
    form = "{l_bar}{bar}| {n:.1f}/{total} files [{elapsed}<{remaining}]"
    return tqdm(total=n_files, bar_format=form, disable=None if progress else True)


def digest(model: Model, *settings: Any) -> str:
    """Identifies a model and settings: 12 hex digits."""
    total = hashlib.sha256(repr((model.config, *settings)).encode())
    for name, tensor in model.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:12]


def write(
    recording: files.Recording,
    targets: Sequence[str | Path],
    estimates: Iterable[Tensor],
    subtype: str | None,
    advance: Callable[[float], Any],
    settle: Callable[[], Any],
) -> Result:
    """Write the estimates of a recording to one file per source.

    recording: the input; the outputs have its rate, channels and number of frames.
    targets: S paths.
    estimates: blocks (S, C, n) at the rate of the file.
    subtype: as "PCM_24"; None: that of the input, or PCM_16 where WAV does not have it.
    advance: called with the share of the file that was done since the last call.
    settle: called when all samples are written, before a file takes its name.

    `clipped` counts the samples of all targets. UserError for a failing model; then no file is new.
    """
    began = time.perf_counter()
    source, n_frames = recording.path, recording.n_frames
    try:
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            writers = [enter(_writer(recording, target, subtype)) for target in targets]
            for block in estimates:
                for writer, samples in zip(writers, block, strict=True):
                    writer.write(samples)
                advance(block.shape[-1] / n_frames)
            settle()
    except UserError:
        raise
    except Exception as error:  # any error of the model fails this file only
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{source}: the model failed: {reason}") from error
    seconds = n_frames / recording.file_rate
    return Result(
        str(source),
        str(targets[0]),
        "ok",
        seconds=seconds,
        sample_rate=recording.file_rate,
        channels=recording.n_channels,
        clipped=sum(writer.clipped for writer in writers),
        rtf=(time.perf_counter() - began) / seconds,
    )


def _writer(recording: files.Recording, target: str | Path, subtype: str | None) -> files.Writer:
    """A writer of the recording's format, with `subtype` or its own."""
    if subtype is None and Path(target).suffix.lower() == ".wav":
        held = files.FORMATS[".wav"][1]
        subtype = recording.subtype if recording.subtype in held else "PCM_16"
    return files.Writer(
        target, recording.file_rate, recording.n_channels, subtype, recording.n_frames
    )


def check_subtype(subtype: str | None) -> None:
    """UserError for a subtype that WAV does not have."""
    if subtype is not None and subtype not in (known := files.FORMATS[".wav"][1]):
        raise unknown("subtype", subtype, known)


class Log:
    """One row per output; the last row counts: `with Log(path) as log: log.add(result)`.

    A row is on disk when `add` returns. Rows of other outputs of earlier runs stay.
    """

    def __init__(self, path: Path) -> None:
        """UserError for a file of another kind; an incomplete last line is dropped."""
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
        """Call before an output takes its name, so that a killed run leaves its settings.

        After a kill the file is this output or an older one: it is made again.
        """
        self.add(Result(str(job.source), str(job.target), "started", made_with=made_with))
        with _naming(self.path):
            os.fsync(self._file.fileno())

    def add(self, result: Result) -> Result:
        values = asdict(result) | {"output": self._name(Path(result.output))}
        row = tuple("" if value is None else _text(value) for value in values.values())
        self.rows[row[1]] = row
        with _naming(self.path):
            self._file.write(_lines([row]))
        return result

    def unsure(self, target: Path) -> bool:
        """Whether the last try failed or was killed: the file may be that of an earlier run."""
        return self._last(target).get("status") in ("failed", "started")

    def knows(self, target: Path) -> bool:
        """Whether an earlier run here started or made this target."""
        return self._name(target) in self.rows

    def forget_folders(self, targets: Iterable[Path]) -> None:
        """Drop the rows of folders that were unreadable and now have files."""
        for target in targets:
            for folder in target.relative_to(self.path.parent).parents:
                self.rows.pop(self._name(self.path.parent / folder), None)

    def skipped(self, job: Job) -> Result:
        """The result of a job whose target exists."""
        row = self._last(job.target)
        numbers = {name: kind(row[name]) for name, kind in NUMBERS.items() if row.get(name)}
        made_with = row.get("made_with", "")
        reason = "the output exists"
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
        with _naming(self.path):
            whole = self.path.read_bytes()
        text = whole[: whole.rfind(b"\n") + 1].decode("utf-8", "replace")
        lines = [tuple(line) for line in csv.reader(io.StringIO(text, newline=""))]
        if lines and lines[0] != COLUMNS:
            raise UserError(f"{self.path}: is not the log of an earlier run; move it away")
        self.rows = {line[1]: line for line in lines[1:] if len(line) == len(COLUMNS)}

    def _rewrite(self) -> None:
        with _naming(self.path), replacing(self.path) as part:
            part.write_bytes(_lines([COLUMNS, *self.rows.values()]))


def _text(value: object) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _lines(rows: Iterable[tuple[str, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")  # of names that are not Unicode


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An OSError as UserError with the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check its permissions and the disk") from error
