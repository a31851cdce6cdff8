"""The program that speaks one utterance by espeak-ng, in a process of its own.

espeak-ng keeps hidden state between utterances and seeds its random numbers from the clock. So each
utterance gets a new process and a seed, and always has the same bytes. `speech.say` starts the
program. It imports only the standard library, as more would take longer than the speech.
"""

import contextlib
import ctypes
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATH_BYTES_MAX = 120  # of the data folder; espeak-ng cuts paths of files at 160 bytes
RETRIEVAL = 1  # AUDIO_OUTPUT_RETRIEVAL: samples go to the callback
TEXT_IS_UTF8 = 1  # espeakCHARS_UTF8
# espeak_PARAMETER -> its value, or the request's key for it
PARAMETERS = {
    1: "words_per_minute",
    2: 30,  # volume in per cent; at the default of 100 loud voices clip
    3: "pitch",
    4: "pitch_range",
}
CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_int16), ctypes.c_int, ctypes.c_void_p
)


def speak(request: dict[str, Any]) -> tuple[int, bytes]:
    """Sample rate (Hz) and int16 samples. RuntimeError if espeak-ng refuses.

    request: library and data (paths), text, voice (as "en-us+f2"), words_per_minute, pitch (0-99),
    pitch_range (0-99) and seed (below 2**31).
    """
    library = ctypes.CDLL(request["library"])
    parts: list[bytes] = []

    @CALLBACK
    def keep(samples: Any, n_samples: int, _: Any) -> int:
        if samples and n_samples > 0:
            parts.append(ctypes.string_at(samples, 2 * n_samples))
        return 0

    with short_path(request["data"]) as data:
        sample_rate = library.espeak_Initialize(RETRIEVAL, 0, os.fsencode(data), 0)
        if sample_rate <= 0:
            raise RuntimeError(f"its data in {data} cannot be read")
        library.espeak_SetSynthCallback(keep)
        if library.espeak_SetVoiceByName(request["voice"].encode()):
            raise RuntimeError(f"it has no voice {request['voice']}")
        for parameter, value in PARAMETERS.items():
            library.espeak_SetParameter(parameter, request.get(value, value), 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(request["seed"]))
        text = request["text"].encode()
        size = ctypes.c_size_t(len(text) + 1)
        fault = library.espeak_Synth(text, size, 0, 0, 0, TEXT_IS_UTF8, None, None)
        if fault or library.espeak_Synchronize():
            raise RuntimeError(f"it does not speak {request['text']!r}")
    return sample_rate, b"".join(parts)


@contextlib.contextmanager
def short_path(data: str) -> Iterator[str]:
    """A path to the data that fits the buffers of espeak-ng: itself, a link, or a copy."""
    if len(os.fsencode(data)) <= PATH_BYTES_MAX:
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="espeak") as folder:
        short = Path(folder, "espeak-ng-data")
        try:
            short.symlink_to(Path(data).resolve(), target_is_directory=True)
        except OSError:  # no links here
            shutil.copytree(data, short)
        yield str(short)


if __name__ == "__main__":
    rate, spoken = speak(json.load(sys.stdin))
    sys.stdout.buffer.write(rate.to_bytes(4, "little") + spoken)
