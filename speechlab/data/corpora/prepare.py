"""Conversion of raw files into a prepared corpus: parallel, resumable, deterministic.

A corpus defines one task per recording and a function that writes the task's sound files and
returns its manifest line. Lines of finished tasks are stored in shards in `<target>/unfinished/`
until the manifests are written, so that an interrupted preparation resumes. It makes a file again
where one of its sources has changed since.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import soxr

from speechlab import parallel
from speechlab.audio import files
from speechlab.audio.folders import listing
from speechlab.config import to_dict
from speechlab.data import digests, manifest
from speechlab.data.corpora import shards, survey
from speechlab.data.corpora.corpus import Corpus
from speechlab.data.corpora.shards import Shard, nothing
from speechlab.data.corpora.survey import Heard
from speechlab.data.manifest import Item
from speechlab.errors import UserError, some
from speechlab.progress import Report, Tell
from speechlab.storage import locks
from speechlab.storage.atomic import replacing, sha256, write
from speechlab.version import __version__

SHARD = 50  # tasks per shard; an interruption repeats at most so many per process
RAW, UNFINISHED = digests.UNLISTED  # in a target: its downloads, and lines of finished tasks
LEFT_OUT = "left_out.txt"  # broken sources, a line each
OPTIONS = "options.json"  # in `unfinished/`: the options of the files there

Task = TypeVar("Task")
Unlike = Callable[[Sequence[Path], Mapping[Path, Heard]], str]


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
    digests: dict[str, str] = dataclasses.field(default_factory=dict)  # of prepared files, by path
    heard: dict[Path, Heard] = dataclasses.field(default_factory=dict)  # sources that were read
    sources: dict[str, str] = dataclasses.field(default_factory=dict)  # digests of used ones
    left_out: list[str] = dataclasses.field(default_factory=list)  # faults of skipped files

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
        self,
        splits: Mapping[str, Sequence[Task]],
        make: Callable[[Task], Item],
        sources: Callable[[Task], Sequence[Path]] = nothing,
        jobs: int = 0,
        unlike: Unlike = lambda paths, heard: "",
    ) -> dict[str, list[Item]]:
        """The manifest lines of all tasks, in their order.

        splits: the tasks of each split.
        make: writes a task's files atomically and returns its line; a function of a module, or a
            partial of one.
        sources: the files that a task reads. Where one has changed, its tasks are run again.
        jobs: number of processes; 0: as `config` says.
        unlike: the fault of the sources of a task taken together, once they are read; "" if none.
        """
        jobs = jobs or self.n_jobs
        all_shards = [
            Shard(make, sources, tuple(tasks[i : i + SHARD]), self.target, self._unfinished, split)
            for split, tasks in splits.items()
            for i in range(0, len(tasks), SHARD)
        ]
        waiting = self._waiting(all_shards, jobs)
        groups = [sources(task) for shard in waiting for task in shard.tasks]
        if broken := self._broken(groups, unlike):
            usable = {
                split: [task for task in tasks if broken.isdisjoint(sources(task))]
                for split, tasks in splits.items()
            }
            return self.items(usable, make, sources, jobs, unlike)
        waiting = [shard.with_digests(self.heard) for shard in waiting]
        write(self._unfinished / OPTIONS, json.dumps(self._options) + "\n")
        n_all = sum(len(shard.tasks) for shard in all_shards)
        n_done = n_all - sum(len(shard.tasks) for shard in waiting)
        if n_done:
            self.tell(f"{n_done} of {n_all} recordings are finished already")
        if waiting:
            label = self.target.name
            with Report(label, n_all, "recording", n_done, tell=self.tell) as report:
                for n in parallel.finished(shards.run, waiting, jobs):
                    report.update(n)
                report.outcome = f"in {self.target}"
        found = {split: [] for split in splits}
        for shard in all_shards:
            lines, of_files, of_sources = shard.read()
            found[shard.split] += lines
            self.digests.update(of_files)
            self.sources.update(of_sources)
        return found

    @property
    def raw(self) -> Path:
        """The folder of the recordings: the setting `raw`, or else that in the target."""
        given = getattr(self.config, "raw", "")  # of some corpora the setting has another name
        return Path(given).expanduser() if given else self.target / RAW

    @property
    def n_jobs(self) -> int:
        """Number of processes. UserError for a negative one."""
        if self.config.jobs < 0:
            raise UserError(f"jobs is {self.config.jobs}; it must be 0 (one per processor) or more")
        return self.config.jobs or parallel.n_processors()

    def survey(self, paths: Iterable[Path]) -> dict[Path, Heard]:
        """Read each source once, into `heard`; returns those that were not read before."""
        new = [path for path in paths if path not in self.heard]
        found = survey.hear_all(new, self.n_jobs, self.tell)
        self.heard.update(found)
        return found

    def _broken(self, groups: Sequence[Sequence[Path]], unlike: Unlike) -> set[Path]:
        """Read sources that were not read yet; returns those of tasks that are to be skipped.

        groups: the sources of each task.

        UserError names the faults unless `skip_broken` is set.
        """
        new = self.survey(path for group in groups for path in group)
        broken = {path: heard.fault for path, heard in new.items() if heard.fault}
        for group in groups:
            if broken.keys().isdisjoint(group) and (fault := unlike(group, self.heard)):
                broken |= dict.fromkeys(group, fault)
        self.refuse(list(dict.fromkeys(broken.values())), len(new))
        for line in survey.warnings(new):
            self.tell(line)
        return set(broken)

    def refuse(self, faults: Sequence[str], n_files: int) -> None:
        """Nothing if there are no faults; a notice if `skip_broken` is set; else UserError.

        faults: one line per fault.
        n_files: number of files that were read.
        """
        path = self.target.with_name(f"{self.target.name}.faults.txt")
        survey.remove_list(path)
        if not faults:
            return
        first = survey.some_faults(faults)
        if self._skips_broken:
            self.left_out.extend(faults)
            self.tell(f"{len(faults)} of {n_files} files are left out: {first}")
            return
        if len(faults) == 1:
            raise UserError(faults[0])
        where = survey.write_list(path, faults)
        way = ", or leave them out with --skip-broken" if self._skips_broken is not None else ""
        raise UserError(
            f"{len(faults)} of {n_files} files cannot be used; {where}; replace or remove "
            f"them{way}: {first}"
        )

    @property
    def _skips_broken(self) -> bool | None:
        """The setting; None for a corpus without it."""
        return getattr(self.config, "skip_broken", None)

    def _waiting(self, all_shards: Sequence[Shard], jobs: int) -> list[Shard]:
        """The shards to run: not begun, or with a source or a prepared file that has changed."""
        begun = [shard for shard in all_shards if shard.path.exists()]
        if begun:
            self.tell(f"reading the sources of {sum(len(s.tasks) for s in begun)} recordings again")
        with ThreadPoolExecutor(jobs) as threads:
            is_finished = list(threads.map(Shard.is_finished, begun))
        ready = {shard.path for shard, done in zip(begun, is_finished, strict=True) if done}
        waiting = [shard for shard in all_shards if shard.path not in ready]
        if n_changed := sum(len(shard.tasks) for shard in waiting if shard.path.exists()):
            self.tell(f"{n_changed} recordings are made again: a file of theirs has changed")
        return waiting

    def finish(self, splits: Mapping[str, Sequence[Item]], remedy: str, **notes: Any) -> None:
        """Write `files.csv`, the manifests and `corpus.json`, then remove `unfinished/`.

        remedy: advice if two splits share a speaker or a recording. notes: further JSON values for
        `corpus.json`.
        """
        check(self.target, splits, remedy)
        paths = [
            path for of in splits.values() for item in of for path in (item.path, *item.sources)
        ]
        sums = {path: self.digests.get(path) or sha256(self.target / path) for path in paths}
        about = {
            "corpus": self.corpus.name,
            "title": self.corpus.title,
            "licence": self.corpus.licence,
            "source": self.corpus.source,
            "speechlab": __version__,
            "resampler": {"name": "soxr", "version": soxr.__version__, "quality": "HQ"},
            "options": {k: v for k, v in self._options.items() if k != "corpus"},
            **({"n_broken": len(self.left_out)} if self.left_out else {}),
            "files": digests.write(self.target, sums),
            **notes,
        }
        if self.left_out:
            write(self.target / LEFT_OUT, survey.listed(self.left_out, self._roots))
        if self.raw.is_dir():
            survey.note_sources(self.target, self.raw, self.sources)
        manifest.write(self.target, splits, about)
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def _foreign(self) -> list[str]:
        """Names in `target` that no preparation made; `raw` holds downloads."""
        inside = self.target.iterdir() if self.target.is_dir() else ()
        names = sorted(path.name for path in inside if not path.name.startswith("."))
        return [name for name in names if name not in digests.UNLISTED]

    @property
    def _unfinished(self) -> Path:
        return self.target / UNFINISHED

    @property
    def _options(self) -> dict[str, Any]:
        """The options that change samples, as plain JSON values."""
        fields = dataclasses.fields(self.config)
        kept = [field.name for field in fields if field.metadata.get("changes_data", True)]
        values = to_dict(self.config)
        return {"corpus": self.corpus.name, **{name: values[name] for name in kept}}

    @property
    def _roots(self) -> list[str]:
        """Folders of raw files, which a prepared folder does not name."""
        of_elsewhere = [
            getattr(self.config, field.name)
            for field in dataclasses.fields(self.config)
            if not field.metadata.get("changes_data", True)
        ]
        return [str(Path(v).expanduser()) for v in of_elsewhere if isinstance(v, str) and v]

    def _refuse_other(self, known: Mapping[str, Any]) -> None:
        wanted = self._options
        if self.corpus.former and known.get("corpus") == self.corpus.former:
            known = {**known, "corpus": self.corpus.name}
        names = [key for key in {**known, **wanted} if known.get(key) != wanted.get(key)]
        if names:
            what = ", ".join(f"{k} {known.get(k)} there, {wanted.get(k)} asked" for k in names)
            raise UserError(
                f"{self.target} was made with other options ({what}): "
                "name another folder (--folder)"
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
                if line := survey.new_sources(target, job.raw):
                    tell(line)

        return prepare

    return decorated


def check(target: Path, splits: Mapping[str, Sequence[Item]], remedy: str) -> None:
    """UserError, with `remedy`, if two splits share a speaker or a recording."""
    try:
        manifest.check_disjoint(splits)
    except ValueError as error:
        raise UserError(f"{target}: {error}; {remedy}") from error


def convert(source: Path, target: Path, sample_rate: int, length: int | None = None) -> int:
    """Write a sound file as mono WAV at `sample_rate` (channels averaged); returns its length.

    The file has 16 bits, or floats if 16 bits would clip. length: samples to write, default all.
    """
    recording = files.Recording(source, sample_rate)
    length = recording.length if length is None else length
    for subtype in ("PCM_16", "FLOAT"):
        with files.Writer(target, sample_rate, 1, subtype) as writer:
            for block in recording:
                left = length - writer.n_frames
                writer.write(block.mean(0, keepdim=True)[:, :left])  # (1, n)
        if not writer.clipped:
            break
    return writer.n_frames


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
    """Sound files at any depth, sorted, by their relative path without the suffix (NFC).

    Linked folders are entered. Raises UserError if two files differ only in their suffix, or a
    folder is not readable.
    """
    listed, found = listing(folder), {}
    for inner, reason in listed.unreadable.items():
        raise UserError(f"{folder / inner}: cannot be read ({reason}); change its permissions")
    for inner in listed.files:
        name = unicodedata.normalize("NFC", inner.with_suffix("").as_posix())
        if name in found:
            other = folder / inner
            raise UserError(f"{found[name]} and {other} have one name; remove one of them")
        found[name] = folder / inner
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
