"""Files that are there whole or not at all: written beside their place, then renamed; digests."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A place to write what `path` shall hold: `with replacing(path) as part: part.write_text(x)`.

    At the end it is on the disk and takes its name; where anything goes wrong it is removed, and
    an older file stays. Folders are made. Raises OSError, for the caller to say what it means.
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
        part.unlink(missing_ok=True)  # once renamed, there is none


def sha256(path: Path) -> str:
    """Of a file's content, in hex; it is never in memory as a whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unfinished(path: Path) -> Path:
    """Where the content of `path` goes until it is complete; a killed run leaves it behind."""
    return path.with_name(os.fsdecode(os.fsencode(path.name)[:250]) + ".part")  # names end at 255
