"""Sound files under a folder, and what is left out: one listing for every command.

Links to files and folders are followed. A linked folder that contains itself is left out, and so
are hidden names. All else that is left out has its place in the `Listing`, so that callers name it.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from speechlab.audio.files import SUFFIXES
from speechlab.errors import shown

LINKS_MAX = 4  # linked folders in one path: folders that link to each other have n! paths
HIDDEN = (".", "__MACOSX")  # beginnings of names

Parts = tuple[str, ...]
Identity = tuple[int, int] | Path


@dataclass(frozen=True)
class Listing:
    """The content of a folder; paths are relative to it, sorted by their parts."""

    files: list[Path] = field(default_factory=list)  # with an ending in SUFFIXES
    unreadable: dict[Path, str] = field(default_factory=dict)  # folders, with the system's reason
    skipped: dict[Path, str] = field(default_factory=dict)  # links and folders, with the reason
    endings: Counter[str] = field(default_factory=Counter)  # of other files: ".m4a", or "" for none

    @property
    def left_out(self) -> str:
        """One line of what is neither sound nor unreadable; empty where there is nothing."""
        words = [
            f"{n} {shown(ending) or 'without an ending'}"
            for ending, n in self.endings.most_common()
        ]
        others = [f"files that are not read as sound ({', '.join(words)})"] if words else []
        return "; ".join(others + [f"{shown(path)} ({why})" for path, why in self.skipped.items()])


@dataclass(frozen=True)
class _Folder:
    parts: Parts  # of its path from the first folder
    above: tuple[Identity, ...]  # folders that contain it
    n_links: int  # linked folders in `parts`


def listing(
    folder: Path,
    fits: Callable[[Parts, bool], bool] = lambda parts, so_far: True,
    output: Path | None = None,
) -> Listing:
    """Sound files at any depth of `folder`.

    fits: whether a path from `folder` is asked for; with `so_far`, or could be with more parts.
    output: a folder that is not entered.
    """
    found = Listing()
    out = None if output is None else identity(output)
    waiting = [_Folder((), (), 0)]
    while waiting:
        at = waiting.pop()
        path = folder.joinpath(*at.parts)
        own = identity(path)
        if reason := _refused(at, own, out):
            found.skipped[Path(*at.parts)] = reason
            continue
        try:
            with os.scandir(path) as entries:
                inner = [entry for entry in entries if not entry.name.startswith(HIDDEN)]
        except OSError as error:
            found.unreadable[Path(*at.parts)] = error.strerror
            continue
        for entry in inner:
            parts = (*at.parts, entry.name)
            if _is_folder(entry):
                if fits(parts, True):
                    n_links = at.n_links + entry.is_symlink()
                    waiting.append(_Folder(parts, (*at.above, own), n_links))
            elif fits(parts, False):
                _add(found, entry, Path(*parts))
    found.files.sort(key=lambda file: file.parts)
    return found


def _refused(at: _Folder, own: Identity, output: Identity | None) -> str:
    """Why a folder is not entered, or an empty string."""
    if at.parts and own == output:
        return "the output folder"
    if own in at.above:
        return "a link to a folder above it"
    return f"behind {LINKS_MAX} linked folders" if at.n_links > LINKS_MAX else ""


def _add(found: Listing, entry: os.DirEntry, path: Path) -> None:
    if path.suffix.lower() in SUFFIXES:
        found.files.append(path)  # a link to nothing is an error of the reader
    elif entry.is_symlink() and not os.path.exists(entry):  # noqa: PTH110
        found.skipped[path] = "a link to nothing"
    else:
        found.endings[path.suffix.lower()] += 1


def _is_folder(entry: os.DirEntry) -> bool:
    """Of a link, its target; False, without an error, for a link to itself.

    The listing identifies a folder even where the permission to examine its entries is missing.
    """
    return entry.is_dir(follow_symlinks=False) or os.path.isdir(entry)  # noqa: PTH112


def names_of_sources(n_sources: int) -> tuple[str, ...]:
    """Folders of the sources of mixtures, or of their estimates: s1, s2, ..."""
    return tuple(f"s{n}" for n in range(1, n_sources + 1))


def identity(path: Path) -> Identity:
    """The same value for all names of a file; the path itself where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return path
    return status.st_dev, status.st_ino
