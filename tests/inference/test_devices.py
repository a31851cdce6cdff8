"""The queues at microphone and loudspeaker, in simulated time: the delay stays what it was."""

import math
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speechlab.errors import UserError
from speechlab.inference import devices, live

RATE = 16000
GOOD = SimpleNamespace(input_overflow=False, output_underflow=False)


class Card:
    """sounddevice without threads: whoever tests calls the callbacks."""

    class PortAudioError(Exception):
        pass

    def InputStream(self, **settings):
        return SimpleNamespace(
            start=lambda: None, stop=lambda: None, close=lambda: None, active=True, latency=0.01
        )

    OutputStream = InputStream

    def query_devices(self, device=None, kind=None):
        return {"default_samplerate": 48000.0} if kind else "0 Stand-in, 1 in, 2 out"

    def check_input_settings(self, **settings):
        pass

    check_output_settings = check_input_settings


@pytest.fixture(autouse=True)
def card(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", Card())


class Bench:
    """A microphone, nothing, and a loudspeaker, with a clock of their own; no thread, no sleep."""

    def __init__(self, monkeypatch, block_ms=16, drift=0.0, sink_s=devices.LIVE_S):
        self.now = 0.0
        monkeypatch.setattr(devices.time, "monotonic", lambda: self.now)
        self.microphone = devices.Microphone(None, RATE, block_ms, sink_s)
        self.loudspeaker = devices.Loudspeaker(None, RATE, 1, block_ms)
        self.n = self.loudspeaker.block_length
        self.block_s = self.n / RATE
        self.wanted_s = self.block_s * (1 + drift)  # a slower loudspeaker: more comes than goes
        self.next_wanted = self.block_s / 2
        inner = SimpleNamespace(
            model=SimpleNamespace(sample_rate=RATE),
            device=torch.device("cpu"),
            feed=lambda chunk: chunk,
            latency_ms=0.0,
        )
        screen, glitches = live._Screen(None), live.Glitches("the microphone", math.inf)
        self.passage = live._Passage(inner, self.microphone, self.loudspeaker, screen, glitches)
        self.heard, self.longest = [], 0

    def run(self, blocks, works=lambda now: True):
        """Blocks (n, 1) of the microphone, one after the other; works: whether we are awake."""
        for block in blocks:
            self.now += self.block_s
            while self.next_wanted < self.now:
                self._hear()
            self.microphone._taken(block, self.n, None, GOOD)
            while works(self.now) and not self.microphone._blocks.empty():
                samples, arrived = self.microphone._blocks.get_nowait()
                self.passage.advance(torch.from_numpy(samples.T), arrived)
                self.longest = max(self.longest, len(self.loudspeaker._blocks))

    def _hear(self):
        now, self.now = self.now, self.next_wanted
        samples = np.full((self.n, 1), np.nan, "f4")
        if self.loudspeaker._playing:
            self.loudspeaker._wanted(samples, self.n, None, GOOD)
            self.heard.append(samples[:, 0])
        self.now, self.next_wanted = now, self.next_wanted + self.wanted_s

    def delay(self):
        """Of what is heard from now on, in s: the median over what the next second brings."""
        return self.loudspeaker.delay_ms[0] / 1000

    def forget(self):
        self.loudspeaker.delays = devices.Delays()


def loud(bench, seconds):
    """Noise whose blocks all differ."""
    generator = np.random.default_rng(0)
    shape = round(seconds / bench.block_s), bench.n, 1
    return list(0.1 * generator.standard_normal(shape).astype("f4"))


def stalled(start, seconds):
    return lambda now: not start <= now < start + seconds


@pytest.mark.parametrize("block_ms", [4, 16, 50])
@pytest.mark.parametrize("stall_s", [0.06, 0.2, 0.5, 3])
def test_after_a_stall_the_delay_goes_back(monkeypatch, block_ms, stall_s):
    bench = Bench(monkeypatch, block_ms)
    bench.run(loud(bench, 3))
    before, n_underruns = bench.delay(), bench.loudspeaker.underruns
    assert (n_underruns, bench.loudspeaker.dropped, bench.microphone.overruns) == (0, 0, 0)
    bench.run(loud(bench, stall_s + 3), stalled(bench.now, stall_s))
    bench.forget()
    bench.run(loud(bench, 2))
    tolerated = bench.loudspeaker.n_ahead * bench.block_s  # without a pause in what is heard
    assert bench.block_s <= bench.delay() <= before + tolerated + 1e-3
    pause = [np.zeros((bench.n, 1), "f4")] * round(3 / bench.block_s)
    bench.run(pause)
    bench.forget()
    bench.run(loud(bench, 1))
    assert bench.delay() <= before + 1e-3  # with one it is what it was
    lost = bench.loudspeaker.underruns - n_underruns
    gone = bench.loudspeaker.dropped + bench.microphone.overruns
    assert lost - 1 <= gone <= lost + bench.loudspeaker.n_ahead  # no more than was put in


@pytest.mark.parametrize("block_ms", [1, 16, 300])
def test_the_queue_has_a_hard_bound_whatever_comes(monkeypatch, block_ms):
    bench = Bench(monkeypatch, block_ms)
    awake = np.random.default_rng(0)
    bench.run(loud(bench, 20 if block_ms > 1 else 3), lambda now: awake.random() < 0.1)
    most = bench.loudspeaker.n_most
    assert bench.longest <= most
    at_least = 2 * bench.loudspeaker.n_ahead  # where blocks are long
    assert most == max(at_least, round(devices.LIVE_S / bench.block_s))


def test_the_measured_delay_is_the_true_one(monkeypatch):
    """Every block is heard, and each of them as late as it is found among what was given."""
    bench = Bench(monkeypatch)
    given = loud(bench, 5)
    bench.run(given, lambda now: round(now / bench.block_s) % 7 != 3)  # now and then one is late
    heard, n = np.concatenate(bench.heard), len(bench.heard) * bench.n
    assert bench.loudspeaker.dropped == bench.loudspeaker.underruns == 0
    assert np.array_equal(heard, np.concatenate(given)[:n, 0])
    offset = bench.next_wanted - bench.wanted_s - (len(bench.heard) - 1) * bench.block_s
    assert bench.loudspeaker.delay_ms == pytest.approx((1000 * offset,) * 2, abs=0.1)


def test_clocks_that_differ_do_not_add_up(monkeypatch):
    """A loudspeaker 1 % slower than the microphone, for a minute: a block goes now and then."""
    bench = Bench(monkeypatch, drift=0.01)
    bench.run(loud(bench, 60))
    most = 3 + 2 * bench.loudspeaker.n_ahead
    assert bench.loudspeaker.delay_ms[1] < 1000 * most * bench.block_s
    assert bench.loudspeaker.dropped == pytest.approx(0.6 / bench.block_s, rel=0.2)
    assert bench.loudspeaker.underruns <= 1


def test_what_is_dropped_is_silent_where_there_is_silence(monkeypatch):
    """After a short stall, all of the speech is heard, in order; the pauses are shorter."""
    bench = Bench(monkeypatch)
    given = loud(bench, 9.6)
    for start in range(60, len(given), 100):
        given[start : start + 40] = [np.zeros((bench.n, 1), "f4")] * 40
    bench.run(given, stalled(0.5, 0.05))
    speech = [block for block in bench.heard if block.any()]
    spoken = [block[:, 0] for block in given if block.any()][: len(speech)]
    assert bench.loudspeaker.dropped >= 2
    assert all(map(np.array_equal, speech, spoken))


def test_a_drop_is_no_click(monkeypatch):
    """What is left out is faded over: no step beyond the signal's own and the fade's."""
    bench = Bench(monkeypatch)
    tone = np.sin(2 * np.pi * 450 * np.arange(40 * bench.n) / RATE, dtype="f4")
    bench.loudspeaker.write(torch.from_numpy(tone[None]), 0.0)
    kept = np.concatenate([samples for samples, _ in bench.loudspeaker._blocks])[:, 0]
    assert len(kept) == bench.loudspeaker.n_most * bench.n
    assert bench.loudspeaker.dropped == 40 - bench.loudspeaker.n_most
    assert np.abs(np.diff(kept)).max() < np.abs(np.diff(tone)).max() + 2 / bench.n


def test_a_recording_loses_nothing_in_a_stall(monkeypatch):
    """To a file the queue is long: no one hears how late it is."""
    bench = Bench(monkeypatch, sink_s=devices.KEPT_S)
    given = loud(bench, 8)
    bench.run(given, lambda now: False)
    assert bench.microphone.overruns == 0
    kept = [bench.microphone._blocks.get_nowait()[0] for _ in given]
    assert all(map(np.array_equal, kept, given))


def test_a_full_microphone_keeps_the_newest(monkeypatch):
    bench = Bench(monkeypatch)
    given = loud(bench, 1)
    bench.run(given, lambda now: False)
    n_kept = bench.microphone._blocks.qsize()
    assert n_kept == round(devices.LIVE_S / bench.block_s)
    assert bench.microphone.overruns == len(given) - n_kept
    assert np.array_equal(bench.microphone._blocks.get_nowait()[0], given[-n_kept])
    flagged = SimpleNamespace(input_overflow=True)
    bench.microphone._taken(given[0], bench.n, None, flagged)
    assert bench.microphone.overruns == len(given) - n_kept + 1  # there is a place again


def test_underruns_and_clipping_are_counted():
    loudspeaker = devices.Loudspeaker(None, RATE, 1, 16)
    samples = np.ones((256, 1), "f4")
    loudspeaker._wanted(samples, 256, None, GOOD)
    assert (loudspeaker.underruns, samples.any()) == (0, False)  # not begun yet
    assert math.isnan(loudspeaker.delay_ms[0])
    loudspeaker.write(2 * torch.ones(1, 300), 0.0)
    loudspeaker.write(torch.ones(1, 300), 0.0)
    for expected in (0, 0, 1, 2):
        loudspeaker._wanted(samples, 256, None, GOOD)
        assert loudspeaker.underruns == expected
    assert loudspeaker.clipped == 300


@pytest.mark.parametrize("late", ["drop", "wait"])
def test_a_loudspeaker_that_takes_nothing_any_more(monkeypatch, late):
    monkeypatch.setattr(devices, "PATIENCE_S", 0.1)
    loudspeaker = devices.Loudspeaker(None, RATE, 1, 16, late)
    with pytest.raises(UserError, match="loudspeaker has stopped"):
        loudspeaker.write(torch.zeros(1, 256 * 40), 0.0)
    loudspeaker = devices.Loudspeaker(None, RATE, 1, 16, late)
    loudspeaker.write(torch.zeros(1, 256 * 4), 0.0)
    loudspeaker._stream.active = False
    with pytest.raises(UserError, match="loudspeaker has stopped"):
        loudspeaker.write(torch.zeros(1, 256), 0.0)


def test_a_slow_loudspeaker_is_no_broken_one(monkeypatch):
    monkeypatch.setattr(devices, "PATIENCE_S", 0.1)
    loudspeaker = devices.Loudspeaker(None, RATE, 1, 16)
    for _ in range(40):
        loudspeaker.write(torch.zeros(1, 256 * 5), 0.0)
        loudspeaker._wanted(np.zeros((256, 1), "f4"), 256, None, GOOD)
    assert loudspeaker.dropped == 40 * 4 - (loudspeaker.n_most - 1)


def test_a_loudspeaker_of_a_file_makes_it_wait(monkeypatch):
    """Nothing is dropped: while it is full, the file is not read."""
    loudspeaker = devices.Loudspeaker(None, RATE, 1, 16, "wait")
    heard, samples = [], np.ones((256, 1), "f4")

    def asleep(seconds):
        loudspeaker._wanted(samples, 256, None, GOOD)
        heard.append(samples[0, 0])

    monkeypatch.setattr(devices.time, "sleep", asleep)
    given = torch.arange(1, 61).repeat_interleave(256)[None] / 100
    loudspeaker.write(given, 0.0)
    assert loudspeaker.dropped == 0
    assert heard == pytest.approx([i / 100 for i in range(1, len(heard) + 1)])
    assert len(heard) == 60 - loudspeaker.n_most


def test_a_microphone_that_gives_nothing_any_more(monkeypatch):
    """After the patience, or at once where the device is gone; what it gave comes first."""
    monkeypatch.setattr(devices, "PATIENCE_S", 0.2)
    microphone = devices.Microphone(None, RATE, 16, devices.KEPT_S)
    microphone._taken(np.ones((256, 1), "f4"), 256, None, GOOD)
    blocks = microphone.blocks(threading.Event())
    assert next(blocks)[0].shape == (1, 256)
    with pytest.raises(UserError, match="microphone has stopped"):
        next(blocks)
    monkeypatch.setattr(devices, "PATIENCE_S", 60)
    microphone._stream.active = False
    with pytest.raises(UserError, match="microphone has stopped"):
        next(microphone.blocks(threading.Event()))


def test_the_devices_are_listed():
    assert "Stand-in" in devices.table()
