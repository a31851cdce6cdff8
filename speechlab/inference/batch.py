"""Process a batch of files: one result per job, in a log that survives a kill.

    jobs ─ run ─► work(job) ─ write ─► output files (atomic), a row of the log

`enhance` and `separate` share all of this: skipping and overwriting, resuming, errors, the log.
"""

import contextlib
import csv
import functools
import hashlib
import io
import itertools
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from speechlab.audio import files
from speechlab.errors import UserError, reason, shown, unknown
from speechlab.inference.jobs import OTHER, Job
from speechlab.models.base import Model
from speechlab.progress import Report, Tell
from speechlab.storage.atomic import replacing, sha256, unfinished
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
    input_sha256: str = ""  # of the input, before it was read
    output_sha256: str = ""  # of each output, "-" where there is none


COLUMNS = tuple(field.name for field in fields(Result))
FORMER_COLUMNS = COLUMNS[:-2]  # of version 0.1: without digests
LONGEST_CELL = 2**16  # characters; paths are shorter
NEW_SETTINGS = r", (state_leak_s=None|(layers|\w+_channels)=\(\))"  # of models since, and not used
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
    work: `work(job, advance=…)` does a job; see `write` for `advance`.
    overwrite: process also the jobs that are done; these are skipped otherwise.
    progress: report on stderr.
    tell: receives one line for each job that fails or is made again.

    A job that fails with UserError gets the reason in its result and in the log; the others
    continue. UserError before any work for a file in the way that no run here made (also with
    `overwrite`), and if another model, other settings or another run has written to the output.
    An output whose input has changed is made again.
    """
    results = []
    with alone(path.parent):
        log = Log(path)
        log.check(jobs, made_with, overwrite, tell)
        with log, Report(path.stem, len(jobs), shown=progress) as report:
            log.refuse_twins(jobs)
            log.forget_folders([job.target for job in jobs if not job.fault])
            for n_done, job in enumerate(jobs, start=1):
                if not overwrite and not job.fault and log.is_done(job, tell):
                    result = log.skipped(job)
                else:
                    do = functools.partial(work, advance=report.update)
                    result = _tried(job, made_with, log, do)
                report.update(n_done - report.done)
                results.append(log.add(result))
                if result.status == "failed":
                    tell(result.reason)
            report.outcome = _cost(results)
    return results


def _cost(results: Sequence[Result]) -> str:
    """The seconds of audio that this run processed, and its speed."""
    done = [(one.seconds, one.rtf) for one in results if one.status == "ok"]
    seconds = sum(audio_s for audio_s, _ in done)
    if not seconds:
        return "no new files"
    rtf = sum(audio_s * rtf for audio_s, rtf in done) / seconds
    return f"{seconds:.1f} s of audio, real-time factor {rtf:.3g}"


def _tried(job: Job, made_with: str, log: "Log", work: Callable[[Job], Result]) -> Result:
    """Do a job whose outputs are ours or absent."""
    result = Result(str(job.source), str(job.target), "failed")
    if job.fault:
        return replace(result, reason=job.fault)
    for target in job.targets:
        with contextlib.suppress(OSError):  # the writer reports what is in its way
            unfinished(target).unlink()  # of a killed run
    log.start(job, made_with)
    source_digest = _digest(job.source)
    try:
        result = replace(work(job), made_with=made_with)
    except UserError as error:
        result = replace(result, reason=" ".join(str(error).split()))
    digests = [_digest(target) or "-" for target in job.targets]
    made = "" if set(digests) == {"-"} else " ".join(digests)
    return replace(result, input_sha256=source_digest, output_sha256=made)


def _digest(path: Path) -> str:
    """SHA-256 of a file, in hex; empty for what is not a readable file."""
    try:
        return sha256(path) if path.is_file() else ""
    except OSError:
        return ""


def digest(model: Model, *settings: Any) -> str:
    """Identifies a model and settings: 12 hex digits."""
    made_with = re.sub(NEW_SETTINGS, "", repr((model.config, *settings)))
    total = hashlib.sha256(made_with.encode())
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
) -> Result:
    """Write the estimates of a recording to one file per source.

    recording: the input; the outputs have its rate, channels and number of frames.
    targets: S paths.
    estimates: blocks (S, C, n) at the rate of the file.
    subtype: as "PCM_24"; None: that of the input, or the format's default (WAV: PCM_16).
    advance: called with the share of the file that was done since the last call.

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
    if subtype is None:
        subtype = files.kept_subtype(target, recording.subtype)
    return files.Writer(
        target, recording.file_rate, recording.n_channels, subtype, recording.n_frames
    )


def check_subtype(subtype: str | None, suffix: str = ".wav") -> None:
    """UserError for a subtype that the format does not have."""
    if subtype is not None and subtype not in (known := files.FORMATS[suffix.lower()][1]):
        raise unknown("subtype", subtype, known)


