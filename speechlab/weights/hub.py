"""The published weights: list, download, verify.

`weights.csv` lists each file by repository, commit, path and git blob id, with its size, scores and
a recommendation where it was measured (tests compare them with results/). The blob id is a hash of
the content (sha1 over "blob <size>\\0" and the bytes), so it verifies a file of any source: an
offline folder, the cache or the network. The name of a file is its stem
("Experiment_CleanU_Mamba"). Stems are unique. Two names may have the same content: MP-SENet +
Mamba publishes its best model twice.
"""

import csv
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from speechlab.errors import UserError, meant, reason, unknown
from speechlab.storage import download as downloads
from speechlab.storage import locks
from speechlab.weights import own

LOG = logging.getLogger(__name__)
BASE_URL = "https://raw.githubusercontent.com"  # BASE_URL/owner/name/commit/path
OFFLINE_VARIABLE = "SPEECHLAB_WEIGHTS"  # a folder with the files; if set, the network is not used
OFFLINE = "SPEECHLAB_OFFLINE"  # if set, no file is fetched that nobody asked to download
MOST_FETCHED = 8e6  # bytes of a file that is fetched on first use; larger ones are asked for
WAITS_S = (0.5,)  # between its attempts: without a network the error comes within seconds


@dataclass(frozen=True)
class PublishedFile:
    system: str
    repository: str  # owner/name on GitHub
    commit: str
    path: str  # in the repository
    git_blob_sha1: str
    n_bytes: str = ""  # as text, like all numbers here; "" where unknown
    n_params: str = ""
    pesq_wb: str = ""  # measured here: mean over DNS-2020 no_reverb, results/tables
    use: str = ""  # recommendation; recordings of minutes: results/LOG.md, 2026-11-20

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).stem

    @property
    def url(self) -> str:
        return f"{BASE_URL}/{self.repository}/{self.commit}/{quote(self.path)}"


def published(system: str | None = None) -> list[PublishedFile]:
    """All published files, or those of one system ("cleanumamba"), in the order of the table."""
    systems = sorted({row.system for row in _rows()})
    if system not in (None, *systems):
        raise unknown("published weights of", system, systems)
    return [row for row in _rows() if system in (None, row.system)]


@cache
def _rows() -> tuple[PublishedFile, ...]:
    table = files("speechlab.weights").joinpath("weights.csv").read_text(encoding="utf-8")
    return tuple(PublishedFile(**row) for row in csv.DictReader(table.splitlines()))


def lookup(name: str) -> PublishedFile:
    """The published file of a name: stem, file name, "system/stem" or an end of its path.

    Case does not matter. A whole part of a path ("Mamba.pkl") wins over an end of one. Raises
    UserError for an unknown or an ambiguous name.
    """
    key = name.replace("\\", "/").strip("/").lower()

    def ending(key: str) -> list[PublishedFile]:
        return [row for row in published() if any(f"/{s}".endswith(key) for s in _spellings(row))]

    found = (ending(f"/{key}") or ending(key)) if key else []
    if not found:
        near = meant(key, (row.name for row in published()))
        raise UserError(
            f"no published weights are named {name!r}{near}; see `speechlab weights list`"
        )
    if len(found) > 1:
        choice = ", ".join(f"{row.system}/{row.name}" for row in found)
        raise UserError(f"{name!r} matches several published files; choose one of {choice}")
    return found[0]


def _spellings(row: PublishedFile) -> tuple[str, ...]:
    address = f"{row.repository}/{row.path}".lower()
    return address, str(PurePosixPath(address).with_suffix("")), f"{row.system}/{row.name}".lower()


def offline_folder() -> Path | None:
    """The folder of SPEECHLAB_WEIGHTS, or None; UserError if it is not a folder."""
    value = os.environ.get(OFFLINE_VARIABLE)
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"{OFFLINE_VARIABLE} names {folder}, which is no folder; create or unset it"
        )
    return folder


