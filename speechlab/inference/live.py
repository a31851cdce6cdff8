"""A live stream: microphone or file in, loudspeaker or file out, through `Stream`.

All work runs in the thread that called `stream`; devices (`inference.devices`) only queue blocks.
"""

import contextlib
import itertools
import math
import os
import signal
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from speechlab.audio import files
from speechlab.audio.offset import Glitches
from speechlab.errors import UserError
from speechlab.inference.devices import KEPT_S, LIVE_S, Loudspeaker, Microphone, block_length
from speechlab.inference.stream import CEILINGS, Stream
from speechlab.models.base import Model

BARS = " ▁▂▃▄▅▆▇█"
FLOOR_DB = -90.0  # the lowest bar; a full-scale sine is 0 dB
N_FFT = 512
REFRESH_S = 0.1
UNKNOWN_LENGTH = 2**62  # samples, for a microphone


@dataclass(frozen=True)
class Summary:
    """Numbers of a stream that has ended."""

    seconds: float  # of signal
    latency: int  # of the algorithm: samples at the model's rate
    latency_ms: float
    lag_ms: float  # longest signal in but not yet out: with blocks and resampling
    delay_ms: float  # measured from microphone to loudspeaker, median; NaN for a file
    delay_max_ms: float
    cards_ms: float  # additional delay that the sound cards report
    n_blocks: int
    load_mean: float  # processing time / duration of a block
    load_max: float
    underruns: int  # blocks that came too late for the loudspeaker
    overruns: int  # blocks of the microphone that were lost
    dropped: int  # late blocks that were skipped, so that the delay does not grow
    clipped: int  # samples beyond full scale

    def __str__(self) -> str:
        text = (
            f"{self.seconds:.2f} s in {self.n_blocks} blocks; latency {self.latency} samples "
            f"({self.latency_ms:.1f} ms), with blocks and resampling {self.lag_ms:.1f} ms\n"
            f"load mean {self.load_mean:.1%}, max {self.load_max:.1%}; underruns {self.underruns}, "
            f"overruns {self.overruns}, dropped {self.dropped}, clipped samples {self.clipped}"
        )
        if math.isnan(self.delay_ms):
            return text
        return text + (
            f"\ndelay measured from in to out: median {self.delay_ms:.1f} ms, "
            f"max {self.delay_max_ms:.1f} ms; the sound cards report {self.cards_ms:.1f} ms more"
        )


def stream(
    model: Model,
    source: str | None = None,
    sink: str | None = None,
    block_ms: float = 16.0,
    screen: TextIO | None = None,
    overwrite: bool = False,
    level: str = "guarded",
) -> Summary:
    """Run until the source ends or Ctrl-C; all input up to then is enhanced.

    source, sink: a file, or a device's name or number; None is the default device. An output file
        has the rate and the channels of the input.
    block_ms: duration of a block.
    screen: a terminal for both spectra.
    overwrite: replace an existing file.
    level: "robust", "guarded" or "published"; see `inference.stream.LEVELS`.

    UserError for files and devices that cannot be used, for models that cannot stream, and for an
    unplugged device; then an output file keeps the earlier samples.
    """
    if not 1 <= block_ms <= 1000:
        raise UserError(f"a block of {block_ms:g} ms; choose 1 to 1000")
    inner = Stream(model, level=level, name=source or "")
    with contextlib.ExitStack() as stack:
        heard = sink is None or not _sounds(sink)
        taking = _source(source, model.sample_rate, block_ms, LIVE_S if heard else KEPT_S)
        giving = _sink(sink, taking, block_ms, overwrite)
        _warm_up(model, taking.n_channels, block_ms)
        stop = stack.enter_context(_until_signal())
        taking = stack.enter_context(taking)
        giving = stack.enter_context(giving)  # closed first: the file survives a broken microphone
        glitches = Glitches(source or "the microphone", CEILINGS.get(level, math.inf))
        passage = _Passage(inner, taking, giving, _Screen(screen), glitches)
        failure = _run(passage, stop)
    if failure and isinstance(giving, _FileSink):
        raise UserError(f"{failure}; the samples before are in {sink}") from failure
    if failure:
        raise failure
    return passage.summary()


