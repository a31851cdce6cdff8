"""Microphones and loudspeakers, through the optional package sounddevice.

A device calls back when it has or needs a block, and must never wait: the callbacks only move
blocks between the device and a queue. Queues are bounded in seconds, so that the delay cannot grow.
A full input queue loses its oldest block (overrun). An empty output queue plays silence (underrun),
and later blocks are skipped for it (dropped). All of these are counted, and the delay of each block
is measured.
"""

import contextlib
import math
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from speechlab.errors import UserError

LIVE_S = 0.25  # seconds of signal in a queue, where the delay is audible
KEPT_S = 10.0  # the same where a file is written: the longest stall without a loss
SPARE_S = 0.008  # lateness of a block for the loudspeaker, rounded up to blocks
WINDOW_S = 1.0  # blocks that were not needed for this time are dropped
SILENCE = 10 ** (-50 / 20)  # peak below which a block is inaudible
PATIENCE_S = 5.0  # time without a block until a device counts as gone
WAIT_S, POLL_S = 0.1, 0.005  # between checks of a queue
TAKES_NOTHING = "the loudspeaker has stopped; plug it in again"


def table() -> str:
    """The sound devices as a table: numbers, names, channels."""
    return str(_sounddevice().query_devices())


class Delays:
    """Delays of samples: counts per 0.1 ms, in constant memory."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        self._counts[round(10_000 * seconds)] += 1

    def median_and_maximum(self) -> tuple[float, float]:
        """In ms; NaN without any counts."""
        if not self._counts:
            return math.nan, math.nan
        middle, n_seen = sum(self._counts.values()) / 2, 0
        for tenths in sorted(self._counts):
            n_seen += self._counts[tenths]
            if n_seen >= middle:
                break
        return tenths / 10, max(self._counts) / 10


class Microphone:
    """One channel of an input device."""

    subtype = "PCM_16"
    n_channels = 1

    def __init__(
        self, device: int | str | None, sample_rate: int, block_ms: float, queued_s: float
    ) -> None:
        """queued_s: seconds of signal in the queue; beyond that the oldest is lost."""
        settings = {"device": device, "channels": 1, "dtype": "float32"}
        self.sample_rate = _rate("input", settings, sample_rate)
        n = block_length(self.sample_rate, block_ms)
        self.n_most = max(4, round(queued_s * self.sample_rate / n))
        self.overruns = 0
        self._blocks: queue.Queue[tuple[np.ndarray, float]] = queue.Queue()
        with _device_errors():
            self._stream = _sounddevice().InputStream(
                samplerate=self.sample_rate, blocksize=n, callback=self._taken, **settings
            )
        self.card_s = float(self._stream.latency)  # delay of the card, as it reports

    def __enter__(self) -> Self:
        with _device_errors():
            self._stream.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def blocks(self, stop: threading.Event) -> Iterator[tuple[Tensor, float]]:
        """(1, n) and the arrival of its last sample (s, time.monotonic), until `stop`.

        UserError where the device is gone, or gives no block for PATIENCE_S.
        """
        n_empty = 0  # counts waits, not time: a suspended computer has not waited
        while not stop.is_set():
            try:
                samples, arrived = self._blocks.get(timeout=WAIT_S)
            except queue.Empty:
                n_empty += 1
                if not _active(self._stream) or n_empty * WAIT_S > PATIENCE_S:
                    raise UserError("the microphone has stopped; plug it in again") from None
            else:
                n_empty = 0
                yield torch.from_numpy(samples.T), arrived
        self._stream.stop()

    def _taken(self, samples: np.ndarray, n_frames: int, clock: Any, status: Any) -> None:
        """Callback of the device: (n, C) in its own memory. Non-finite samples become silence."""
        arrived = time.monotonic()
        self.overruns += bool(status.input_overflow)
        if self._blocks.qsize() >= self.n_most:
            with contextlib.suppress(queue.Empty):  # removed by the reader just now
                self._blocks.get_nowait()
                self.overruns += 1
        self._blocks.put_nowait((np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0), arrived))


class Loudspeaker(contextlib.AbstractContextManager):
    """An output device. It starts once some blocks are queued, so that it need not wait for one.

    If it still has to wait (a stall), it plays silence, and later blocks come late. The delay is
    reduced again: blocks that stayed in the queue for a whole window are surplus. A few of them are
    dropped during silence, many at once; and at most `n_most` blocks wait.
    """

    def __init__(
        self,
        device: int | str | None,
        sample_rate: int,
        n_channels: int,
        block_ms: float,
        late: str = "drop",
    ) -> None:
        """late: with a full queue "drop" blocks, or let the writer "wait" (for a file)."""
        settings = {"device": device, "channels": n_channels, "dtype": "float32"}
        self.sample_rate = _rate("output", settings, sample_rate)
        self.block_length = block_length(self.sample_rate, block_ms)
        self.block_s = self.block_length / self.sample_rate
        # queued blocks: a frame of the model (16 ms) may come at once, and one block may be late
        self.n_spare = math.ceil(SPARE_S / self.block_s)
        self.n_ahead = self.n_spare + math.ceil(0.016 / self.block_s)
        self.n_most = max(2 * self.n_ahead, round(LIVE_S / self.block_s))
        self.late = late
        self.underruns = self.dropped = self.clipped = 0
        self.delays = Delays()
        self._playing = False
        self._blocks: deque[tuple[np.ndarray, float]] = deque()  # (n, C), time of its arrival
        self._rest, self._rest_born = torch.zeros(n_channels, 0), 0.0
        self._n_window = max(8, round(WINDOW_S / self.block_s))
        self._least, self._n_seen = self.n_most, 0  # in the queue, in this window
        self._n_idle = self._n_cut = 0  # surplus blocks: to drop in silence, to drop at once
        self._n_refused = 0  # in a row, since the device took one
        self._silent = False  # the last block put
        with _device_errors():
            self._stream = _sounddevice().OutputStream(
                samplerate=self.sample_rate,
                blocksize=self.block_length,
                callback=self._wanted,
                **settings,
            )
        self.card_s = float(self._stream.latency)  # delay of the card, as it reports

    @property
    def delay_ms(self) -> tuple[float, float]:
        """Median and maximum from arrival to playback of a sample, without the cards' delays."""
        return self.delays.median_and_maximum()

    def write(self, block: Tensor, born: float) -> None:
        """(C, n), any n; born: arrival of the first sample (s, time.monotonic).

        UserError for a device that has stopped.
        """
        self.clipped += int((block.abs() > 1).sum())
        born -= self._rest.shape[-1] / self.sample_rate
        *whole, rest = torch.cat([self._rest, block.clamp(-1, 1)], -1).split(self.block_length, -1)
        if rest.shape[-1] == self.block_length:
            whole, rest = [*whole, rest], rest[:, :0]
        self._rest, self._rest_born = rest, born + len(whole) * self.block_s
        for i, samples in enumerate(whole):
            self._put(samples.T.numpy(), born + i * self.block_s)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._play_out()
        finally:
            self._stream.close()

    def _put(self, samples: np.ndarray, born: float) -> None:
        if self._playing and not _active(self._stream):
            raise UserError(TAKES_NOTHING)
        if self.late == "wait":
            self._wait()
        elif self._too_many(samples):
            samples, born = self._over_the_last(samples, born)
        self._blocks.append((samples, born))
        if not self._playing and len(self._blocks) >= self.n_ahead:
            self._start()

    def _wait(self) -> None:
        for _ in range(math.ceil(PATIENCE_S / POLL_S)):
            if len(self._blocks) < self.n_most:
                return
            time.sleep(POLL_S)
        raise UserError(TAKES_NOTHING)

    def _too_many(self, samples: np.ndarray) -> bool:
        """Whether to drop a block before this one is queued."""
        if self._n_seen >= self._n_window:
            self._n_idle = max(0, self._least - self.n_spare)
            self._n_cut = self._n_idle if self._n_idle > self.n_ahead else 0
            self._least, self._n_seen = self.n_most, 0
        if len(self._blocks) >= self.n_most:
            self._n_refused += 1
            if self._n_refused * self.block_s > PATIENCE_S:
                raise UserError(TAKES_NOTHING)
            return True
        after_silence, self._silent = self._silent, bool(np.abs(samples).max() < SILENCE)
        if len(self._blocks) <= self.n_spare:
            return False
        return self._n_cut > 0 or (self._n_idle > 0 and after_silence and self._silent)

    def _over_the_last(self, samples: np.ndarray, born: float) -> tuple[np.ndarray, float]:
        """Remove the last block of the queue and cross-fade it to this one, without a click."""
        try:
            last, born_last = self._blocks.pop()
        except IndexError:  # removed by the device just now
            return samples, born
        self.dropped += 1
        self._n_idle, self._n_cut = max(0, self._n_idle - 1), max(0, self._n_cut - 1)
        fade = np.linspace(0, 1, len(samples), dtype=np.float32)[:, None]
        return last + fade * (samples - last), born_last

    def _start(self) -> None:
        self._playing = True
        with _device_errors():
            self._stream.start()

    def _play_out(self) -> None:
        if n_rest := self._rest.shape[-1]:
            self.write(torch.zeros(len(self._rest), self.block_length - n_rest), self._rest_born)
        if not self._playing and self._blocks:
            self._start()
        self._playing = False  # from here on an empty queue is no underrun
        longest = time.monotonic() + 1 + 2 * self.n_most * self.block_s
        while self._blocks and time.monotonic() < longest:
            time.sleep(POLL_S)
        self._stream.stop()

    def _wanted(self, samples: np.ndarray, n_frames: int, clock: Any, status: Any) -> None:
        """Callback of the device: fills (n, C)."""
        try:
            block, born = self._blocks.popleft()
        except IndexError:
            samples[:] = 0
            self.underruns += self._playing
        else:
            samples[:] = block
            self.underruns += bool(status.output_underflow)
            self.delays.add(time.monotonic() - born)
        # if `_too_many` ends a window at this moment, one block may be miscounted: harmless
        self._least = min(self._least, len(self._blocks))
        self._n_seen += 1
        self._n_refused = 0


