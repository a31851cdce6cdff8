"""Memory that a call takes at most (Linux only)."""

import ctypes
import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

PROCESS = Path("/proc/self")


def peak_memory(function: Callable[..., Any], *arguments: Any) -> float:
    """Bytes that function(*arguments) adds at most to a new process, imports not counted.

    The peak of the resident set during the call minus the resident set before it. The process is
    `spawn`ed: the function must be importable, and a script must call this under
    `if __name__ == "__main__"`. NaN on a system without /proc.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(added_memory, function, *arguments).result()


def added_memory(function: Callable[..., Any], *arguments: Any) -> float:
    """Bytes that function(*arguments) adds at most to this process; NaN on a system without /proc.

    Freed memory is first returned to the system, if the C library can (glibc); elsewhere a call
    that takes such memory again adds less.
    """
    if not (PROCESS / "clear_refs").exists():
        return math.nan
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back:
        give_back(0)
    (PROCESS / "clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    function(*arguments)
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """Bytes of VmRSS (now) or VmHWM (peak)."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(field):
            return 1024.0 * int(line.split()[1])
    return math.nan
