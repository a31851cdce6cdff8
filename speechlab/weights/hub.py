"""The weights that the systems' authors publish: which files there are and how to get them.

`weights.csv` names every file by repository, commit, path and git blob id. The blob id is the
content's own name (sha1 over "blob <size>\\0" and the bytes), so a file is right wherever it came
from: an offline folder, the cache or the network. A file is called by its stem
("Experiment_CleanU_Mamba"). Stems are unique in the table; two rows may still hold the same bytes
under two names (MP-SENet + Mamba publishes its best model twice), and each is kept under its own.
"""

import csv
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import pandas as pd

from speechlab.errors import UserError
from speechlab.storage import download as downloads

BASE_URL = "https://raw.githubusercontent.com"  # of raw files: BASE_URL/owner/name/commit/path
OFFLINE_VARIABLE = "SPEECHLAB_WEIGHTS"  # a folder with the files; once set, no network is touched


@dataclass(frozen=True)
class PublishedFile:
    system: str
    repository: str  # owner/name on GitHub
    commit: str
    path: str  # in the repository
    git_blob_sha1: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).stem

    @property
    def url(self) -> str:
        return f"{BASE_URL}/{self.repository}/{self.commit}/{quote(self.path)}"


def published(system: str | None = None) -> list[PublishedFile]:
    """All published files, or those of one system ("cleanumamba"), in the order of the table."""
    rows = list(_rows())
    systems = sorted({row.system for row in rows})
    if system is not None and system not in systems:
        raise UserError(
            f"no published weights of {system!r}: known systems are {', '.join(systems)}"
        )
    return [row for row in rows if system in (None, row.system)]


@cache
def _rows() -> tuple[PublishedFile, ...]:
    with (
        files("speechlab.weights")
        .joinpath("weights.csv")
        .open(encoding="utf-8", newline="") as stream
    ):
        return tuple(PublishedFile(**row) for row in csv.DictReader(stream))


def lookup(name: str) -> PublishedFile:
    """The published file called `name`: its stem, file name, "system/stem" or an end of its path.

    Upper and lower case are the same. Whole names win over mere ends ("Mamba.pkl"), and an end
    must belong to one file alone. Raises UserError for an unknown or an ambiguous name.
    """
    key = name.replace("\\", "/").strip("/").lower()
    spellings = {row: _spellings(row) for row in published()}
    whole = [
        row for row, known in spellings.items() if any(f"/{s}".endswith(f"/{key}") for s in known)
    ]
    found = whole or [
        row for row, known in spellings.items() if any(s.endswith(key) for s in known)
    ]
    if not key or not found:
        raise UserError(
            f"no published weights are called {name!r}: `speechlab weights list` names them"
        )
    if len(found) > 1:
        choice = ", ".join(f"{row.system}/{row.name}" for row in found)
        raise UserError(f"{name!r} means more than one published file: choose from {choice}")
    return found[0]


def _spellings(row: PublishedFile) -> tuple[str, ...]:
    address = f"{row.repository}/{row.path}".lower()
    return address, str(PurePosixPath(address).with_suffix("")), f"{row.system}/{row.name}".lower()


def offline_folder() -> Path | None:
    """The folder named by SPEECHLAB_WEIGHTS, or None; a folder that is not there is a UserError."""
    value = os.environ.get(OFFLINE_VARIABLE)
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"{OFFLINE_VARIABLE} names {folder}, which is no folder: create it or unset the setting"
        )
    return folder


def cache_folder() -> Path:
    """Where downloads are kept: XDG_CACHE_HOME where it is set, else the platform's own place."""
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if Path(xdg).is_absolute():  # the specification: a relative path is to be ignored
        base = Path(xdg)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path.home() / ".cache"
    return base / "speechlab" / "weights"


def find(name: str) -> Path | None:
    """The verified local copy of a published file, or None.

    Looks in SPEECHLAB_WEIGHTS (at any depth), then in the cache. A file of the right name with
    other content is a UserError that names it: it is neither used nor passed over.
    """
    return _find(lookup(name))


def _find(wanted: PublishedFile) -> Path | None:
    for folder in (offline_folder(), cache_folder()):
        named = [] if folder is None else _named(folder, PurePosixPath(wanted.path).name)
        for path in named:
            if _content_id(path) == wanted.git_blob_sha1:
                return path
        if named:
            raise UserError(
                f"{named[0]} is not the published {wanted.name} (git blob id differs): "
                "delete or replace it"
            )
    return None


def _named(folder: Path, filename: str) -> list[Path]:
    return sorted(
        Path(parent, filename) for parent, _, names in os.walk(folder) if filename in names
    )


def _content_id(path: Path) -> str:
    try:
        return downloads.content_id(path, "git")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def download(name: str, progress: bool = True) -> Path:
    """The local copy of a published file, fetched from its authors' repository where it is missing.

    A broken download is resumed from its `.part`; the file takes its place only once its git blob
    id is right. With SPEECHLAB_WEIGHTS set nothing is fetched. Every failure is a UserError that
    says what to do without a network.
    """
    wanted = lookup(name)
    present = _find(wanted)
    if present is not None:
        return present
    if offline := offline_folder():
        raise UserError(
            f"{wanted.name} is not in {offline} ({OFFLINE_VARIABLE}): put {wanted.url} there, "
            "or unset the setting"
        )
    return downloads.fetch(
        wanted.url,
        cache_folder() / wanted.repository / wanted.commit / wanted.path,
        f"git:{wanted.git_blob_sha1}",
        what=f"the published {wanted.name}",
        advice=_without_network(wanted),
        elsewhere="set XDG_CACHE_HOME to another disk",
        progress=progress,
    )


def _without_network(wanted: PublishedFile) -> str:
    filename = PurePosixPath(wanted.path).name
    return f"offline, put {filename} into a folder and name the folder in {OFFLINE_VARIABLE}"


def table() -> pd.DataFrame:
    """What is published and what is here: name, system, source ("owner/name@commit"), where.

    `where` is the path of the verified local copy, empty where there is none, or why the file
    found is unusable.
    """
    offline_folder()  # a wrong setting is one error, not one per row
    return pd.DataFrame(
        {
            "name": row.name,
            "system": row.system,
            "source": f"{row.repository}@{row.commit[:7]}",
            "where": _where(row),
        }
        for row in published()
    )


def _where(row: PublishedFile) -> str:
    try:
        path = _find(row)
    except UserError as error:
        return f"unusable: {error}"
    return "" if path is None else str(path)
