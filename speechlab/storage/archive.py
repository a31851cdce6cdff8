"""Extraction of zip and tar archives, atomic and confined to the target folder.

Files are extracted to a temporary folder, which is renamed at the end. So no incomplete folder is
read, and an interrupted call resumes.
"""

import contextlib
import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from speechlab.errors import UserError
from speechlab.progress import Report
from speechlab.storage.atomic import replacing, unfinished
from speechlab.storage.download import check_space

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
CHUNK_BYTES = 1 << 18
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)


@dataclass(frozen=True)
class _Member:
    """A file in an archive."""

    name: str
    n_bytes: int
    is_plain: bool  # neither a link nor a device
    open: Callable[[], BinaryIO]


def unpack(archive: Path, folder: Path, progress: bool = True) -> Path:
    """Extract a zip or tar archive to `folder`; an existing folder is returned as it is.

    Files go to `<folder>.part`; an interrupted call resumes there. UserError before anything is
    written if a member is outside the folder, a link or a device, or the disk is too small; also if
    the archive is damaged.
    """
    if folder.is_dir():
        return folder
    side = unfinished(folder)
    try:
        with _members(archive) as members:
            for member in members:
                _check(archive, member)
            n_bytes = sum(member.n_bytes for member in members)
            check_space(folder.parent, n_bytes, f"unpacking {archive}")
            _begin(side, archive)
            with Report(f"unpacking {archive.name}", n_bytes, "B", shown=progress) as report:
                for member in members:
                    _extract(member, side)
                    report.update(member.n_bytes)
    except (*DAMAGE, RuntimeError) as error:  # RuntimeError: zipfile cannot decode it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{archive} is damaged ({reason}); delete it and fetch it again") from error
    except OSError as error:
        raise UserError(f"{side} cannot be written: {error.strerror or error}") from error
    _marker(side).unlink()
    os.replace(side, folder)
    return folder


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    """The files of an archive, without folders and without those that macOS adds."""
    if not archive.name.lower().endswith(ENDINGS):
        raise UserError(
            f"{archive}: no archive known here; it ends in none of {', '.join(ENDINGS)}"
        )
    if not archive.is_file():
        raise UserError(f"{archive}: no such file; fetch it again")
    with contextlib.ExitStack() as stack:
        if archive.suffix.lower() == ".zip":
            members = _of_zip(stack.enter_context(zipfile.ZipFile(archive)))
        else:
            members = _of_tar(stack.enter_context(tarfile.open(archive)))
        yield [m for m in members if "__MACOSX" not in PurePosixPath(m.name).parts]


def _of_zip(file: zipfile.ZipFile) -> list[_Member]:
    return [
        _Member(
            info.filename,
            info.file_size,
            # upper half: the Unix mode; 0 if another system wrote the archive
            stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG),
            lambda info=info: file.open(info),
        )
        for info in file.infolist()
        if not info.is_dir()
    ]


def _of_tar(file: tarfile.TarFile) -> list[_Member]:
    return [
        _Member(info.name, info.size, info.isreg(), lambda info=info: file.extractfile(info))
        for info in file.getmembers()
        if not info.isdir()
    ]


def _check(archive: Path, member: _Member) -> None:
    """UserError for a member outside the folder (on any system), or one that is no plain file."""
    name = member.name
    inside = (
        "\\" not in name
        and ".." not in PurePosixPath(name).parts
        and not PurePosixPath(name).is_absolute()
        and not PureWindowsPath(name).drive
    )
    if not inside:
        raise UserError(
            f"{archive}: {name!r} would be written outside its folder; nothing was unpacked: "
            "do not trust this archive"
        )
    if not member.is_plain:
        raise UserError(
            f"{archive}: {name} is a link or a device; nothing was unpacked: "
            "do not trust this archive"
        )


def _begin(side: Path, archive: Path) -> None:
    """Make an empty side folder, or keep that of an interrupted call for the same archive."""
    state = archive.stat()
    identity = f"{archive.name} {state.st_size} {state.st_mtime_ns}\n"
    if side.exists() and not (_marker(side).exists() and _marker(side).read_text() == identity):
        shutil.rmtree(side)
    side.mkdir(parents=True, exist_ok=True)
    _marker(side).write_text(identity)


def _marker(side: Path) -> Path:
    return side / ".speechlab-archive"


def _extract(member: _Member, side: Path) -> None:
    target = side / member.name
    if target.is_file() and target.stat().st_size == member.n_bytes:
        return  # complete: files are written atomically
    with replacing(target) as part, member.open() as source, part.open("wb") as copy:
        shutil.copyfileobj(source, copy, CHUNK_BYTES)
