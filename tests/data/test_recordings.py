"""Segments of recordings are what the whole has there."""

import os

import numpy as np
import pytest
import soundfile

from speechlab.data import recordings
from speechlab.data.manifest import Item
from speechlab.data.recordings import Source

RATE = 8000


def write(folder, samples, rate, **fields):
    """In a folder whose name is not UTF-8."""
    folder = folder / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    soundfile.write(os.fsencode(folder / "x.wav"), samples, rate, subtype="FLOAT")
    return Source(folder, Item("x", "speech", "x.wav", len(samples), rate, **fields))


@pytest.mark.parametrize(("rate", "speed"), [(RATE, 1.0), (RATE, 1.1), (11025, 1.0), (16000, 0.9)])
def test_a_crop_is_a_slice_of_the_whole(tmp_path, rate, speed):
    """At any rate and speed, from anywhere; and the speed is heard as a pitch."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    source = write(tmp_path, tone, rate, gain_db=6.0)
    length = recordings.available(source, RATE, speed)
    assert length == pytest.approx(2 * RATE / speed, abs=2)
    whole = recordings.crop(source, source.item.path, 0, length, RATE, speed)
    assert len(whole) == length
    for begin, n in ((0, 100), (1, 4000), (4321, 999), (length - 500, 500), (length - 1, 1)):
        part = recordings.crop(source, source.item.path, begin, n, RATE, speed)
        assert np.abs(part - whole[begin : begin + n]).max() < 1e-4
    peak_hz = np.argmax(np.abs(np.fft.rfft(whole[:RATE])))
    assert peak_hz == pytest.approx(440 * speed, abs=1)
    assert np.abs(whole).max() == pytest.approx(0.5 * 10 ** (6 / 20), rel=0.02)


def test_a_crop_reads_no_more_than_it_needs(tmp_path, monkeypatch):
    source = write(tmp_path, np.full(60 * 16000, 0.1), 16000)
    n_read = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, n, **kw: n_read.append(n) or read(self, n, **kw)
    )
    recordings.crop(source, source.item.path, 100_000, RATE, RATE)
    assert sum(n_read) < 1.2 * 16000
