"""A live stream: microphone or file in, loudspeaker or file out, through `Stream`.

All work is done in the thread that called `stream`; devices (`speechlab.devices`) only queue.
"""

import contextlib
import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

import torch
from torch import Tensor, nn

from speechlab import audio
from speechlab.devices import Loudspeaker, Microphone, block_length
from speechlab.errors import UserError
from speechlab.streaming import Stream

BARS = " ▁▂▃▄▅▆▇█"
FLOOR_DB = -90.0  # the lowest bar; a full-scale sine is 0 dB
N_FFT = 512
REFRESH_S = 0.1


@dataclass(frozen=True)
class Summary:
    """A stream that has ended."""

    seconds: float  # of signal
    latency: int  # samples at the model's rate that an output sample may wait for: the algorithm's
    latency_ms: float
    delay_ms: float  # of a sample from in to out: with blocks, resampling and what is held ahead
    n_blocks: int
    load_mean: float  # time of work / time of a block
    load_max: float
    underruns: int  # blocks that the loudspeaker missed
    overruns: int  # blocks of the microphone that were lost
    clipped: int  # samples beyond full scale

    def __str__(self) -> str:
        return (
            f"{self.seconds:.2f} s in {self.n_blocks} blocks; latency {self.latency} samples "
            f"({self.latency_ms:.1f} ms), with blocks and resampling {self.delay_ms:.1f} ms\n"
            f"load mean {self.load_mean:.1%}, max {self.load_max:.1%}; underruns {self.underruns}, "
            f"overruns {self.overruns}, clipped samples {self.clipped}"
        )


def stream(
    model: nn.Module,
    source: str | None = None,
    sink: str | None = None,
    block_ms: float = 16.0,
    screen: TextIO | None = None,
    overwrite: bool = False,
) -> Summary:
    """Run until the source ends, or Ctrl-C: then what came in is enhanced to its last sample.

    source, sink: a file, or a device's name or number; None is the default device. A file comes
    out at the rate and with the channels that came in. screen: a terminal for both spectra.
    overwrite: whether a file that is there may be replaced.
    Raises UserError for files and devices that cannot be used, and models that cannot stream.
    """
    if not 1 <= block_ms <= 1000:
        raise UserError(f"a block of {block_ms:g} ms; choose 1 to 1000")
    inner = Stream(model)
    with contextlib.ExitStack() as stack:
        taking = _source(source, model.sample_rate, block_ms)
        giving = _sink(sink, taking, block_ms, overwrite)
        _warm_up(model, taking.n_channels, block_ms)
        stop = stack.enter_context(_until_signal())
        giving = stack.enter_context(giving)
        taking = stack.enter_context(taking)
        passage = _Passage(inner, taking, giving, _Screen(screen))
        failure = None
        try:
            for block in taking.blocks(stop):
                passage.advance(block)
        except UserError as error:
            if isinstance(taking, _FileSource):
                raise  # it can be read again; half a file would pass for a whole one
            failure = error  # what a microphone gave is kept
        passage.end()
    if failure:
        raise UserError(f"{failure}; what came before is kept") from failure
    return passage.summary()


class _Passage:
    """The way of a block through resampling and the model, and what it costs."""

    def __init__(self, inner: Stream, taking: Any, giving: Any, screen: "_Screen") -> None:
        rate = inner.model.sample_rate
        self.inner, self.taking, self.giving, self.screen = inner, taking, giving, screen
        self.into = audio.Resampler(taking.sample_rate, rate, taking.n_channels)
        self.back = audio.Resampler(rate, giving.sample_rate, taking.n_channels)
        self.n_in = self.n_out = self.n_blocks = 0
        self.block_s = self.delay_s = self.load_sum = self.load_max = 0.0

    def advance(self, block: Tensor) -> None:
        """The next samples, (C, n): through everything, and on to the sink."""
        began = time.perf_counter()
        noisy = self.into.feed(block)
        estimate = self._through(noisy)
        out = self.back.feed(estimate)
        self.block_s = max(self.block_s, block.shape[-1] / self.taking.sample_rate)  # last: shorter
        load = (time.perf_counter() - began) / self.block_s
        self.n_blocks += 1
        self.load_sum += load
        self.load_max = max(self.load_max, load)
        self.n_in += block.shape[-1]
        given_s = self.n_out / self.giving.sample_rate  # what comes next has waited since then
        self.delay_s = max(self.delay_s, self.n_in / self.taking.sample_rate - given_s)
        self._give(out)
        self.screen.show(noisy, estimate, load, self.giving.underruns, self.inner.latency_ms)

    def end(self) -> None:
        """The source has ended: what is still on its way."""
        if self.n_in:
            rest = self._through(self.into.flush())
            self._give(self.back.feed(torch.cat([rest, self.inner.flush()[:, 0]], -1)))
            rates = self.taking.sample_rate, self.giving.sample_rate
            self._give(self.back.flush(audio.resampled_length(self.n_in, *rates)))
        self.screen.close()

    def summary(self) -> Summary:
        return Summary(
            seconds=self.n_in / self.taking.sample_rate,
            latency=self.inner.latency,
            latency_ms=self.inner.latency_ms,
            delay_ms=1000 * (self.delay_s + self.giving.ahead_s),
            n_blocks=self.n_blocks,
            load_mean=self.load_sum / max(1, self.n_blocks),
            load_max=self.load_max,
            underruns=self.giving.underruns,
            overruns=self.taking.overruns,
            clipped=self.giving.clipped,
        )

    def _through(self, noisy: Tensor) -> Tensor:
        """(C, n) -> (C, m), each channel a signal of its own."""
        return self.inner.feed(noisy[:, None])[:, 0] if noisy.shape[-1] else noisy

    def _give(self, block: Tensor) -> None:
        self.n_out += block.shape[-1]
        if block.shape[-1]:
            self.giving.write(block)


