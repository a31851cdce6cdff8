"""Finished tasks of an interrupted preparation, with digests of the files read and written.

A shard is the work of some tasks. It counts as finished only as long as every file that its tasks
read, and every file that they wrote, has the same SHA-256. A source that was read in this run
before its conversion (`survey`) is not read again for its digest.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speechlab.config import to_dict
from speechlab.data.corpora.survey import Heard
from speechlab.data.digests import digest
from speechlab.data.manifest import Item
from speechlab.storage.atomic import write


def nothing(task: Any) -> Sequence[Path]:
    """The sources of a task that reads no file."""
    return ()


@dataclass(frozen=True)
class Shard:
    """Some tasks, and the file of their lines."""

    make: Callable[[Any], Item]
    sources: Callable[[Any], Sequence[Path]]  # files that a task reads
    tasks: tuple[Any, ...]
    target: Path  # folder of the corpus
    folder: Path
    split: str
    known: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of sources that were read

    @property
    def path(self) -> Path:
        """Named by a hash of its tasks, so that lines of other tasks are not reused."""
        name = hashlib.sha256(repr(self.tasks).encode()).hexdigest()[:24]
        return self.folder / f"{self.split}_{name}.json"

    def with_digests(self, heard: Mapping[Path, Heard]) -> "Shard":
        """The same with the digests of its sources among those that were read."""
        paths = (path for task in self.tasks for path in self.sources(task))
        return replace(self, known={str(p): heard[p].sha256 for p in paths if p in heard})

    def is_finished(self) -> bool:
        """Whether the tasks are done, and their files are those of that time."""
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
            sources = _digests(Path(), known["sources"], {})
            files = _digests(self.target, known["files"], {})
            return (known["sources"], known["files"]) == (sources, files)
        except (OSError, ValueError, KeyError, TypeError):  # one of version 0.1 is a list
            return False

    def read(self) -> tuple[list[Item], dict[str, str], dict[str, str]]:
        """Lines of a finished shard, and SHA-256 of its prepared files and its sources by path."""
        known = json.loads(self.path.read_text(encoding="utf-8"))
        lines = [
            Item(**{k: tuple(v) if isinstance(v, list) else v for k, v in line.items()})
            for line in known["lines"]
        ]
        return lines, known["files"], known["sources"]


def run(shard: Shard) -> int:
    """Run the tasks of a shard; returns their number. Sources are hashed before they are read."""
    sources, files, lines = {}, {}, []
    for task in shard.tasks:
        sources |= _digests(Path(), map(str, shard.sources(task)), shard.known)
        item = shard.make(task)
        made = {item.path: item.sha256} if item.sha256 else {}
        files |= _digests(shard.target, (item.path, *item.sources), made)
        lines.append(to_dict(item))
    known = {"sources": sources, "files": files, "lines": lines}
    write(shard.path, json.dumps(known))
    return len(lines)


def _digests(folder: Path, paths: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 by path; empty for a file that cannot be read, which its reader reports."""
    return {path: known[path] if path in known else digest(folder / path) for path in paths}
