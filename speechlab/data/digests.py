"""SHA-256 of every sound file of a prepared corpus, and what has changed since.

`files.csv` has them. A file is read again where its size is another one, or where its time is not
before that of `files.csv`: both times count, that of the content and that of the entry, which no
program sets. So a start of a training reads sizes and times, and few files. `compared` reads all.

Corpora of version 0.1 have no `files.csv`: the manifests have the digests of recordings and of
mixtures, but not those of their clean sources.
"""

import csv
import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from speechlab.audio.folders import listing
from speechlab.data import manifest
from speechlab.data.manifest import FILES, Item
from speechlab.errors import UserError, some
from speechlab.storage import atomic
from speechlab.storage.atomic import sha256

COLUMNS = ("path", "bytes", "sha256")
UNLISTED = ("raw", "unfinished")  # in a prepared folder: not part of the corpus
KINDS = ("changed", "missing", "extra", "unknown")  # unknown: no digest was noted
LOG = logging.getLogger(__name__)


class Known(NamedTuple):
    """What is known of a prepared file; empty where it was not noted."""

    n_bytes: int | None
    sha256: str


class Difference(NamedTuple):
    kind: str  # of KINDS
    path: str


def digest(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read."""
    try:
        return sha256(path)
    except OSError:
        return ""


def write(folder: Path, digests: Mapping[str, str]) -> str:
    """Write `files.csv` of sound files, path -> SHA-256; returns its own SHA-256."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows((path, (folder / path).stat().st_size, digests[path]) for path in digests)
    atomic.write(folder / FILES, text.getvalue())
    return sha256(folder / FILES)


def known(folder: Path, items: Iterable[Item]) -> dict[str, Known]:
    """What is known of the files of items, by path. UserError for a damaged `files.csv`."""
    listed = _listed(folder)
    found = {}
    for item in items:
        for path in (item.path, *item.sources):
            noted = Known(None, item.sha256 if path == item.path else "")
            found[path] = listed.get(path, noted)
    return found


def check(folder: Path, items: Iterable[Item]) -> None:
    """UserError where a file of items is missing or has changed since the corpus was prepared.

    Reads the files that may have changed. Logs that a file without a digest may have changed.
    """
    record = _record(folder)
    recorded_ns = record.stat().st_mtime_ns
    noted = known(folder, items)
    younger = {}
    wrong = []
    for path, of_file in noted.items():
        kind = _by_size(folder / path, of_file)
        if kind:
            wrong.append(f"{folder / path} ({kind})")
        elif _time(folder / path) >= recorded_ns:
            younger[path] = of_file
    if len(younger) > len(noted) / 2:
        LOG.warning(
            "%s: reading %d files that are not older than %s; `speechlab data verify` notes "
            "the time of a copied corpus",
            folder,
            len(younger),
            record.name,
        )
    differences = list(_read(folder, younger))
    wrong += [f"{folder / path} (changed)" for kind, path in differences if kind == "changed"]
    unknown = [path for kind, path in differences if kind == "unknown"]
    if unknown:
        LOG.warning("%s: may have changed, no digest was noted: %s", folder, some(unknown))
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} file(s) changed since the corpus was prepared: {some(wrong)}; "
            "`speechlab data verify` lists all; restore them or prepare the corpus again"
        )


def everything(folder: Path) -> dict[str, Known]:
    """What is known of the files of all splits, test included. UserError for a damaged corpus."""
    splits = [split for split in manifest.SPLITS if (folder / f"{split}.csv").exists()]
    return known(folder, [i for split in splits for i in manifest.parse(folder / f"{split}.csv")])


def compared(
    folder: Path, noted: Mapping[str, Known], told: Callable[[str], None] = lambda path: None
) -> Iterator[Difference]:
    """Differences between a prepared folder and what is known of it; reads every file.

    folder: of the corpus.
    noted: what `everything` returns.
    told: is called with the path of each file that was read.

    UserError for a damaged corpus.
    """
    wrong = manifest.changed(folder, manifest.about(folder))
    yield from (Difference("changed", name) for name in wrong)
    present = {}
    for path, of_file in noted.items():
        kind = _by_size(folder / path, of_file)
        if kind:
            yield Difference(kind, path)
        else:
            present[path] = of_file
    yield from _read(folder, present, told)
    yield from (Difference("extra", path) for path in sorted(_sounds(folder) - noted.keys()))


def note_time(folder: Path, time_ns: int) -> None:
    """Files before a time are as `files.csv` says; in a folder that is read-only nothing happens.

    time_ns: the time at which `compared` began.
    """
    path = _record(folder)
    if path.name == FILES and os.access(path, os.W_OK):
        os.utime(path, ns=(time_ns, time_ns))


def _listed(folder: Path) -> dict[str, Known]:
    path = folder / FILES
    if not path.exists():
        return {}
    try:
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        return {row["path"]: Known(int(row["bytes"]), row["sha256"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); prepare the corpus again") from error


def _record(folder: Path) -> Path:
    """The file that was written after the sound files."""
    return folder / (FILES if (folder / FILES).exists() else manifest.ABOUT)


def _by_size(path: Path, noted: Known) -> str:
    """Whether a file is missing or, by its size, changed; empty if neither."""
    if not path.is_file():
        return "missing"
    return "changed" if noted.n_bytes not in (None, path.stat().st_size) else ""


def _time(path: Path) -> int:
    found = path.stat()
    return max(found.st_mtime_ns, found.st_ctime_ns)


def _read(
    folder: Path, noted: Mapping[str, Known], told: Callable[[str], None] = lambda path: None
) -> Iterator[Difference]:
    """Files with another digest, or without one. Hashes in threads."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        now = threads.map(lambda path: digest(folder / path), noted)
        for path, found in zip(noted, now, strict=True):
            told(path)
            if not noted[path].sha256 and found:
                yield Difference("unknown", path)
            elif found != noted[path].sha256 or not found:
                yield Difference("changed", path)


def _sounds(folder: Path) -> set[str]:
    """Sound files of a prepared folder, without those of `UNLISTED` and hidden ones."""
    found = listing(folder, lambda parts, so_far: parts[0] not in UNLISTED)
    return {path.as_posix() for path in found.files}
