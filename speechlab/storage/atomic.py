"""Atomic writes (temporary file, then rename) and SHA-256 digests."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from speechlab.errors import UserError, reason


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file that replaces `path`: `with replacing(path) as part: part.write_text(x)`.

    At the end it is synced and renamed; after an error it is removed, and an older file stays.
    Makes the folder. Raises OSError; the caller explains it.
    """
    path = Path(path)
    part = unfinished(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Atomic write, text in UTF-8. UserError if it fails; an older file stays."""
    content = content.encode() if isinstance(content, str) else content
    try:
        with replacing(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)})") from error


def keep(path: Path, copy: Path) -> None:
    """Atomic copy, where the disk can as a second name of the same file. UserError if it fails."""
    try:
        with replacing(copy) as part:
            part.unlink(missing_ok=True)
            try:
                os.link(path, part)
            except OSError:  # a disk without links
                shutil.copyfile(path, part)
    except OSError as error:
        raise UserError(f"{copy}: cannot be written ({reason(error)})") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex; reads it in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unfinished(path: Path) -> Path:
    """The temporary file for `path`; a killed run leaves it behind."""
    return path.with_name(os.fsdecode(os.fsencode(path.name)[:250]) + ".part")  # names end at 255
