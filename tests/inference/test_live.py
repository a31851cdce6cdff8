"""The live stream: files at both ends give what `enhance` gives; a stand-in plays the devices."""

import io
import itertools
import math
import os
import signal
import sys
import threading
import time
import wave
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from speechlab.audio import files
from speechlab.cli import main
from speechlab.errors import UserError
from speechlab.inference import devices, live
from speechlab.inference.enhance import enhance_file
from tests.inference.test_devices import Card
from tests.inference.test_enhance import whole as offline
from tests.support.commands import enhancer
from tests.support.sound_files import noise


@pytest.fixture(scope="module")
def model():
    return enhancer("running")


@pytest.mark.parametrize("block_ms", [1, 16, 33.3])
@pytest.mark.parametrize(("rate", "n_channels"), [(16000, 1), (44100, 2)])
def test_file_to_file_is_enhance_with_the_running_level(
    tmp_path, model, rate, n_channels, block_ms
):
    source = tmp_path / "in.wav"
    files.save(source, noise(n_channels, 16011), rate, "FLOAT")
    summary = live.stream(model, str(source), str(tmp_path / "live.wav"), block_ms, level="robust")
    enhance_file(model, source, tmp_path / "offline.wav")
    streamed, streamed_rate = files.load(tmp_path / "live.wav")
    assert (streamed_rate, streamed.shape) == (rate, (n_channels, 16011))
    assert (streamed - files.load(tmp_path / "offline.wav")[0]).abs().max() < 1e-5
    assert summary.latency == model.look_ahead
    assert summary.seconds == pytest.approx(16011 / rate)
    assert summary.n_blocks == -(-16011 // devices.block_length(rate, block_ms))
    assert summary.lag_ms >= summary.latency_ms
    assert math.isnan(summary.delay_ms) and "measured" not in str(summary)  # nobody hears a file
    assert 0 < summary.load_mean <= summary.load_max
    assert (summary.underruns, summary.overruns, summary.dropped) == (0, 0, 0)


@pytest.mark.parametrize(("subtype", "ending"), [("PCM_16", "wav"), ("PCM_24", "flac")])
def test_integers_differ_by_a_step_at_most(tmp_path, model, subtype, ending):
    source = tmp_path / f"in.{ending}"
    files.save(source, noise(1, 16000), 16000, subtype)
    live.stream(model, str(source), str(tmp_path / "live.wav"), level="robust")
    enhance_file(model, source, tmp_path / "offline.wav")
    assert files.Recording(tmp_path / "live.wav").subtype == subtype
    streamed, expected = (files.load(tmp_path / name)[0] for name in ("live.wav", "offline.wav"))
    assert (streamed - expected).abs().max() <= 1e-5 + (2**-15 if subtype == "PCM_16" else 2**-23)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": "absent.wav", "sink": "x.wav"}, "absent.wav: no such file"),
        ({"source": "in.wav", "sink": "in.wav"}, "is the input"),
        ({"source": "in.wav", "sink": "x.opus"}, "cannot be written"),
        ({"source": "in.wav", "sink": "x.wav", "block_ms": 0}, "choose 1 to 1000"),
    ],
)
def test_what_is_refused(tmp_path, model, monkeypatch, settings, said):
    monkeypatch.chdir(tmp_path)
    files.save("in.wav", noise(1, 16000), 16000)
    with pytest.raises(UserError, match=said):
        live.stream(model, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_a_source_that_breaks_leaves_no_file(tmp_path, model):
    waveform = noise(1, 16000)
    waveform[0, 9000] = torch.nan
    soundfile.write(tmp_path / "in.wav", waveform[0].numpy(), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match="NaN"):
        live.stream(model, str(tmp_path / "in.wav"), str(tmp_path / "out.wav"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_a_file_of_another_scale_is_refused(tmp_path, model):
    """Its samples would be cut at the ceiling of the level."""
    files.save(tmp_path / "in.wav", 2.0**15 * noise(1, 8000), 16000, "FLOAT")
    run = partial(live.stream, model, str(tmp_path / "in.wav"), str(tmp_path / "out.wav"))
    for level in ("robust", "guarded"):
        with pytest.raises(UserError, match=r"in.wav: \d+ of 8000 samples are beyond (2|10) times"):
            run(level=level)
        assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]
    run(level="published")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_it_to_the_last_sample(tmp_path, model, monkeypatch, number):
    """What came in before is enhanced and flushed; the signal's old meaning is back."""
    source = tmp_path / "in.wav"
    files.save(source, noise(1, 16000), 16000, "FLOAT")
    advance = live._Passage.advance

    def interrupted(passage, block, arrived):
        advance(passage, block, arrived)
        if passage.n_blocks == 20:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(live._Passage, "advance", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(UserError, match=r"^interrupted after .* s; the samples before are in"):
        live.stream(model, str(source), str(tmp_path / "out.wav"))
    assert signal.getsignal(number) is before
    estimate, _ = files.load(tmp_path / "out.wav")
    length = estimate.shape[-1]
    assert length in (20 * 256, 21 * 256)
    assert (estimate - offline(model, noise(1, 16000)[:, :length])).abs().max() < 1e-5


# Devices


class StandIn(Card):
    """sounddevice, as far as it is used: a thread that calls back, block after block."""

    def __init__(self, signal_=None, rates=(16000,), pace_s=0.0, end="Ctrl-C"):
        """end: of the signal: "Ctrl-C", "silence" (no block any more), "gone" (no device)."""
        self.signal, self.rates, self.pace_s, self.end = signal_, rates, pace_s, end
        self.played, self.opened = [], []
        self.InputStream = lambda **settings: Device(self, "input", settings)
        self.OutputStream = lambda **settings: Device(self, "output", settings)

    def query_devices(self, device=None, kind=None):
        if device == "nowhere":
            raise ValueError("No input device matching 'nowhere'")
        return super().query_devices(device, kind)

    def check_input_settings(self, samplerate, **settings):
        if samplerate not in self.rates:
            raise self.PortAudioError("Invalid sample rate")

    check_output_settings = check_input_settings


class Device:
    latency, active = 0.02, True

    def __init__(self, module, kind, settings):
        self.module, self.kind, self.settings = module, kind, settings
        self.ended = threading.Event()
        self.thread = threading.Thread(target=getattr(self, kind), daemon=True)
        module.opened.append(self)

    def start(self):
        self.thread.start()

    def stop(self):
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()

    close = stop

    def input(self):
        status = SimpleNamespace(input_overflow=False)
        for block in self.module.signal.split(self.settings["blocksize"], -1):
            if self.ended.is_set():
                return
            if not block.numel():
                break
            samples = block.T.numpy().copy()
            self.settings["callback"](samples, len(samples), None, status)
            samples[:] = np.nan  # the device's memory, which it uses again
            time.sleep(self.module.pace_s)
        if self.module.end == "silence":  # from here on only: this thread may have been late
            devices.PATIENCE_S = 0.2
        if self.module.end != "Ctrl-C":
            self.active = self.module.end != "gone"
            return
        waiting = self.settings["callback"].__self__._blocks
        while not (waiting.empty() or self.ended.is_set()):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)  # the only end of a microphone

    def output(self):
        status = SimpleNamespace(output_underflow=False)
        while not self.ended.is_set():
            samples = np.full((self.settings["blocksize"], self.settings["channels"]), np.nan, "f4")
            self.settings["callback"](samples, len(samples), None, status)
            self.module.played.append(samples)
            time.sleep(self.module.pace_s)


@pytest.fixture
def stand_in(monkeypatch):
    def install(*arguments, **settings):
        module = StandIn(*arguments, **settings)
        monkeypatch.setitem(sys.modules, "sounddevice", module)
        return module

    return install


def test_microphone_to_file(tmp_path, model, stand_in):
    """Ctrl-C ends it; all that was taken is written."""
    module = stand_in(noise(1, 256 * 50), pace_s=0.001)
    summary = live.stream(model, None, str(tmp_path / "out.wav"))
    estimate, rate = files.load(tmp_path / "out.wav")
    assert (rate, summary.overruns) == (16000, 0)
    assert estimate.shape[-1] == 256 * summary.n_blocks >= 256 * 49
    expected = offline(model, noise(1, 256 * 50)[:, : estimate.shape[-1]])
    assert (estimate - expected).abs().max() < 2**-15
    assert module.opened[0].settings["device"] is None


def test_what_a_microphone_gives_survives_a_bad_block_and_an_error(
    tmp_path, model, stand_in, monkeypatch
):
    """A block of NaN is silence; an error of ours ends the recording and keeps it."""
    bad = noise(1, 256 * 20)
    bad[:, 256 * 5 : 256 * 6] = float("nan")
    stand_in(bad, pace_s=0.001)
    summary = live.stream(model, None, str(tmp_path / "bad.wav"))
    assert files.load(tmp_path / "bad.wav")[0].shape[-1] == 256 * summary.n_blocks

    advance, calls = live._Passage.advance, []

    def failing(passage, block, arrived):
        calls.append(block)
        if len(calls) == 10:
            raise UserError("out of luck")
        advance(passage, block, arrived)

    monkeypatch.setattr(live._Passage, "advance", failing)
    stand_in(noise(1, 256 * 20), pace_s=0.001)
    with pytest.raises(UserError, match=r"out of luck; the samples before are in .*kept\.wav"):
        live.stream(model, None, str(tmp_path / "kept.wav"))
    assert files.load(tmp_path / "kept.wav")[0].shape[-1] == 256 * 9


def test_a_microphone_at_its_own_rate_is_resampled(tmp_path, model, stand_in):
    stand_in(noise(1, 768 * 30), rates=(), pace_s=0.004)
    summary = live.stream(model, "3", str(tmp_path / "out.flac"))
    assert files.Recording(tmp_path / "out.flac").n_frames == 768 * summary.n_blocks
    assert files.Recording(tmp_path / "out.flac").file_rate == 48000


def test_file_to_loudspeaker(tmp_path, model, stand_in):
    """Every sample is played, in order, after the silence of the start."""
    files.save(tmp_path / "in.wav", noise(2, 10001), 16000, "FLOAT")
    module = stand_in(pace_s=0.01)
    summary = live.stream(model, str(tmp_path / "in.wav"), "7")
    played = torch.from_numpy(np.concatenate(module.played).T)
    expected = offline(model, noise(2, 10001))
    assert module.opened[0].settings["device"] == 7
    assert summary.delay_max_ms >= summary.delay_ms > summary.latency_ms + 16
    assert summary.dropped == 0  # a file can wait
    if summary.underruns == 0:  # the computer was not too busy
        assert (played[:, :10001] - expected).abs().max() < 1e-5
        assert not played[:, 10001:].any()


def test_microphone_to_loudspeaker(model, stand_in):
    module = stand_in(noise(1, 256 * 50), pace_s=0.005)
    summary = live.stream(model)
    assert len(module.played) + summary.dropped >= summary.n_blocks
    assert all(np.isfinite(samples).all() for samples in module.played)
    assert 0 < summary.delay_ms <= summary.delay_max_ms
    assert summary.cards_ms == pytest.approx(40)
    assert "delay measured from in to out: median" in str(summary)
    assert "dropped" in str(summary)


def test_a_disk_that_fills_up_costs_what_comes_after(tmp_path, model, stand_in, monkeypatch):
    write = files.Writer.write

    def full(writer, block):
        if writer.n_frames >= 256 * 9:
            raise UserError("no space left")
        write(writer, block)

    monkeypatch.setattr(files.Writer, "write", full)
    stand_in(noise(1, 256 * 20), pace_s=0.001)
    with pytest.raises(UserError, match="no space left; the samples before are in"):
        live.stream(model, None, str(tmp_path / "out.wav"))
    estimate, _ = files.load(tmp_path / "out.wav")
    assert estimate.shape[-1] >= 256 * 9
    expected = offline(model, noise(1, 256 * 20))[:, : estimate.shape[-1]]
    assert (estimate - expected).abs().max() < 2**-15


@pytest.mark.parametrize("end", ["silence", "gone"])
def test_an_unplugged_microphone_ends_with_what_it_gave(
    tmp_path, model, stand_in, monkeypatch, capsys, end
):
    """A whole file, one line and an exit code; of a microphone that gave nothing, no file."""
    monkeypatch.setattr(devices, "PATIENCE_S", 600)
    monkeypatch.setattr("speechlab.inference.enhance.load_causal", lambda checkpoint: model)
    monkeypatch.setattr("speechlab.cli.process.check_checkpoint", lambda checkpoint: None)
    words = ["stream", "--level", "published", "--checkpoint", "tiny", "--output"]
    stand_in(noise(1, 256 * 20), end=end)
    assert main.main([*words, str(tmp_path / "out.wav")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "microphone" in lines[0]
    assert str(tmp_path / "out.wav") in lines[0]
    estimate, _ = files.load(tmp_path / "out.wav")
    assert (estimate - offline(model, noise(1, 256 * 20))).abs().max() < 2**-15
    monkeypatch.setattr(devices, "PATIENCE_S", 600)
    stand_in(noise(1, 0).reshape(1, 0), end=end)
    assert main.main([*words, str(tmp_path / "out.wav"), "--overwrite"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]  # the older one
    assert files.load(tmp_path / "out.wav")[0].shape[-1] == 256 * 20


@pytest.mark.parametrize(("most", "kind"), [(files.RIFF_BYTES, b"RIFF"), (4000, b"RF64")])
@pytest.mark.parametrize("source", [None, "in.wav"])
def test_a_file_above_4_gib_is_of_the_64_bit_kind(
    tmp_path, model, stand_in, monkeypatch, source, most, kind
):
    """Also where nobody knows how long it will be; a shorter one is a plain .wav file."""
    monkeypatch.setattr(files, "RIFF_BYTES", most)
    monkeypatch.chdir(tmp_path)
    files.save("in.wav", noise(1, 256 * 20), 16000)
    stand_in(noise(1, 256 * 20))
    length = 256 * live.stream(model, source, "out.wav").n_blocks
    assert (tmp_path / "out.wav").read_bytes()[:4] == kind
    estimate, rate = files.load("out.wav")
    assert (rate, estimate.shape) == (16000, (1, length))
    assert (estimate - offline(model, noise(1, 256 * 20)[:, :length])).abs().max() < 2**-14
    if kind == b"RIFF":
        with wave.open("out.wav") as plain:  # the strictest reader there is
            assert plain.getparams()[:4] == (1, 2, 16000, length)


def test_without_sounddevice_one_line_says_how_to_install_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[live\]'"):
        live.stream(model)


def test_an_unknown_device_is_one_line(model, stand_in):
    stand_in()
    with pytest.raises(UserError, match="No input device matching 'nowhere'; see"):
        live.stream(model, "nowhere", "out.wav")


# The picture


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_stand_where_the_tones_are():
    seconds = torch.arange(512) / 16000
    heights = [live.bars(torch.sin(2 * torch.pi * f * seconds)) for f in (200, 1000, 4000)]
    peaks = [bars.index("█") for bars in heights]
    assert peaks == sorted(peaks)
    assert all(len(bars) == 48 for bars in heights)
    assert live.bars(torch.zeros(512)) == " " * 48


def test_the_picture_is_for_terminals_and_some_ten_times_a_second(tmp_path, model, monkeypatch):
    clock = itertools.count(step=0.008)  # two looks a block
    monkeypatch.setattr(live.time, "monotonic", lambda: next(clock))
    files.save(tmp_path / "in.wav", noise(1, 16000), 16000)
    terminal, pipe = Terminal(), io.StringIO()
    words = model, str(tmp_path / "in.wav"), str(tmp_path / "out.wav")
    live.stream(*words, screen=terminal)
    with pytest.raises(UserError, match="exists; choose another"):
        live.stream(*words)
    live.stream(*words, screen=pipe, overwrite=True)
    assert pipe.getvalue() == ""
    pictures = terminal.getvalue().count("enhanced │")
    assert 5 <= pictures <= 12  # in a second of signal
    assert terminal.getvalue().count("\x1b[3A") == pictures - 1
    assert "load" in terminal.getvalue() and "underruns 0" in terminal.getvalue()