class Log:
    """One row per output; the last row counts: `with Log(path) as log: log.add(result)`.

    A row is on disk when `add` returns. Rows of other outputs of earlier runs stay. An output is
    ours if its row says so: it was started, or has the digest of the row. Rows of version 0.1 have
    no digests: their outputs are ours by name, and their inputs are compared by time.
    """

    def __init__(self, path: Path) -> None:
        """UserError for a file of another kind; an incomplete last line is dropped."""
        self.path = path
        self.rows: dict[str, tuple[str, ...]] = {}
        if os.path.lexists(path):
            self._read()

    def __enter__(self) -> Self:
        self._rewrite()
        self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._rewrite()

    def start(self, job: Job, made_with: str) -> None:
        """Call before anything is written, so that a killed run leaves its settings.

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

    def forget_folders(self, targets: Iterable[Path]) -> None:
        """Drop the rows of folders that were unreadable and now have files."""
        for target in targets:
            for folder in target.relative_to(self.path.parent).parents:
                self.rows.pop(self._name(self.path.parent / folder), None)

    def check(self, jobs: Iterable[Job], made_with: str, overwrite: bool, tell: Tell) -> None:
        """UserError for files in the way that are not ours, or, unless `overwrite`, of other runs.

        tell: receives one line if outputs have no digest of their input.
        """
        n_undated = 0
        for job in (job for job in jobs if not job.fault):
            self._refuse_foreign(job)
            if not overwrite and any(map(Path.exists, job.targets)):
                self.refuse_other(job.target, made_with)
                self._refuse_other_input(job)
                n_undated += not (self.unsure(job.target) or self._last(job.target)["input_sha256"])
        if n_undated:
            tell(
                f"{self.path}: {n_undated} outputs have no digest of their input; an input that is "
                "newer than its output is processed again"
            )

    def _refuse_foreign(self, job: Job) -> None:
        row = self._last(job.target)
        digests = row.get("output_sha256", "").split()
        if row and (row["status"] == "started" or (row["status"] != "failed" and not digests)):
            return
        for target, known in itertools.zip_longest(job.targets, digests[: len(job.targets)]):
            names = [target] if row else [target, unfinished(target)]
            if (found := next(filter(os.path.lexists, names), None)) and known != _digest(found):
                what = "names a file of other content" if digests else "has no row for it"
                raise UserError(
                    f"{found}: exists, and {self.path.name} {what}; move it away, or {OTHER}"
                )

    def _refuse_other_input(self, job: Job) -> None:
        row, name = self._last(job.target), _text(str(job.source))
        known, then = row["input_sha256"], row["input"]
        moved = os.path.abspath(then) != os.path.abspath(name)  # noqa: PTH100
        if known and moved and known != _digest(job.source):
            raise UserError(
                f"{job.target}: was made of {then}, not of {job.source}; use --overwrite, "
                f"or {OTHER}"
            )

    def refuse_twins(self, jobs: Iterable[Job]) -> None:
        """UserError for two outputs with one name in the log, or on a disk that ignores case."""
        other = self.path.with_name(self.path.name.swapcase())
        ignores_case = other.exists() and other.samefile(self.path)
        seen: dict[str, Job] = {}
        for job in (job for job in jobs if not job.fault):
            name = self._name(job.target)
            name = unicodedata.normalize("NFC", name).casefold() if ignores_case else name
            twin = seen.setdefault(name, job)
            if twin is not job:
                raise UserError(
                    f"{twin.source} and {job.source} would have one name in {self.path.parent}; "
                    "rename one, or take two outputs"
                )

    def is_done(self, job: Job, tell: Callable[[str], Any] = lambda line: None) -> bool:
        """Whether all outputs were made of the input as it is now. tell: why they are not."""
        if self.unsure(job.target) or not all(map(Path.is_file, job.targets)):
            return False
        known = self._last(job.target)["input_sha256"]
        try:
            if known:
                same = known == sha256(job.source)
            else:
                times = [path.stat().st_mtime_ns for path in (job.source, *job.targets)]
                same = times[0] <= min(times[1:])
        except OSError:  # the reader reports it
            return False
        if not same:
            tell(f"{job.source}: has changed since {job.target} was made of it; processed again")
        return same

    def skipped(self, job: Job) -> Result:
        """The result of a job that is done."""
        row = self._last(job.target)
        numbers = {name: kind(row[name]) for name, kind in NUMBERS.items() if row.get(name)}
        texts = {name: row.get(name, "") for name in ("made_with", *COLUMNS[-2:])}
        reason = "the output exists"
        return Result(str(job.source), str(job.target), "skipped", reason, **numbers, **texts)

    def refuse_other(self, target: Path, made_with: str) -> None:
        """UserError for a target that another model or other settings made."""
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
        return _text(target.relative_to(self.path.parent).as_posix())

    def _read(self) -> None:
        with _naming(self.path):
            whole = self.path.read_bytes()
        text = whole[: whole.rfind(b"\n") + 1].decode("utf-8", "replace")
        try:
            header, *lines = csv.reader(io.StringIO(text, newline=""))
            if tuple(header) not in (COLUMNS, FORMER_COLUMNS):
                raise ValueError
        except (ValueError, csv.Error) as error:
            raise UserError(
                f"{self.path}: is not the log of an earlier run; move it away, or {OTHER}"
            ) from error
        rows = [tuple(map(_text, line)) for line in lines if len(line) == len(header)]
        none = ("",) * (len(COLUMNS) - len(header))
        self.rows = {row[1]: (*row, *none) for row in rows}

    def _rewrite(self) -> None:
        with _naming(self.path), replacing(self.path) as part:
            part.write_bytes(_lines([COLUMNS, *self.rows.values()]))


def _text(value: object) -> str:
    """A cell: names have their control characters escaped."""
    return f"{value:.8g}" if isinstance(value, float) else shown(value, LONGEST_CELL)


def _lines(rows: Iterable[tuple[str, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An OSError as UserError with the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}; check its permissions and the disk") from error
