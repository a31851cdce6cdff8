"""Rooms reverberate as long as asked, and are the same numbers whatever the threads."""

import sys

import numpy as np
import pytest

from speechlab.data.synthesis import rooms
from speechlab.errors import UserError

pra = pytest.importorskip("pyroomacoustics")

RATE = 16000
BOX = rooms.Room((5.0, 4.0, 3.0), (1.2, 1.0, 1.4), (2.4, 1.9, 1.6), rt60_s=0.3)


@pytest.mark.parametrize("rt60_s", [0.15, 0.25, 0.4])
def test_reverberation_time_is_the_one_asked(rt60_s):
    room, samples = rooms.drawn_response(np.random.default_rng(3), (rt60_s, rt60_s), RATE)
    assert room.rt60_s == rt60_s
    assert rooms.decay_s(samples**2, RATE) == pytest.approx(rt60_s, rel=rooms.RT60_TOLERANCE)
    assert len(samples) == rooms.direct_at(RATE) + round(rt60_s * RATE)


def test_decay_of_a_known_decay():
    """Energy that falls by 60 dB in 0.4 s."""
    seconds = np.arange(RATE) / RATE
    assert rooms.decay_s(10 ** (-6 * seconds / 0.4), RATE) == pytest.approx(0.4, rel=1e-3)


def test_direct_sound_is_first_loudest_and_of_level_1():
    for seed in range(8):
        _, samples = rooms.drawn_response(np.random.default_rng(seed), (0.15, 0.3), RATE)
        direct = rooms.direct_at(RATE)
        assert np.abs(samples).argmax() == direct
        assert np.abs(samples[: direct - 3]).max() < 0.1  # the rise of the band limit
        # band-limited, an impulse of level 1 is lower by what is left out of its spectrum
        assert samples[direct] == pytest.approx(0.91, abs=0.05)


def test_images_are_mirrored_in_the_walls():
    """The direct sound and the six first reflections, by the geometry of a box."""
    distances, orders = rooms._images(BOX)
    speaker, microphone = np.array(BOX.speaker), np.array(BOX.microphone)
    assert distances[orders == 0] == pytest.approx([np.linalg.norm(speaker - microphone)])
    mirrored = []
    for axis, length in enumerate(BOX.size):
        for wall in (0.0, length):
            image = speaker.copy()
            image[axis] = 2 * wall - speaker[axis]
            mirrored.append(np.linalg.norm(image - microphone))
    assert np.sort(distances[orders == 1]) == pytest.approx(np.sort(mirrored), rel=1e-5)


def test_the_nearest_image_is_heard_in_time_and_weaker():
    distances, _ = rooms._images(BOX)
    samples = rooms.response(BOX, RATE)
    direct, nearest = np.sort(distances)[:2]
    at = rooms.direct_at(RATE) + round((nearest - direct) / rooms.SOUND_M_PER_S * RATE)
    level = samples[at - 2 : at + 3].max() / samples[rooms.direct_at(RATE)]
    assert 0.3 * direct / nearest < level < direct / nearest


def test_same_numbers_with_any_number_of_threads():
    """pyroomacoustics' own sum of the images does not obey this law."""
    before = pra.constants.get("num_threads")
    try:
        found = []
        for n_threads in (1, 4):
            pra.constants.set("num_threads", n_threads)
            found.append(rooms.response(BOX, RATE))
    finally:
        pra.constants.set("num_threads", before)
    assert np.array_equal(*found)


def test_speaker_and_microphone_stand_in_the_room():
    for seed in range(50):
        room = rooms.draw(np.random.default_rng(seed), (0.2, 0.4))
        for place in (room.speaker, room.microphone):
            for metres, length in zip(place, room.size, strict=True):
                assert rooms.FROM_WALL_M <= metres <= length - rooms.FROM_WALL_M
        assert 0.2 <= room.rt60_s <= 0.4


def test_without_pyroomacoustics_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[synth\]'"):
        rooms.response(BOX, RATE)