def _active(stream: Any) -> bool:
    """Whether the device is still running."""
    with _device_errors():
        return stream.active


def block_length(sample_rate: int, block_ms: float) -> int:
    return max(1, round(sample_rate * block_ms / 1000))


def _rate(kind: str, settings: dict[str, Any], wanted: int) -> int:
    """The wanted rate if the device supports it, else the device's: then samples are resampled."""
    sounddevice = _sounddevice()
    check = getattr(sounddevice, f"check_{kind}_settings")
    with _device_errors():
        own = sounddevice.query_devices(settings["device"], kind)
        try:
            check(samplerate=wanted, **settings)
        except sounddevice.PortAudioError:
            return round(own["default_samplerate"])
    return wanted


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ImportError as error:
        raise UserError(
            "a sound device needs the package sounddevice: run `pip install -e '.[live]'` in the "
            "repository; --input and --output also take files"
        ) from error
    except OSError as error:  # the package is there, its library is missing
        message = f"sounddevice: {error}; install PortAudio (Debian: libportaudio2)"
        raise UserError(message) from error
    return sounddevice


@contextlib.contextmanager
def _device_errors() -> Iterator[None]:
    """Errors of a device as one-line UserErrors."""
    try:
        yield
    except (_sounddevice().PortAudioError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"sound device: {reason}; see `speechlab stream --list-devices`") from error
