"""Training examples: mixtures made on the fly from speech, noise and rooms, and segments of pairs.

An example is a pure function of (seed, epoch, index): it has no state and uses no global generator.
So training resumes exactly, and any number of processes gives the same examples.

Levels are mean squares over the segment, in dBFS. The SNR is that of all speech, with its room, to
the noise.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from scipy.fft import irfft, next_fast_len, rfft
from torch import Tensor

from speechlab.config import RATES, check_ranges
from speechlab.data.recordings import Source, available, crop
from speechlab.errors import UserError

EARLY_S = 0.05  # after the direct path: reflections that count as speech
N_DRAWS = 50  # silent segments in a row before an error

Short = Literal["pad", "repeat"]  # filling of a segment longer than its recording


class Example(NamedTuple):
    noisy: Tensor  # (1, T) float32
    clean: Tensor  # (S, T) float32


class Examples(Protocol):
    """Examples for training: `len` in an epoch, each a function of its key."""

    sample_rate: int  # Hz
    n_sources: int

    def __len__(self) -> int: ...

    def example(self, seed: int, epoch: int, index: int) -> Example: ...


class Mixture(NamedTuple):
    """A mixture and its parts; `speech` + `noise` is `noisy`."""

    noisy: Tensor  # (1, T)
    clean: Tensor  # (S, T), the reference
    speech: Tensor  # (S, T), as in the mixture
    noise: Tensor  # (1, T)
    snr_db: float  # as drawn, dB; NaN without noise
    recordings: tuple[str, ...]  # names of items: speech, then noise


@dataclass(frozen=True)
class MixtureConfig:
    segment_s: float = 4.0  # s, of an example
    sample_rate: int = 16000  # Hz; recordings of another rate are resampled
    n_sources: int = 1  # speakers: 1 for enhancement, 2 for separation
    snr_db: tuple[float, float] = (-5.0, 25.0)  # dB, range to draw from
    n_snr_levels: int | None = None  # number of equally spaced SNRs; None: any in the range
    level_db: tuple[float, float] = (-35.0, -15.0)  # dBFS, of the mixture
    peak: float = 0.99  # of full scale; louder mixtures are scaled down
    # dB; 1st in its lower half, 2nd in its upper
    source_level_db: tuple[float, float] = (-2.5, 2.5)
    speeds: tuple[float, ...] = (1.0,)  # factors of the speed and pitch of a speaker
    p_room: float = 0.0  # share of the examples with speakers in rooms
    # of `clean`: 50 ms of the room response, or all
    reference: Literal["early", "reverberant"] = "early"
    short: Short = "pad"  # filling of short speech: zeros on both sides, or repetition
    silence_db: float = -60.0  # dBFS; quieter segments of speech or noise are drawn again

    def __post_init__(self) -> None:
        check_ranges(
            self,
            **dict.fromkeys(("snr_db", "level_db", "source_level_db"), (-200, 200)),
            sample_rate=RATES,
            segment_s=(1 / max(1, self.sample_rate), 3600),
            n_sources=(1, 2),
            speeds=(0.1, 10),
            silence_db=(-math.inf, math.inf),
            p_room=(0, 1),
            n_snr_levels=(2, 10**6),
            peak=(1e-6, 1),
        )
        if not self.speeds:
            raise UserError("MixtureConfig.speeds must be one or more factors, not empty")


@dataclass(frozen=True)
class PairConfig:
    segment_s: float = 4.0  # s, of an example
    sample_rate: int = 16000  # Hz; recordings of another rate are resampled
    short: Short = "repeat"  # filling of short pairs; "pad": zeros at the end

    def __post_init__(self) -> None:
        shortest_s = 1 / max(1, self.sample_rate)
        check_ranges(self, sample_rate=RATES, segment_s=(shortest_s, 3600))


def generator(seed: int, epoch: int, index: int, stream: int = 0) -> np.random.Generator:
    """The random numbers of one key; each `stream` is independent of the others."""
    key = (seed, epoch, index, stream)
    if not all(0 <= word < 2**32 for word in key):  # beyond, two keys could be one
        raise ValueError(f"seed, epoch and index must fit in 32 bits: {key}")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


class Mixtures:
    """Mixtures of one or two speakers in noise, at a drawn SNR and level, some in rooms.

    Recordings are equally likely, whatever their length; so are segments. Two sources have
    different speakers. They are at two places of one room if a corpus has those (items of one
    `recordings`), else in two drawn rooms. Without `noise` the mixture is the sum of the speakers.
    """

    def __init__(
        self,
        speech: Sequence[Source],
        noise: Sequence[Source],
        rooms: Sequence[Source],
        config: MixtureConfig,
        n_per_epoch: int,
    ) -> None:
        """rooms: impulse responses. UserError if a kind that `config` needs is empty."""
        self.speech = sorted(speech, key=lambda source: source.item.speakers)
        self.noise, self.rooms = list(noise), list(rooms)
        self.config, self.n_per_epoch = config, n_per_epoch
        self.sample_rate, self.n_sources = config.sample_rate, config.n_sources
        self._length = round(config.segment_s * config.sample_rate)
        self._places: dict[tuple, list[Source]] = {}  # responses by their room
        for source in self.rooms:
            self._places.setdefault(_room_key(source), []).append(source)
        names = [source.item.speakers for source in self.speech]
        self._of_speaker = {
            name: range(bisect_left(names, name), bisect_right(names, name)) for name in set(names)
        }
        if not self.speech:
            raise UserError("no speech to mix: this split of the corpus has none")
        if not self.noise and config.n_sources == 1:
            raise UserError("no noise to mix speech with: add a corpus that has some")
        if not self.rooms and config.p_room > 0:
            raise UserError("p_room is above 0 and there are no rooms: add some, or set it to 0")
        if config.n_sources == 2 and len(self._of_speaker) < 2:
            raise UserError("n_sources=2 needs speech of two speakers; the manifests name one")

    def __len__(self) -> int:
        return self.n_per_epoch

    def example(self, seed: int, epoch: int, index: int) -> Example:
        """The example of a key. UserError if a recording is missing, damaged or silent."""
        return Example(*self.mixture(seed, epoch, index)[:2])

    def mixture(self, seed: int, epoch: int, index: int) -> Mixture:
        """The same example with its parts."""
        rng = generator(seed, epoch, index)
        names, clean, speech = self._speech(rng)
        noise, snr_db = np.zeros_like(speech[0]), math.nan
        if self.noise:
            drawn = self._audible(partial(self._noise, rng))
            snr_db = self._snr_db(rng)
            wanted = _power(speech.sum(0)) / 10 ** (snr_db / 10)
            noise = drawn.samples * np.float32(math.sqrt(wanted / _power(drawn.samples)))
            names = (*names, drawn.name)
        gain = self._gain(rng.uniform(*self.config.level_db), speech.sum(0) + noise, clean)
        clean, speech, noise = (gain * part for part in (clean, speech, noise))
        noisy = speech.sum(0) + noise
        parts = (noisy[None], clean, speech, noise[None])
        return Mixture(*map(torch.from_numpy, parts), snr_db, names)

    def _speech(self, rng: np.random.Generator) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """Names, references (S, T), and speech as in the mixture (S, T)."""
        in_room = rng.random() < self.config.p_room
        rooms = self._rooms(rng) if in_room else [None] * self.n_sources
        low, high = self.config.source_level_db
        names, clean, speech, taken = (), [], [], range(0)
        for k, room in enumerate(rooms):
            voice = self._audible(partial(self._voice, rng, taken, room))
            reference, image = self._in_room(voice, room)
            if self.n_sources == 2:
                middle = (low + high) / 2
                gain_db = rng.uniform(*((low, middle), (middle, high))[k])
                power = _power(image) * len(image) / voice.n_filled
                gain = np.float32(10 ** (gain_db / 20) / math.sqrt(power))
                reference, image = gain * reference, gain * image
                taken = self._of_speaker[voice.source.item.speakers]
            names, clean, speech = (*names, voice.name), [*clean, reference], [*speech, image]
        return names, np.stack(clean), np.stack(speech)

    def _voice(self, rng: np.random.Generator, taken: range, room: np.ndarray | None) -> "_Drawn":
        """A segment of speech not in `taken`, after the part of the file that echoes into it."""
        index = int(rng.integers(len(self.speech) - len(taken)))
        source = self.speech[index + (len(taken) if index >= taken.start else 0)]
        speed = self.config.speeds[rng.integers(len(self.config.speeds))]
        rate, path, length = self.sample_rate, source.item.path, self._length
        n_there = available(source, rate, speed)
        begin = int(rng.integers(abs(n_there - length) + 1))
        if n_there >= length:
            n_before = 0 if room is None else min(begin, len(room) - 1)
            samples = crop(source, path, begin - n_before, n_before + length, rate, speed)
            return _Drawn(source, samples, n_before, length)
        samples = crop(source, path, 0, n_there, rate, speed)
        if self.config.short == "repeat":
            return _Drawn(source, np.resize(samples, length), 0, length)
        samples = np.pad(samples, (begin, length - n_there - begin))
        return _Drawn(source, samples, 0, n_there)

    def _noise(self, rng: np.random.Generator) -> "_Drawn":
        """A segment of noise; a shorter recording is repeated from a random position."""
        source = self.noise[rng.integers(len(self.noise))]
        rate, path, length = self.sample_rate, source.item.path, self._length
        n_there = available(source, rate)
        if n_there >= length:
            begin = int(rng.integers(n_there - length + 1))
            return _Drawn(source, crop(source, path, begin, length, rate), 0, length)
        samples = np.roll(crop(source, path, 0, n_there, rate), -int(rng.integers(n_there)))
        return _Drawn(source, np.resize(samples, length), 0, length)

    def _audible(self, draw: Callable[[], "_Drawn"]) -> "_Drawn":
        """The first draw that is not silent: an SNR needs power."""
        for _ in range(N_DRAWS):
            drawn = draw()
            if _power(drawn.samples[drawn.n_before :]) > 10 ** (self.config.silence_db / 10):
                return drawn
        file = drawn.source.folder / drawn.source.item.path
        raise UserError(
            f"{file}: silent, as {N_DRAWS} segments drawn before; "
            f"leave such files out, or set silence_db below {self.config.silence_db:g}"
        )

    def _rooms(self, rng: np.random.Generator) -> list[np.ndarray]:
        """A response for each speaker."""
        chosen = [self.rooms[rng.integers(len(self.rooms))]]
        if self.n_sources == 2:
            places = [s for s in self._places[_room_key(chosen[0])] if s is not chosen[0]]
            others = places or self.rooms
            chosen.append(others[rng.integers(len(others))])
        return [self._response(source) for source in chosen]

    def _response(self, source: Source) -> np.ndarray:
        length = available(source, self.sample_rate)
        room = crop(source, source.item.path, 0, length, self.sample_rate)
        if not room.any():
            raise UserError(f"{source.folder / source.item.path}: a room that is silent; remove it")
        return room

    def _in_room(self, voice: "_Drawn", room: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Reference and speech in the mixture, (T,) each; the direct path has no delay."""
        if room is None:
            return voice.samples, voice.samples
        direct = int(np.abs(room).argmax())
        room = room / np.abs(room[direct])
        begin = voice.n_before + direct
        image = _convolved(voice.samples, room)[begin : begin + self._length]
        if self.config.reference == "reverberant":
            return image, image
        early = room[: direct + round(EARLY_S * self.sample_rate)]
        return _convolved(voice.samples, early)[begin : begin + self._length], image

    def _snr_db(self, rng: np.random.Generator) -> float:
        low, high = self.config.snr_db
        n_levels = self.config.n_snr_levels
        share = rng.random() if n_levels is None else rng.integers(n_levels) / (n_levels - 1)
        return float(low + share * (high - low))

    def _gain(self, level_db: float, noisy: np.ndarray, clean: np.ndarray) -> np.float32:
        """The gain to `level_db`, or to the peak if that is less."""
        gain = 10 ** (level_db / 20) / math.sqrt(_power(noisy))
        highest = max(np.abs(noisy).max(), np.abs(clean).max())
        return np.float32(min(gain, self.config.peak / highest))


