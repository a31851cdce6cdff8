"""Decode a file of a stranger: in a process of its own, with limits of time and memory.

A sound file can be a bomb, or hit a fault of a decoder. Then only the process ends, and the page
says so. The limit of time holds everywhere. The limit of memory is `resource.setrlimit`: Linux
keeps it, macOS accepts it without effect, and Windows has none. There only the checks of the
header bound the memory.
"""

import sys
import threading
from pathlib import Path

import numpy as np

from speechlab.audio import files
from speechlab.errors import UserError
from speechlab.parallel import Workers

MAX_SECONDS = 120
MAX_CHANNELS = 8
MAX_SAMPLES = 2**26  # of all channels: 256 MiB
LIMIT_S = 60.0  # for one file
LIMIT_BYTES = 2**31  # more address space than before the first file

BUSY = threading.Lock()  # one file at a time


def load(path: str) -> tuple[np.ndarray, int]:
    """(C, T) float32 and its rate in Hz. UserError as `files.load`, and for the limits here."""
    with BUSY:
        [answer] = PROCESS.results([path])
    if answer is None:
        raise UserError(
            f"{path}: not decoded within {LIMIT_S:.0f} s and {LIMIT_BYTES // 2**20} MB; "
            "convert it to WAV"
        )
    if isinstance(answer, str):
        raise UserError(answer)
    return answer


def decoded(path: str) -> tuple[np.ndarray, int] | str:
    """In the process: the samples and the rate, or what is wrong."""
    _limit_memory()
    try:
        recording = files.Recording(path)
        _check(recording)
        return recording.whole().numpy(), recording.sample_rate
    except UserError as error:
        return str(error)
    except MemoryError:
        return f"{path}: needs more than {LIMIT_BYTES // 2**20} MB; cut it"


def _check(recording: files.Recording) -> None:
    """UserError from the header alone."""
    seconds, channels = recording.n_frames / recording.file_rate, recording.n_channels
    if seconds > MAX_SECONDS:
        raise UserError(f"the recording lasts {seconds:.0f} s: cut it to {MAX_SECONDS} s")
    if channels > MAX_CHANNELS:
        raise UserError(f"the recording has {channels} channels: take at most {MAX_CHANNELS}")
    if channels * recording.n_frames > MAX_SAMPLES:
        raise UserError("the recording is too large: take fewer channels or a lower rate")


def _limit_memory() -> None:
    """Once per process; later calls keep the first limit."""
    if sys.platform != "linux":
        return
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_AS)
    if now == resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))


PROCESS = Workers(decoded, 1, LIMIT_S)
