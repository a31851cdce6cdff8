"""Extraction of zip and tar archives, atomic and confined to the target folder.

Files are extracted to a temporary folder, which is renamed at the end. So no incomplete folder is
read, and an interrupted call resumes. All names and sizes are checked before anything is written,
and the headers of a tar archive have a largest size.
"""

import contextlib
import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, Self

from speechlab.errors import UserError, reason, shown
from speechlab.progress import Report
from speechlab.storage.atomic import replacing, unfinished
from speechlab.storage.download import check_space

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
CHUNK_BYTES = 1 << 18
MOST_MEMBERS = 500_000  # of an archive: their names and sizes take about 1 GB
LARGEST_HEADER = 1 << 20  # bytes, of a long name or of pax records
LARGEST_PADDING = 1 << 22  # bytes after the last member of a tar archive
LONGEST_NAME = 255, 3000  # bytes: of a file, of its path
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)
DAMAGE += (lzma.LZMAError, struct.error, ValueError, OverflowError)
DAMAGE += (RuntimeError,)  # zipfile cannot decode it


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
            _check(archive, members)
            n_bytes = sum(member.n_bytes for member in members)
            check_space(folder.parent, n_bytes, f"unpacking {archive}")
            with _writing(side):
                _begin(side, archive)
                with Report(f"unpacking {archive.name}", n_bytes, "B", shown=progress) as report:
                    for member in members:
                        _extract(member, side)
                        report.update(member.n_bytes)
    except (*DAMAGE, OSError) as error:
        shutil.rmtree(side, ignore_errors=True)
        fault = f"{archive} is damaged ({reason(error)}); delete it and fetch it again"
        raise UserError(fault) from error
    _marker(side).unlink()
    os.replace(side, folder)
    return folder


@contextlib.contextmanager
def _writing(side: Path) -> Iterator[None]:
    """An error of the disk becomes a UserError, unlike one of the archive."""
    try:
        yield
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # of bz2; of a place before the archive's start
            raise
        raise UserError(f"{side} cannot be written: {reason(error)}") from error


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    """The files of an archive, without folders and without those that macOS adds.

    At its end the rest of a tar archive is read, because the checksum is there.
    """
    if not archive.name.lower().endswith(ENDINGS):
        raise UserError(
            f"{archive}: no archive known here; it ends in none of {', '.join(ENDINGS)}"
        )
    if not archive.is_file():
        raise UserError(f"{archive}: no such file; fetch it again")
    with contextlib.ExitStack() as stack:
        if archive.suffix.lower() == ".zip":
            file = stack.enter_context(zipfile.ZipFile(archive))
            members = _of_zip(file)
        else:
            file = stack.enter_context(tarfile.open(archive, tarinfo=_Header))
            members = _of_tar(file)
        yield [m for m in members if "__MACOSX" not in PurePosixPath(m.name).parts]
        if isinstance(file, tarfile.TarFile):
            _read_to_the_end(file.fileobj)


def _read_to_the_end(file: BinaryIO) -> None:
    """Read the padding and the checksum; ValueError where more than padding follows."""
    n_bytes = 0
    while chunk := file.read(CHUNK_BYTES):
        n_bytes += len(chunk)
        if n_bytes > LARGEST_PADDING:
            raise ValueError("data follow its last member")


class _Header(tarfile.TarInfo):
    """A header of a tar archive; ValueError for one that would take much memory."""

    @classmethod
    def frombuf(cls, *given: Any) -> Self:
        header = super().frombuf(*given)
        if header.type == tarfile.GNUTYPE_SPARSE:
            header._refuse_sparse()
        if header.type not in tarfile.REGULAR_TYPES and header.size > LARGEST_HEADER:
            raise ValueError(f"a header of {header.size} bytes")
        return header

    def _refuse_sparse(self, *given: Any) -> None:
        raise ValueError("a sparse file")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


def _of_zip(file: zipfile.ZipFile) -> list[_Member]:
    return [
        _Member(
            info.filename,
            info.file_size,
            # upper half: the Unix mode; 0 if another system wrote the archive
            stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG),
            partial(file.open, info),
        )
        for info in file.infolist()
        if not info.filename.endswith("/")
    ]


def _of_tar(file: tarfile.TarFile) -> list[_Member]:
    members = []
    for n, info in enumerate(file):
        if n == MOST_MEMBERS:
            raise ValueError(f"more than {MOST_MEMBERS} members")
        if not re.fullmatch(r"\d+", info.pax_headers.get("size", "0")):
            raise ValueError("a size that is no number")
        if not info.isdir():
            size, plain = info.size, info.isreg()
            members.append(_Member(info.name, size, plain, partial(file.extractfile, info)))
    return members


def _check(archive: Path, members: list[_Member]) -> None:
    """UserError for a member that cannot be written as a plain file inside the folder."""
    for member in members:
        _check_name(archive, member)
    names = Counter(PurePosixPath(member.name) for member in members)
    for name, n in names.items():
        if n > 1 or any(folder in names for folder in name.parents):
            raise UserError(f"{archive}: {name} is in it twice, or is a file and a folder")


def _check_name(archive: Path, member: _Member) -> None:
    name = member.name
    parts = PurePosixPath(name).parts
    size = max((len(os.fsencode(part)) for part in parts), default=0)
    if not parts or size > LONGEST_NAME[0] or len(os.fsencode(name)) > LONGEST_NAME[1]:
        raise UserError(f"{archive}: a file in it has no usable name ({shown(name, 50)!r})")
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