class _FileSource:
    """A file in the place of a microphone, as fast as it is taken."""

    overruns = 0

    def __init__(self, path: Path, block_ms: float) -> None:
        self.recording = audio.Recording(path, block_s=block_ms / 1000)
        self.sample_rate, self.n_channels = self.recording.file_rate, self.recording.n_channels
        self.subtype = self.recording.subtype

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def blocks(self, stop: threading.Event) -> Iterator[Tensor]:
        for block in self.recording:
            if stop.is_set():
                return
            if block.shape[-1]:
                yield block


class _FileSink(audio.Writer):
    """A file in the place of a loudspeaker."""

    underruns = 0
    ahead_s = 0.0  # of signal that is held before it is heard


class _Screen:
    """Both spectra and the load in three lines of a terminal; nothing where there is none."""

    def __init__(self, file: TextIO | None) -> None:
        self.file = file if file is not None and file.isatty() else None
        self._next = 0.0
        self._shown = False
        self._last = [torch.zeros(N_FFT), torch.zeros(N_FFT)]

    def show(
        self, noisy: Tensor, estimate: Tensor, load: float, underruns: int, latency_ms: float
    ) -> None:
        """The signals since last time, (C, n); the first channel is shown."""
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
        """Leave the last picture."""
        self.file = None


def bars(samples: Tensor, n_bars: int = 48) -> str:
    """The spectrum of (T,) as a bar per band, low to high, the bands as wide as the ear's (mel).

    Nothing below FLOOR_DB, a full bar for a sine at full scale.
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


def _source(name: str | None, sample_rate: int, block_ms: float) -> _FileSource | Microphone:
    if name is not None and (Path(name).exists() or _sounds(name)):
        return _FileSource(Path(name), block_ms)
    return Microphone(_device(name), sample_rate, block_ms)


def _sink(
    name: str | None, taking: Any, block_ms: float, overwrite: bool
) -> _FileSink | Loudspeaker:
    if name is None or not _sounds(name):
        return Loudspeaker(_device(name), taking.sample_rate, taking.n_channels, block_ms)
    if (
        isinstance(taking, _FileSource)
        and Path(name).exists()
        and Path(name).samefile(taking.recording.path)
    ):
        raise UserError(f"{name}: is the input, and would be overwritten; choose another output")
    if Path(name).exists() and not overwrite:
        raise UserError(f"{name}: is there already; choose another output, or use --overwrite")
    held = audio.FORMATS.get(Path(name).suffix.lower(), ("", ()))[1]
    subtype = taking.subtype if taking.subtype in held else None
    return _FileSink(name, taking.sample_rate, taking.n_channels, subtype)


def _sounds(name: str) -> bool:
    return Path(name).suffix.lower() in audio.SUFFIXES


def _device(name: str | None) -> int | str | None:
    return int(name) if name is not None and name.isdecimal() else name


def _warm_up(model: nn.Module, n_channels: int, block_ms: float) -> None:
    """The first call compiles kernels, which may last seconds: before the devices are opened."""
    passage = Stream(model)
    block = torch.zeros(n_channels, 1, block_length(model.sample_rate, block_ms))
    for _ in range(2 + math.ceil(model.frame_length / block.shape[-1])):
        passage.feed(block)


@contextlib.contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C or a polite kill sets; a second one acts as ever."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # the terminal is closed
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