def _run(passage: "_Passage", stop: threading.Event) -> UserError | None:
    """All blocks of the source; returns the error that ended a recording early.

    The recording is kept then. Raises the error for an input file: it can be read again, and half
    of its output would look complete.
    """
    failure, again = None, isinstance(passage.taking, _FileSource)
    try:
        for block, arrived in passage.taking.blocks(stop):
            passage.advance(block, arrived)
    except UserError as error:
        if again or not passage.n_in:
            raise
        failure = error
    try:
        passage.end()
    except UserError as error:
        if again:
            raise
        failure = failure or error  # a full disk fails twice
    kept = isinstance(passage.giving, _FileSink)  # else a listener stopped it
    if again and kept and stop.is_set() and passage.n_in < passage.taking.n_frames:
        rate, whole = passage.taking.sample_rate, passage.taking.n_frames
        return UserError(f"interrupted after {passage.n_in / rate:.1f} of {whole / rate:.1f} s")
    return failure


class _Passage:
    """Passes blocks through resampling and the model, and measures delay and load."""

    def __init__(
        self, inner: Stream, taking: Any, giving: Any, screen: "_Screen", glitches: Glitches
    ) -> None:
        rate, self.glitches = inner.model.sample_rate, glitches
        self.inner, self.taking, self.giving, self.screen = inner, taking, giving, screen
        self.into = files.Resampler(taking.sample_rate, rate, taking.n_channels)
        self.back = files.Resampler(rate, giving.sample_rate, taking.n_channels)
        self.n_in = self.n_out = self.n_blocks = 0
        self._arrivals: deque[tuple[float, float]] = deque()  # of blocks: end in the signal, clock
        self.block_s = self.lag_s = self.load_sum = self.load_max = 0.0

    def advance(self, block: Tensor, arrived: float) -> None:
        """Process the next samples (C, n); arrived: clock of the last one (s)."""
        began = time.perf_counter()
        self.glitches.add(block)
        noisy = self.into.feed(block)
        estimate = self._through(noisy)
        out = self.back.feed(estimate)
        self.block_s = max(self.block_s, block.shape[-1] / self.taking.sample_rate)  # last: shorter
        load = (time.perf_counter() - began) / self.block_s
        self.n_blocks += 1
        self.load_sum += load
        self.load_max = max(self.load_max, load)
        self.n_in += block.shape[-1]
        self._arrivals.append((self.n_in / self.taking.sample_rate, arrived))
        given_s = self.n_out / self.giving.sample_rate  # of the next output sample, in the input
        self.lag_s = max(self.lag_s, self.n_in / self.taking.sample_rate - given_s)
        self._give(out)
        self.screen.show(noisy, estimate, load, self.giving.underruns, self.inner.latency_ms)

    def end(self) -> None:
        """Process the rest after the end of the source. UserError for a signal of another scale."""
        if self.n_in:
            rest = self._through(self.into.flush())
            self._give(self.back.feed(torch.cat([rest, self.inner.flush()[:, 0].cpu()], -1)))
            rates = self.taking.sample_rate, self.giving.sample_rate
            self._give(self.back.flush(files.resampled_length(self.n_in, *rates)))
        self.screen.close()
        self.glitches.check()

    def summary(self) -> Summary:
        delay_ms, delay_max_ms = self.giving.delay_ms
        return Summary(
            seconds=self.n_in / self.taking.sample_rate,
            latency=self.inner.latency,
            latency_ms=self.inner.latency_ms,
            lag_ms=1000 * self.lag_s,
            delay_ms=delay_ms,
            delay_max_ms=delay_max_ms,
            cards_ms=1000 * (self.taking.card_s + self.giving.card_s),
            n_blocks=self.n_blocks,
            load_mean=self.load_sum / max(1, self.n_blocks),
            load_max=self.load_max,
            underruns=self.giving.underruns,
            overruns=self.taking.overruns,
            dropped=self.giving.dropped,
            clipped=self.giving.clipped,
        )

    def _through(self, noisy: Tensor) -> Tensor:
        """(C, n) -> (C, m), each channel a signal of its own."""
        chunk = noisy[:, None].to(self.inner.device)
        return self.inner.feed(chunk)[:, 0].cpu() if noisy.shape[-1] else noisy

    def _give(self, block: Tensor) -> None:
        if block.shape[-1]:
            self.giving.write(block, self._born())
        self.n_out += block.shape[-1]

    def _born(self) -> float:
        """Clock at the arrival of the next output sample (s)."""
        given_s = self.n_out / self.giving.sample_rate
        while len(self._arrivals) > 1 and self._arrivals[0][0] <= given_s:
            self._arrivals.popleft()
        end_s, arrived = self._arrivals[0]
        return arrived - (end_s - given_s)


