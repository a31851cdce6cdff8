"""Room impulse responses by the image-source method (Allen and Berkley 1979).

pyroomacoustics finds the image sources. They are summed here in float64: its own sum is float32
and depends on the number of threads. All walls have the absorption that makes the level fall by
60 dB in the requested reverberation time.

In every response the direct sound is at sample `direct_at(sample_rate)` with level 1 in its band,
louder than all reflections. Speech convolved with the response, cut from that sample on, has the
time and level of the dry speech. `data.mixing` chooses the reference of a model.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from speechlab.errors import UserError

DIRECT_S = 0.004  # of the direct sound; the rise of the low-pass comes before it
SOUND_M_PER_S = 343.0
FINER = 16  # arrivals are rounded to this part of a sample
HIGH_PASS_HZ = 20.0  # removes the level at 0 Hz, which no room has
SIZES_M = ((3.0, 8.0), (3.0, 6.0), (2.4, 3.6))  # length, width, height
FROM_WALL_M = 0.5
RT60_TOLERANCE = 0.15  # relative to the request


@dataclass(frozen=True)
class Room:
    """A box with a speaker and a microphone; positions in metres from one corner."""

    size: tuple[float, ...]
    speaker: tuple[float, ...]
    microphone: tuple[float, ...]
    rt60_s: float  # reverberation time


def drawn_response(
    random: Generator, rt60_s: tuple[float, float], sample_rate: int
) -> tuple[Room, np.ndarray]:
    """A random room and its response, (T,) float64.

    Drawn again if coinciding reflections are louder than the direct sound, or if the measured
    reverberation time is more than 15 % off, as in a box with too few reflections.
    """
    while True:
        room = draw(random, rt60_s)
        samples = response(room, sample_rate)
        if _is_good(samples, room.rt60_s, sample_rate):
            return room, samples


def _is_good(samples: np.ndarray, rt60_s: float, sample_rate: int) -> bool:
    clear = np.abs(samples).argmax() == direct_at(sample_rate)
    return clear and abs(decay_s(samples**2, sample_rate) / rt60_s - 1) < RT60_TOLERANCE


def drawn_pair(
    random: Generator, rt60_s: tuple[float, float], sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Responses of two speakers in one random room, at least 0.5 m apart, (T,) float64 each.

    Drawn again if one of them fails the tests of `drawn_response`.
    """
    while True:
        room, first = drawn_response(random, rt60_s, sample_rate)
        speaker = random.uniform(FROM_WALL_M, np.array(room.size) - FROM_WALL_M)
        other = replace(room, speaker=tuple(speaker.tolist()))
        apart = (np.linalg.norm(speaker - place) for place in (room.microphone, room.speaker))
        if not all(0.5 <= metres <= 2.5 for metres in apart):
            continue
        second = response(other, sample_rate)
        if _is_good(second, room.rt60_s, sample_rate):
            return first, second


def draw(random: Generator, rt60_s: tuple[float, float]) -> Room:
    """A room of random size, the speaker 0.5 to 2.5 m from the microphone."""
    low, high = np.array(SIZES_M).T
    size = random.uniform(low, high)
    while True:
        speaker, microphone = random.uniform(FROM_WALL_M, size - FROM_WALL_M, (2, 3))
        if 0.5 <= np.linalg.norm(speaker - microphone) <= 2.5:
            break
    places = (tuple(place.tolist()) for place in (size, speaker, microphone))
    return Room(*places, rt60_s=float(random.uniform(*rt60_s)))


def direct_at(sample_rate: int) -> int:
    return round(DIRECT_S * sample_rate)


def response(room: Room, sample_rate: int) -> np.ndarray:
    """(T,) float64, as long as the level takes to fall by 60 dB."""
    distances, orders = _images(room)  # metres, numbers of reflections
    later_s = (distances - distances.min()) / SOUND_M_PER_S  # than the direct sound
    spread = distances.min() / distances  # level by distance
    reflection = _reflection(later_s, spread, orders, room.rt60_s)
    n_frames = direct_at(sample_rate) + round(room.rt60_s * sample_rate)
    arrivals = np.rint((later_s + DIRECT_S) * sample_rate * FINER).astype(int)
    heard = arrivals < n_frames * FINER
    levels = (spread * reflection**orders)[heard]
    fine = np.bincount(arrivals[heard], levels, n_frames * FINER)
    return _band_limited(fine, n_frames, sample_rate)


def _images(room: Room) -> tuple[np.ndarray, np.ndarray]:
    """Distances (N,) of the images in metres, and their numbers of reflections (N,)."""
    try:
        import pyroomacoustics
    except ImportError as error:
        raise UserError(
            "pyroomacoustics is not installed, and without it there are no rooms; "
            "run `pip install -e '.[synth]'` in the repository"
        ) from error
    # an image at distance d was reflected at most d / (length of the box along its direction) times
    per_m = np.linalg.norm(1 / np.array(room.size))
    order = int(np.ceil(SOUND_M_PER_S * room.rt60_s * per_m))
    box = pyroomacoustics.ShoeBox(list(room.size), max_order=order)
    box.add_source(list(room.speaker))
    box.add_microphone(list(room.microphone))
    box.image_source_model()
    images = box.sources[0].images.astype(np.float64)  # (3, N)
    distances = np.linalg.norm(images.T - np.array(room.microphone), axis=1)
    return distances, box.sources[0].orders


def _reflection(
    later_s: np.ndarray, spread: np.ndarray, orders: np.ndarray, rt60_s: float
) -> float:
    """The reflection of a wall, 0 to 1, that gives the requested reverberation time.

    By bisection, as Sabine's and Eyring's formulas are off by up to a third in such boxes.
    """
    bins = (later_s * 1000).astype(int)  # of 1 ms
    low, high = 0.0, 1.0
    for _ in range(20):
        reflection = (low + high) / 2
        energy = np.bincount(bins, (spread * reflection**orders) ** 2)
        energy = energy[: max(2, round(1000 * rt60_s))]
        too_long = decay_s(energy, 1000) > rt60_s
        low, high = (low, reflection) if too_long else (reflection, high)
    return low


def decay_s(energy: np.ndarray, rate: int) -> float:
    """Reverberation time of an energy decay (T,) at `rate` (Hz): T20, of ISO 3382-1.

    Three times the seconds from -5 to -25 dB of the remaining energy.
    """
    left = np.cumsum(energy[::-1])[::-1]
    level_db = 10 * np.log10(left / left[0] + 1e-30)
    seconds = np.interp([5.0, 25.0], -level_db, np.arange(len(left)) / rate)
    return float(3 * (seconds[1] - seconds[0]))


def _band_limited(fine: np.ndarray, n_frames: int, sample_rate: int) -> np.ndarray:
    """Impulses (T * FINER,) at the finer rate -> (T,): low-pass, high-pass, fewer samples."""
    padding = direct_at(sample_rate)  # against wrap-around of the filters
    spec = np.fft.rfft(fine, (n_frames + padding) * FINER)[: (n_frames + padding) // 2 + 1]
    hertz = np.fft.rfftfreq(n_frames + padding, 1 / sample_rate)
    rolled = np.clip((hertz / sample_rate - 0.42) / 0.08, 0.0, 1.0)  # 0.42 to 0.5 of the rate
    spec = spec * (0.5 + 0.5 * np.cos(np.pi * rolled))
    spec = spec * hertz**2 / (hertz**2 + HIGH_PASS_HZ**2)
    return np.fft.irfft(spec, n_frames + padding)[:n_frames]