def cache_folder() -> Path:
    """The folder of downloads, in XDG_CACHE_HOME if set, else in the platform's cache folder."""
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if Path(xdg).is_absolute():  # the specification ignores relative paths
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

    Searches SPEECHLAB_WEIGHTS (at any depth), then the cache. UserError if files of this name have
    other content.
    """
    wanted = lookup(name)
    filename = PurePosixPath(wanted.path).name
    for folder in filter(None, (offline_folder(), cache_folder())):
        named = sorted(Path(at, filename) for at, _, names in os.walk(folder) if filename in names)
        for path in named:
            try:
                if downloads.content_id(path, "git") == wanted.git_blob_sha1:
                    return path
            except OSError as error:
                raise UserError(f"{path} cannot be read: {reason(error)}") from error
        if named:
            raise UserError(
                f"{named[0]} is not the published {wanted.name} (git blob id differs); delete or "
                "replace it"
            )
    return None


def download(name: str, progress: bool = True, waits: Sequence[float] | None = None) -> Path:
    """The local copy of a published file, downloaded from its authors' repository if missing.

    A broken download resumes from its `.part`, which is renamed once its git blob id is right. With
    SPEECHLAB_WEIGHTS set nothing is downloaded. Each failure is a UserError that says what to do
    without a network. waits: as of `downloads.fetch`.
    """
    wanted = lookup(name)
    present = find(wanted.name)
    if present is not None:
        return present
    if offline := offline_folder():
        missing = f"{wanted.name} is not in {offline} ({OFFLINE_VARIABLE})"
        raise UserError(f"{missing}; put {wanted.url} there, or unset the setting")
    target = cache_folder() / wanted.repository / wanted.commit / wanted.path
    busy = f"{wanted.name}: another process downloads it; waiting"
    elsewhere = "set XDG_CACHE_HOME to another disk"
    with locks.waited_for(target.with_name(f"{target.name}.lock"), LOG.warning, busy, elsewhere):
        return downloads.fetch(
            wanted.url,
            target,
            f"git:{wanted.git_blob_sha1}",
            what=f"the published {wanted.name}",
            advice=f"offline, put {target.name} into a folder and name it in {OFFLINE_VARIABLE}",
            elsewhere=elsewhere,
            progress=progress,
            waits=waits,
        )


def locate(path: str | Path) -> Path:
    """The checkpoint file of a path, a run directory, a name in checkpoints/ or a published name.

    A published file that is not on this machine is downloaded and verified, if it is small
    (MOST_FETCHED) and OFFLINE is not set. UserError where there is no such file.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _in_directory(path)
        if path.is_file():
            return path
    except OSError as error:  # a name that is too long, a folder that must not be read
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error
    if own_file := own.find(str(path)):
        return own_file
    names = {file.name.lower(): file.name for file in published()}
    name = names.get(path.name.lower(), names.get(path.stem.lower()))
    if name is None or path.name != str(path):
        near = meant(path.name, (*(file.name for file in own.files()), *names.values()))
        raise UserError(
            f"{path}: no such checkpoint{near}; `speechlab weights list` lists published ones"
        )
    return find(name) or _fetched(lookup(name))


def _fetched(wanted: PublishedFile) -> Path:
    """The file, downloaded from its authors' repository; UserError where it is to be asked for."""
    small = wanted.n_bytes and int(wanted.n_bytes) <= MOST_FETCHED
    if not small or os.environ.get(OFFLINE):
        advice = f"run `speechlab weights download {wanted.name}`"
        raise UserError(f"{wanted.name}: not downloaded; {advice}")
    if not offline_folder():
        size = f"{int(wanted.n_bytes) / 1e6:.1f} MB"
        LOG.warning("%s: fetching %s from github.com/%s", wanted.name, size, wanted.repository)
    return download(wanted.name, waits=WAITS_S)


def _in_directory(path: Path) -> Path:
    best = path / "best.safetensors"
    found = [best] if best.is_file() else sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise UserError(
            f"{path}: holds {len(found)} .safetensors files and no best.safetensors; name the file "
            "itself"
        )
    return found[0]


def table() -> list[dict[str, Any]]:
    """Our files, then all published ones: name, system, MB, n_params, pesq_wb, use, where.

    Numbers are None where they are not known.
    `where`: path of the verified local copy, "" without one, or why the local file is unusable.
    """
    offline_folder()  # a wrong setting is one error, not one per row
    ours = [
        {
            **{"name": file.name, "system": file.system},
            "MB": round(file.path.stat().st_size / 1e6, 1),
            **{"n_params": file.n_params, "pesq_wb": file.pesq_wb, "use": file.use},
            "where": str(file.path),
        }
        for file in own.files()
    ]
    return ours + [
        {
            "name": row.name,
            "system": row.system,
            "MB": round(int(row.n_bytes) / 1e6, 1) if row.n_bytes else None,
            "n_params": int(row.n_params) if row.n_params else None,
            "pesq_wb": float(row.pesq_wb) if row.pesq_wb else None,
            "use": row.use,
            "where": _where(row),
        }
        for row in published()
    ]


def sources() -> list[str]:
    """The repositories of the files, each once: owner/name@commit."""
    return list(dict.fromkeys(f"{row.repository}@{row.commit[:7]}" for row in published()))


def _where(row: PublishedFile) -> str:
    try:
        path = find(row.name)
    except UserError as error:
        return f"unusable: {error}"
    return "" if path is None else str(path)
