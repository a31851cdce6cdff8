"""Conversion of raw files into a prepared corpus: parallel, resumable, deterministic.

A corpus defines one task per recording and a function that writes the task's sound files and
returns its manifest line. Lines of finished tasks are stored in shards in `<target>/unfinished/`
until the manifests are written, so that an interrupted preparation resumes.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import soxr

from speechlab import parallel
from speechlab.audio import files
from speechlab.config import to_dict
from speechlab.data import manifest
from speechlab.data.corpora.corpus import Corpus
from speechlab.data.manifest import Item
from speechlab.errors import UserError
from speechlab.progress import Report, Tell
from speechlab.storage import locks
from speechlab.storage.atomic import replacing, sha256, write
from speechlab.version import __version__

SHARD = 50  # tasks per shard; an interruption repeats at most so many per process
RAW = "raw"  # in a target: its downloads
OPTIONS = "options.json"  # in `unfinished/`: the options of the files there

Task = TypeVar("Task")


def elsewhere(default: Any = "") -> Any:
    """A setting that changes no sample, as a folder or the number of processes."""
    return dataclasses.field(default=default, metadata={"changes_data": False})


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A corpus that is being prepared in the folder `target`."""

    target: Path
    corpus: Corpus
    config: Any  # options; `jobs` is the number of processes, 0 for one per processor
    tell: Tell

    def is_ready(self) -> bool:
        """Whether `target` holds the complete corpus, prepared with these options.

        Raises UserError if the folder holds files of other options or of something else. They are
        neither changed nor removed.
        """
        if (self.target / manifest.ABOUT).exists():
            known = manifest.about(self.target)
            self._refuse_other({"corpus": known.get("corpus"), **known.get("options", {})})
            manifest.data_hash(self.target)
            shutil.rmtree(self._unfinished, ignore_errors=True)
            return True
        path = self._unfinished / OPTIONS
        if path.exists():
            self._refuse_other(json.loads(path.read_text(encoding="utf-8")))
        elif others := self._foreign():
            raise UserError(
                f"{self.target} holds other files ({some(others)}): name an empty folder or remove "
                "them"
            )
        return False

    def items(
        self, splits: Mapping[str, Sequence[Task]], make: Callable[[Task], Item], jobs: int = 0
    ) -> dict[str, list[Item]]:
        """The manifest lines of all tasks, in their order.

        `make` is a function of a module (or a partial of one). It writes a task's files atomically
        and returns its line. jobs: number of processes; 0: as `config` says.
        """
        if self.config.jobs < 0:
            raise UserError(f"jobs is {self.config.jobs}; it must be 0 (one per processor) or more")
        write(self._unfinished / OPTIONS, json.dumps(self._options) + "\n")
        shards = [
            _Shard(make, tuple(tasks[i : i + SHARD]), self._unfinished, split)
            for split, tasks in splits.items()
            for i in range(0, len(tasks), SHARD)
        ]
        waiting = [shard for shard in shards if not shard.path.exists()]
        n_all = sum(len(shard.tasks) for shard in shards)
        n_done = n_all - sum(len(shard.tasks) for shard in waiting)
        if n_done:
            self.tell(f"{n_done} of {n_all} recordings are finished already")
        jobs = jobs or self.config.jobs or parallel.n_processors()
        if waiting:
            label = self.target.name
            with Report(label, n_all, "recording", n_done, tell=self.tell) as report:
                for n in parallel.finished(_make, waiting, jobs):
                    report.update(n)
                report.outcome = f"in {self.target}"
        found = {split: [] for split in splits}
        for shard in shards:
            found[shard.split] += shard.read()
        return found

    def finish(self, splits: Mapping[str, Sequence[Item]], remedy: str, **notes: Any) -> None:
        """Write the manifests and `corpus.json`, then remove `unfinished/`.

        remedy: advice if two splits share a speaker or a recording. notes: further JSON values for
        `corpus.json`.
        """
        about = {
            "corpus": self.corpus.name,
            "title": self.corpus.title,
            "licence": self.corpus.licence,
            "source": self.corpus.source,
            "speechlab": __version__,
            "resampler": {"name": "soxr", "version": soxr.__version__, "quality": "HQ"},
            "options": {k: v for k, v in self._options.items() if k != "corpus"},
            **notes,
        }
        check(self.target, splits, remedy)
        manifest.write(self.target, splits, about)
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def _foreign(self) -> list[str]:
        """Names in `target` that no preparation made; `raw` holds downloads."""
        inside = self.target.iterdir() if self.target.is_dir() else ()
        names = sorted(path.name for path in inside if not path.name.startswith("."))
        return [name for name in names if name not in (RAW, self._unfinished.name)]

    @property
    def _unfinished(self) -> Path:
        return self.target / "unfinished"

    @property
    def _options(self) -> dict[str, Any]:
        """The options that change samples, as plain JSON values."""
        fields = dataclasses.fields(self.config)
        kept = [field.name for field in fields if field.metadata.get("changes_data", True)]
        values = to_dict(self.config)
        return {"corpus": self.corpus.name, **{name: values[name] for name in kept}}

    def _refuse_other(self, known: Mapping[str, Any]) -> None:
        wanted = self._options
        if self.corpus.former and known.get("corpus") == self.corpus.former:
            known = {**known, "corpus": self.corpus.name}
        names = [key for key in {**known, **wanted} if known.get(key) != wanted.get(key)]
        if names:
            what = ", ".join(f"{k} {known.get(k)} there, {wanted.get(k)} asked" for k in names)
            raise UserError(
                f"{self.target} was made with other options ({what}): "
                "name another folder or remove it"
            )