def _room_key(source: Source) -> tuple:
    """The same for all places in one room."""
    return source.folder, source.item.recordings or source.item.name


class _Drawn(NamedTuple):
    """A segment of a recording."""

    source: Source
    samples: np.ndarray  # (n_before + T,)
    n_before: int  # samples of the recording before the segment
    n_filled: int  # samples of the segment that are the recording's, not padding

    @property
    def name(self) -> str:
        return self.source.item.name


class Pairs:
    """Segments of prepared mixtures and their clean sources, each mixture once in an epoch."""

    def __init__(self, mixtures: Sequence[Source], config: PairConfig) -> None:
        """UserError if there are none, or if their numbers of sources differ."""
        self.mixtures, self.config = list(mixtures), config
        if not self.mixtures:
            raise UserError("no mixtures to train on: this split of the corpus has none")
        self.sample_rate = config.sample_rate
        self.n_sources = len(self.mixtures[0].item.sources)
        for _, item in self.mixtures:
            if len(item.sources) != self.n_sources or not self.n_sources:
                raise UserError(
                    f"{item.name} has {len(item.sources)} sources, {self.mixtures[0].item.name} "
                    f"{self.n_sources}: train on mixtures of one kind"
                )

    def __len__(self) -> int:
        return len(self.mixtures)

    def example(self, seed: int, epoch: int, index: int) -> Example:
        """The segment of a key. UserError if a file is missing or damaged."""
        rows = _segment(self.mixtures[index], self.config, generator(seed, epoch, index))
        return Example(*rows.split([1, self.n_sources]))


