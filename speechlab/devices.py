"""Microphones and loudspeakers, through the optional package sounddevice.

A device calls back when it has, or wants, a block, and must never wait: the callbacks only move
blocks between the device and a queue. Queues are short, so that the delay cannot grow: a block that
finds no place is lost and counted (overrun), one that is not there in time is played as silence and
counted (underrun).
"""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from speechlab.errors import UserError

N_QUEUED = 32  # blocks between a device and us, at most
PATIENCE_S = 5.0  # for a device that has stopped to take blocks


def table() -> str:
    """The sound devices as a table: numbers, names, channels."""
    return str(_sounddevice().query_devices())


class Microphone:
    """One channel of an input device."""

    subtype = "PCM_16"
    n_channels = 1

    def __init__(self, device: int | str | None, sample_rate: int, block_ms: float) -> None:
        sounddevice = _sounddevice()
        self.sample_rate = _rate(sounddevice, "input", device, 1, sample_rate)
        self.overruns = 0
        self._blocks: queue.Queue[np.ndarray] = queue.Queue(N_QUEUED)
        with _device_errors():
            self._stream = sounddevice.InputStream(
                samplerate=self.sample_rate,
                blocksize=block_length(self.sample_rate, block_ms),
                device=device,
                channels=1,
                dtype="float32",
                callback=self._taken,
            )

    def __enter__(self) -> Self:
        with _device_errors():
            self._stream.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def blocks(self, stop: threading.Event) -> Iterator[Tensor]:
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                yield torch.from_numpy(self._blocks.get(timeout=0.1).T)
        self._stream.stop()

    def _taken(self, samples: np.ndarray, n_frames: int, clock: Any, status: Any) -> None:
        """Called by the device: (n, C), which is its own memory. What is no number is silence."""
        self.overruns += bool(status.input_overflow)
        try:
            self._blocks.put_nowait(np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0))
        except queue.Full:
            self.overruns += 1


class Loudspeaker:
    """An output device. It begins once some blocks are there, so that it need not wait for one."""

    def __init__(
        self, device: int | str | None, sample_rate: int, n_channels: int, block_ms: float
    ) -> None:
        sounddevice = _sounddevice()
        self.sample_rate = _rate(sounddevice, "output", device, n_channels, sample_rate)
        self.block_length = block_length(self.sample_rate, block_ms)
        # blocks in hand: a frame of the model (16 ms) may come as one, and one block may be late
        self.n_ahead = 1 + math.ceil(0.016 * self.sample_rate / self.block_length)
        self.ahead_s = self.n_ahead * self.block_length / self.sample_rate
        self.underruns = self.clipped = 0
        self._playing = False
        self._blocks: queue.Queue[np.ndarray] = queue.Queue(N_QUEUED)
        self._rest = torch.zeros(n_channels, 0)
        with _device_errors():
            self._stream = sounddevice.OutputStream(
                samplerate=self.sample_rate,
                blocksize=self.block_length,
                device=device,
                channels=n_channels,
                dtype="float32",
                callback=self._wanted,
            )

    def __enter__(self) -> Self:
        return self

    def write(self, block: Tensor) -> None:
        """(C, n) of any n; waits where the device has enough."""
        self.clipped += int((block.abs() > 1).sum())
        *whole, rest = torch.cat([self._rest, block.clamp(-1, 1)], -1).split(self.block_length, -1)
        if rest.shape[-1] == self.block_length:
            whole, rest = [*whole, rest], rest[:, :0]
        self._rest = rest
        for samples in whole:
            try:
                self._blocks.put(samples.T.numpy(), timeout=PATIENCE_S)
            except queue.Full as error:
                raise UserError(
                    "the sound device takes nothing any more; plug it in anew"
                ) from error
            if not self._playing and self._blocks.qsize() >= self.n_ahead:
                self._start()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._play_out()
        finally:
            self._stream.close()

    def _start(self) -> None:
        self._playing = True
        with _device_errors():
            self._stream.start()

    def _play_out(self) -> None:
        if n_rest := self._rest.shape[-1]:
            self.write(torch.zeros(len(self._rest), self.block_length - n_rest))
        if not self._playing and not self._blocks.empty():
            self._start()
        self._playing = False  # what is missing from here on was never there
        longest = time.monotonic() + 1 + 2 * N_QUEUED * self.block_length / self.sample_rate
        while not self._blocks.empty() and time.monotonic() < longest:
            time.sleep(0.005)
        self._stream.stop()

    def _wanted(self, samples: np.ndarray, n_frames: int, clock: Any, status: Any) -> None:
        """Called by the device: (n, C) to be filled."""
        try:
            samples[:] = self._blocks.get_nowait()
        except queue.Empty:
            samples[:] = 0
            self.underruns += self._playing
        else:
            self.underruns += bool(status.output_underflow)


def block_length(sample_rate: int, block_ms: float) -> int:
    return max(1, round(sample_rate * block_ms / 1000))


def _rate(
    sounddevice: ModuleType, kind: str, device: int | str | None, n_channels: int, wanted: int
) -> int:
    """The wanted rate where the device takes it, else its own: then it is resampled here."""
    check = getattr(sounddevice, f"check_{kind}_settings")
    with _device_errors():
        own = sounddevice.query_devices(device, kind)
        try:
            check(device=device, channels=n_channels, dtype="float32", samplerate=wanted)
        except sounddevice.PortAudioError:
            return round(own["default_samplerate"])
    return wanted


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ImportError as error:
        raise UserError(
            'a sound device needs the package sounddevice: pip install "speechlab[live]"; '
            "--input and --output also take files"
        ) from error
    except OSError as error:  # the package is there, the library it calls is not
        raise UserError(
            f"sounddevice: {error}; install PortAudio (Debian: libportaudio2)"
        ) from error
    return sounddevice


@contextlib.contextmanager
def _device_errors() -> Iterator[None]:
    """What a device refuses, as one line."""
    try:
        yield
    except (_sounddevice().PortAudioError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"sound device: {reason}; see `speechlab stream --list-devices`") from error