class _FileSource(contextlib.AbstractContextManager):
    """A file instead of a microphone, read as fast as it is processed."""

    overruns = 0
    card_s = 0.0

    def __init__(self, path: Path, block_ms: float) -> None:
        self.recording = files.Recording(path, block_s=block_ms / 1000)
        self.sample_rate, self.n_channels = self.recording.file_rate, self.recording.n_channels
        self.subtype, self.n_frames = self.recording.subtype, self.recording.n_frames

    def __exit__(self, *error: object) -> None:
        pass

    def blocks(self, stop: threading.Event) -> Iterator[tuple[Tensor, float]]:
        """(C, n) and when it was read (s, time.monotonic)."""
        for block in self.recording:
            if stop.is_set():
                return
            if block.shape[-1]:
                yield block, time.monotonic()


class _FileSink(files.Writer):
    """A file instead of a loudspeaker."""

    underruns = dropped = 0
    card_s = 0.0
    delay_ms = (math.nan, math.nan)  # undefined for a file

    def write(self, block: Tensor, born: float = math.nan) -> None:
        super().write(block)

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        super().__exit__(kind, *error)
        if kind is None and self.format == "RF64" and self.subtype == "PCM_16":
            with self._naming_errors():
                _as_riff(self.path, self.sample_rate, self.n_channels)


def _as_riff(path: Path, sample_rate: int, n_channels: int) -> None:
    """Convert an RF64 of 16-bit integers below 4 GiB to plain WAV, which all programs read.

    Only the header is rewritten, in its place; "JUNK" fills the rest of it.
    """
    n_bytes = path.stat().st_size
    if n_bytes > files.RIFF_BYTES:
        return
    with path.open("r+b") as file:
        begin = file.read(256).index(b"data") + 8
        form = (1, n_channels, sample_rate, 2 * n_channels * sample_rate, 2 * n_channels, 16)
        head = struct.pack("<4sI4s", b"RIFF", n_bytes - 8, b"WAVE")
        head += struct.pack("<4sIHHIIHH", b"fmt ", 16, *form)
        n_filled = begin - len(head) - 16
        head += struct.pack(f"<4sI{n_filled}x4sI", b"JUNK", n_filled, b"data", n_bytes - begin)
        file.seek(0)
        file.write(head)
        os.fsync(file.fileno())


