"""Lock files: one process at a time. A lock ends with its process, even a killed one.

filelock does the locking. A forked worker that outlives its killed parent does not keep its lock.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from speechlab.errors import UserError, reason

POLL_S = 0.2  # between two attempts


def acquired(path: Path, elsewhere: str = "choose another folder") -> FileLock | None:
    """Acquire the lock file `path`; None if it is locked. Makes its folder.

    UserError, which ends with `elsewhere`, if the file cannot be written or locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # filelock takes a file that cannot be created for a locked one
            path.touch()
        lock = FileLock(path, fallback_to_soft=False)
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written or locked ({reason(error)}); {elsewhere}"
        ) from error
    return lock


@contextlib.contextmanager
def waited_for(
    path: Path,
    tell: Callable[[str], None],
    busy: str,
    elsewhere: str = "choose another folder",
) -> Iterator[None]:
    """Hold the lock file `path`. If another process holds it, call `tell(busy)` once and wait.

    The file is removed at the end; one left by a killed process does no harm. UserError as in
    `acquired`.
    """
    lock = acquired(path, elsewhere)
    if lock is None:
        tell(busy)
    while lock is None:
        time.sleep(POLL_S)
        lock = acquired(path, elsewhere)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder and lock it for this process, without a file; UserError if it is locked.

    On systems without locks on folders (Windows, some network drives) nothing is locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"{folder}: no folder to write to ({reason(error)}); choose another output"
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