def alone(
    *corpora: Corpus, when_ready: Callable[[Preparation], None] = lambda job: None
) -> Callable[[Callable[[Preparation], None]], Callable[[Path, Any, Tell], None]]:
    """Makes the `prepare` of corpora of a function that prepares the files of one.

    The target folder is locked: a second process waits, and then finds the corpus prepared. A
    prepared corpus is only read and not locked: its folder may be read-only. `when_ready` may
    refuse it.
    """

    def decorated(make: Callable[[Preparation], None]) -> Callable[[Path, Any, Tell], None]:
        @functools.wraps(make)
        def prepare(target: Path, config: Any, tell: Tell) -> None:
            [corpus] = [c for c in corpora if c.options == type(config).__name__]
            job = Preparation(target, corpus, config, tell)
            lock = contextlib.nullcontext()
            if not (target / manifest.ABOUT).exists():
                busy = f"{target}: another process prepares it; waiting for that"
                lock = locks.waited_for(target.with_name(f"{target.name}.lock"), tell, busy)
            with lock:
                if not job.is_ready():
                    return make(job)
                when_ready(job)
                tell(f"{target} is prepared already; for other files name another folder")

        return prepare

    return decorated


def check(target: Path, splits: Mapping[str, Sequence[Item]], remedy: str) -> None:
    """UserError, with `remedy`, if two splits share a speaker or a recording."""
    try:
        manifest.check_disjoint(splits)
    except ValueError as error:
        raise UserError(f"{target}: {error}; {remedy}") from error


def convert(source: Path, target: Path, sample_rate: int) -> int:
    """Write a sound file as mono WAV at `sample_rate` (channels averaged); returns its length.

    The file has 16 bits, or floats if 16 bits would clip.
    """
    recording = files.Recording(source, sample_rate)
    for subtype in ("PCM_16", "FLOAT"):
        with files.Writer(target, sample_rate, 1, subtype) as writer:
            for block in recording:
                writer.write(block.mean(0, keepdim=True))  # (1, n)
        if not writer.clipped:
            break
    return writer.n_frames


def convert_all(sources: Sequence[Path], targets: Sequence[Path], sample_rate: int) -> int:
    """Convert a mixture and its sources. UserError if they differ in length."""
    pairs = zip(sources, targets, strict=True)
    lengths = [convert(source, target, sample_rate) for source, target in pairs]
    if len(set(lengths)) > 1:
        raise UserError(
            f"{' and '.join(map(str, sources))} are of different length "
            f"({' and '.join(map(str, lengths))} samples at {sample_rate} Hz); "
            "replace them by files of one length"
        )
    return lengths[0]


def copy(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    with replacing(target) as part:
        shutil.copyfile(source, part)


def mixture(target: Path, paths: Sequence[str], **about: Any) -> Item:
    """The manifest line of a mixture in `target`: its file, then those of its sources.

    Length, rate and hash are those of the mixture's file. about: the other fields.
    """
    recording = files.Recording(target / paths[0])
    return Item(
        kind="mixture",
        path=paths[0],
        n_frames=recording.n_frames,
        sample_rate=recording.file_rate,
        sources=tuple(paths[1:]),
        sha256=sha256(target / paths[0]),
        **about,
    )


def sounds(folder: Path) -> dict[str, Path]:
    """Sound files at any depth, sorted, by their relative path without the suffix.

    Raises UserError if two files differ only in their suffix.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        hidden = any(part.startswith((".", "__MACOSX")) for part in inner.parts)
        if hidden or path.suffix.lower() not in files.SUFFIXES or not path.is_file():
            continue
        name = inner.with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{found[name]} and {path} have one name; remove one of them")
        found[name] = path
    return found


def held_out(groups: Iterable[str], percent: float) -> set[str]:
    """About `percent` of the groups (speakers, recordings), at least one, never all.

    The choice depends on a hash of each name, so it stays the same if other groups are added.
    """
    ranks = {
        group: int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
        for group in groups
    }
    order = sorted(ranks, key=ranks.get)
    chosen = [group for group in order if ranks[group] < percent / 100] or order[:1]
    return set(chosen[: len(order) - 1])


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Some tasks, and the file of their lines."""

    make: Callable[[Any], Item]
    tasks: tuple[Any, ...]
    folder: Path
    split: str

    @property
    def path(self) -> Path:
        """Named by a hash of its tasks, so that lines of other raw files are not reused."""
        name = hashlib.sha256(repr(self.tasks).encode()).hexdigest()[:24]
        return self.folder / f"{self.split}_{name}.json"

    def read(self) -> list[Item]:
        lines = json.loads(self.path.read_text(encoding="utf-8"))
        return [
            Item(**{k: tuple(v) if isinstance(v, list) else v for k, v in line.items()})
            for line in lines
        ]


def _make(shard: _Shard) -> int:
    """Run the tasks of a shard; returns their number."""
    made = [shard.make(task) for task in shard.tasks]
    write(shard.path, json.dumps([to_dict(item) for item in made]))
    return len(made)