class _Screen:
    """Both spectra and the load in three lines of a terminal; nothing without a terminal."""

    def __init__(self, file: TextIO | None) -> None:
        self.file = file if file is not None and file.isatty() else None
        self._next = 0.0
        self._shown = False
        self._last = [torch.zeros(N_FFT), torch.zeros(N_FFT)]

    def show(
        self, noisy: Tensor, estimate: Tensor, load: float, underruns: int, latency_ms: float
    ) -> None:
        """The new samples of both signals, (C, n); the first channel is shown."""
        if self.file is None:
            return
        for i, signal_ in enumerate((noisy, estimate)):
            self._last[i] = torch.cat([self._last[i], signal_[0]])[-N_FFT:]
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REFRESH_S
        lines = (
            f"noisy    │{bars(self._last[0])}│",
            f"enhanced │{bars(self._last[1])}│",
            f"load {load:6.1%}  underruns {underruns}  latency {latency_ms:.0f} ms",
        )
        up = "\x1b[3A" if self._shown else ""
        self.file.write(up + "".join(f"\r{line}\x1b[K\n" for line in lines))
        self.file.flush()
        self._shown = True

    def close(self) -> None:
        """Stop updating; the last picture stays."""
        self.file = None


def bars(samples: Tensor, n_bars: int = 48) -> str:
    """The spectrum of (T,) as one bar per mel band, low to high.

    No bar below FLOOR_DB, a full bar for a sine at full scale.
    """
    window = torch.hann_window(samples.shape[-1])
    power = torch.fft.rfft(samples * window).abs().square() / (window.sum() / 2) ** 2
    top = len(power) - 1
    mels = torch.linspace(0, math.log1p(top / 22), n_bars + 1)  # 22 bins of 31 Hz: 700 Hz
    edges = (22 * torch.expm1(mels)).round().long().tolist()
    pairs = itertools.pairwise(edges)
    bands = [power[low : max(high, low + 1)].max() for low, high in pairs]
    db = 10 * torch.stack(bands).clamp_min(1e-12).log10()
    heights = ((1 - db / FLOOR_DB) * (len(BARS) - 1)).ceil().clamp(0, len(BARS) - 1).long()
    return "".join(BARS[height] for height in heights.tolist())


def _source(
    name: str | None, sample_rate: int, block_ms: float, queued_s: float
) -> _FileSource | Microphone:
    if name is not None and (Path(name).exists() or _sounds(name)):
        return _FileSource(Path(name), block_ms)
    return Microphone(_device(name), sample_rate, block_ms, queued_s)


def _sink(
    name: str | None, taking: Any, block_ms: float, overwrite: bool
) -> _FileSink | Loudspeaker:
    if name is None or not _sounds(name):
        late = "wait" if isinstance(taking, _FileSource) else "drop"
        return Loudspeaker(_device(name), taking.sample_rate, taking.n_channels, block_ms, late)
    path, from_file = Path(name), isinstance(taking, _FileSource)
    if from_file and path.exists() and path.samefile(taking.recording.path):
        raise UserError(f"{name}: is the input, and would be overwritten; choose another output")
    if path.exists() and not overwrite:
        raise UserError(f"{name}: exists; choose another output, or use --overwrite")
    subtype = files.kept_subtype(path, taking.subtype)
    n_frames = taking.n_frames if from_file else UNKNOWN_LENGTH
    return _FileSink(name, taking.sample_rate, taking.n_channels, subtype, n_frames)


def _sounds(name: str) -> bool:
    return Path(name).suffix.lower() in files.SUFFIXES


def _device(name: str | None) -> int | str | None:
    return int(name) if name is not None and name.isdecimal() else name


def _warm_up(model: Model, n_channels: int, block_ms: float) -> None:
    """Compile the kernels, which may take seconds, before the devices are opened."""
    passage = Stream(model)
    n_samples = block_length(model.sample_rate, block_ms)
    block = torch.zeros(n_channels, 1, n_samples, device=model.device)
    for _ in range(2 + math.ceil(model.frame_length / block.shape[-1])):
        passage.feed(block)


@contextlib.contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second signal has its usual effect."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # a closed terminal
    before: dict[int, Callable | int | None] = {n: signal.getsignal(n) for n in numbers}

    def handle(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[number])

    try:
        for number in numbers:
            signal.signal(number, handle)
        yield stop
    finally:
        for number in numbers:
            signal.signal(number, before[number])
