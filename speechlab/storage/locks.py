"""Files and folders that one process at a time holds; a lock ends with its process, always."""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from speechlab.errors import UserError

POLL_S = 0.2  # between two looks at a lock that another process has


def take(file: IO) -> bool:
    """Take an open file for this process until it is closed; False where another has it.

    A lock of POSIX's kind: a worker that outlives its killed parent does not inherit it.
    UserError where the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        lock, options = msvcrt.locking, (msvcrt.LK_NBLCK, 1)
    else:
        lock, options = fcntl.lockf, (fcntl.LOCK_EX | fcntl.LOCK_NB,)
    try:
        lock(file.fileno(), *options)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise UserError(
            f"{file.name}: this file system has no locks ({error.strerror}); take another folder"
        ) from error
    return True


@contextlib.contextmanager
def waited_for(path: Path, tell: Callable[[str], None], busy: str) -> Iterator[None]:
    """Hold the file `path`; while another process does, wait, and tell once that it is `busy`.

    The file and its folder are made, and the file is removed at the end; what a killed process
    leaves is in nobody's way. UserError where there can be no such file.
    """
    taken = _taken(path)
    if taken is None:
        tell(busy)
    while taken is None:
        time.sleep(POLL_S)
        taken = _taken(path)
    with taken:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _taken(path: Path) -> IO | None:
    """The file, open and held by this process; None where another one has, or just had, it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(file)
        with contextlib.suppress(FileNotFoundError):
            # whoever had it may have removed it since it was opened, and others see a new one
            if take(file) and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                stack.pop_all()
                return file
    return None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder and hold it for this process; UserError where another one works in it.

    The system lets go of it when the process ends, however that comes. Where it has no such locks
    (Windows, some network drives) nothing is held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"{folder}: no folder to write to ({error.strerror}); choose another output"
        ) from error
    with contextlib.ExitStack() as stack:
        _lock(folder, stack)
        yield


def _lock(folder: Path, stack: contextlib.ExitStack) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    handle = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{folder}: another run writes there; wait for it, or choose another output"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