class Unpaired:
    """Segments of noisy recordings, each once in an epoch; `clean` is NaN: nobody knows it."""

    n_sources = 1

    def __init__(self, recordings: Sequence[Source], config: PairConfig) -> None:
        """UserError if there are none."""
        self.recordings, self.config = list(recordings), config
        self.sample_rate = config.sample_rate
        if not self.recordings:
            raise UserError("no unpaired recordings to train on: this split of the corpus has none")

    def __len__(self) -> int:
        return len(self.recordings)

    def example(self, seed: int, epoch: int, index: int) -> Example:
        """The segment of a key. UserError if a file is missing or damaged."""
        noisy = _segment(self.recordings[index], self.config, generator(seed, epoch, index))
        return Example(noisy, torch.full_like(noisy, math.nan))


def whole_pairs(
    mixtures: Sequence[Source], sample_rate: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, noisy (1, T) and clean (S, T) of whole mixtures, for validation."""
    for source in mixtures:
        rows = _rows(source, 0, available(source, sample_rate), sample_rate)
        noisy, clean = torch.from_numpy(rows).split([1, len(rows) - 1])
        yield source.item.name, noisy, clean


def _segment(source: Source, config: PairConfig, rng: np.random.Generator) -> Tensor:
    """A segment of a mixture and its sources, (1 + S, T)."""
    length = round(config.segment_s * config.sample_rate)
    n_there = available(source, config.sample_rate)
    begin = int(rng.integers(max(0, n_there - length) + 1))
    rows = _rows(source, begin, min(length, n_there), config.sample_rate)
    if config.short == "repeat":
        rows = rows[:, np.arange(length) % rows.shape[-1]]
    else:
        rows = np.pad(rows, ((0, 0), (0, length - rows.shape[-1])))
    return torch.from_numpy(rows)


def _rows(source: Source, begin: int, length: int, sample_rate: int) -> np.ndarray:
    """The same segment of a mixture and its sources, (1 + S, length)."""
    paths = (source.item.path, *source.item.sources)
    return np.stack([crop(source, path, begin, length, sample_rate) for path in paths])


def _convolved(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Full convolution, (n + m - 1,)."""
    length = len(samples) + len(response) - 1
    n_fft = next_fast_len(length, real=True)
    return irfft(rfft(samples, n_fft) * rfft(response, n_fft), n_fft)[:length]


def _power(samples: np.ndarray) -> float:
    """Mean square, without BLAS: its sums depend on the number of threads."""
    return float(np.square(samples, dtype=np.float64).mean())
