"""Libri2Mix (arXiv 2005.11262): two speakers of LibriSpeech, with or without WHAM! noise.

The mixtures are those of the published metadata: each recording times its gain, resampled, cut to
the shorter speaker (min) or padded to the longer one (max), and added. The dev and test sets are
the published ones; they share no speaker with train.

The published `mix_clean` and `mix_both` are supported, `mix_single` is not. `mix_both_reverb` is
our own: the speakers of `mix_both` are in one simulated room (see `rooms`), drawn from the seed
and the name of the mixture. The noise, recorded in real rooms, is added unchanged.
"""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import scipy
import torch
from scipy.signal import fftconvolve, resample_poly

from speechlab.audio import files as audio
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.corpora.prepare import Preparation, elsewhere
from speechlab.data.manifest import Item
from speechlab.data.synthesis import rooms
from speechlab.errors import UserError, some
from speechlab.storage.atomic import sha256

CORPUS = CORPORA["libri2mix"]
RATE = 16000  # Hz of LibriSpeech and of the noise
PEAK = 0.99  # of full scale
EARLY_S = 0.05  # after the direct path: reflections that count as speech
DISTANCE_M = (0.5, 2.5)  # metres between a speaker and the microphone
CROSSFADE_S = 0.5  # at the joins of a repeated noise
PARTS = ("source_1", "source_2", "noise")  # of a mixture, in the metadata
SPEEDS = ("sp08", "sp12")  # suffixes of the noise files at other speeds, made by LibriMix
COLUMNS = ("mixture_ID", *(f"{part}_{of}" for part in PARTS for of in ("path", "gain")))


@dataclass(frozen=True)
class Libri2MixConfig:
    sample_rate: Literal[8000, 16000] = 8000  # Hz
    mode: Literal["min", "max"] = "min"  # cut to the shorter speaker, or padded to the longer one
    # without noise; with noise; with noise and in a room
    mixture: Literal["mix_clean", "mix_both", "mix_both_reverb"] = "mix_clean"
    train: tuple[Literal["train-clean-100", "train-clean-360"], ...] = ("train-clean-100",)
    rt60_s: tuple[float, float] = (0.2, 0.6)  # reverberation times, for mix_both_reverb
    # of s1, s2: 50 ms of the room response, or all
    reference: Literal["early", "reverberant"] = "early"
    seed: int = 0  # of the rooms
    librispeech: str = elsewhere()  # folder with train-clean-100/, dev-clean/, test-clean/
    wham_noise: str = elsewhere()  # folder with tr/, cv/, tt/; needed for noise
    metadata: str = elsewhere()  # folder with libri2mix_dev-clean.csv …
    skip_broken: bool = elsewhere(False)  # leave broken files out
    jobs: int = elsewhere(0)  # processes; 0: one per processor


@dataclass(frozen=True)
class Mixture:
    """One row of the metadata."""

    name: str
    speech: tuple[str, str]  # paths in LibriSpeech
    gains: tuple[float, float]
    noise: str  # path in WHAM!
    noise_gain: float

    @property
    def utterances(self) -> tuple[str, ...]:
        return tuple(Path(path).stem for path in self.speech)  # "3536-8226-0026"

    @property
    def speakers(self) -> tuple[str, ...]:
        return tuple(utterance.partition("-")[0] for utterance in self.utterances)

    @property
    def noise_recording(self) -> str:
        """As "tr/01oo0109_…", without the suffix of the speed."""
        stem = self.noise.removesuffix(".wav")
        return next((stem.removesuffix(end) for end in SPEEDS if stem.endswith(end)), stem)


@preparing.alone(CORPUS)
def prepare(job: Preparation) -> None:
    """Make the mixtures of the metadata. UserError names missing files."""
    files = _metadata(job.config)
    tasks = {
        split: [(split, mixture) for path in paths for mixture in _rows(path)]
        for split, paths in files.items()
    }
    _check_recordings([mixture for found in tasks.values() for _, mixture in found], job.config)
    items = job.items(
        tasks,
        partial(_make, target=job.target, config=job.config),
        partial(_sources, config=job.config),
    )
    job.finish(
        items,
        "take the published metadata",
        metadata={path.name: sha256(path) for paths in files.values() for path in paths},
        mixer={"name": "scipy.signal.resample_poly", "version": scipy.__version__},
    )
    job.tell(", ".join(f"{split} {len(found)}" for split, found in items.items()))


def _metadata(config: Libri2MixConfig) -> dict[str, list[Path]]:
    """Metadata files by split. UserError names all missing folders and their sources."""
    folder = Path(config.metadata).expanduser()
    subsets = {"train": config.train, "dev": ("dev-clean",), "test": ("test-clean",)}
    files = {
        split: [folder / f"libri2mix_{name}.csv" for name in names]
        for split, names in subsets.items()
    }
    missing = []
    for paths in files.values():
        missing += [str(path) for path in paths if not (config.metadata and path.is_file())]
    wanted = {"librispeech": [name for names in subsets.values() for name in names]}
    if config.mixture != "mix_clean":
        wanted["wham_noise"] = ["tr", "cv", "tt"]
    for setting, names in wanted.items():
        root = getattr(config, setting)
        folders = [Path(root).expanduser() / name for name in names]
        missing += [f"{setting} ({f})" for f in folders if not (root and f.is_dir())]
    if missing:
        raise UserError(
            f"libri2mix: no {', '.join(missing)}; name as metadata the folder metadata/Libri2Mix "
            "of github.com/JorisCos/LibriMix, as librispeech LibriSpeech (openslr.org/12, "
            "CC BY 4.0), as wham_noise WHAM! (wham.whisper.ai, CC BY-NC 4.0; for noise)"
        )
    return files


def _rows(path: Path) -> list[Mixture]:
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        if not set(COLUMNS) <= set(table.fieldnames or ()):
            raise UserError(f"{path}: has no columns {', '.join(COLUMNS)}; take the published file")
        found = []
        for row in table:
            try:
                found.append(_row(row))
            except (TypeError, ValueError) as error:
                where = f"{path}, line {table.line_num}"
                raise UserError(f"{where}: {error}; take the published file") from error
    return found


def _row(row: dict[str, str]) -> Mixture:
    name, first, gain, second, other, noise, noise_gain = (row[column] for column in COLUMNS)
    return Mixture(name, (first, second), (float(gain), float(other)), noise, float(noise_gain))


def _check_recordings(mixtures: Iterable[Mixture], config: Libri2MixConfig) -> None:
    """UserError if a recording is missing, before any conversion."""
    wanted = {_speech(config) / path for mixture in mixtures for path in mixture.speech}
    if config.mixture != "mix_clean":
        wanted |= {_noise(config) / mixture.noise for mixture in mixtures}
    missing = sorted(str(path) for path in wanted if not path.is_file())
    if missing:
        advice = "unpack its archive again"
        if any(Path(path).stem.endswith(SPEEDS) for path in missing):
            advice = "files in …sp08 and …sp12 are made by LibriMix's augment_train_noise.py"
        raise UserError(
            f"libri2mix: {len(missing)} recording(s) are missing: {some(missing, 3)}; {advice}"
        )


def _speech(config: Libri2MixConfig) -> Path:
    return Path(config.librispeech).expanduser()


def _noise(config: Libri2MixConfig) -> Path:
    return Path(config.wham_noise).expanduser()


def mixed(
    recordings: Sequence[np.ndarray], gains: Sequence[float], sample_rate: int, mode: str
) -> list[np.ndarray]:
    """Scale and resample recordings (T,) float32 at 16 kHz; all results have one length."""
    signals = [
        resample_poly(recording * np.float32(gain), sample_rate, RATE)
        for recording, gain in zip(recordings, gains, strict=True)
    ]
    if mode == "min":
        length = min(map(len, signals))
        return [signal[:length] for signal in signals]
    length = max(map(len, signals))
    return [np.pad(signal, (0, length - len(signal))) for signal in signals]


def responses(name: str, config: Libri2MixConfig) -> list[np.ndarray]:
    """Impulse responses of two speakers in one room, (T,) each at 16 kHz, drawn from `name`."""
    digest = hashlib.sha256(name.encode()).digest()[:8]
    random = np.random.default_rng([config.seed, int.from_bytes(digest)])
    room, first = rooms.drawn_response(random, config.rt60_s, RATE)
    while True:
        speaker = random.uniform(rooms.FROM_WALL_M, np.array(room.size) - rooms.FROM_WALL_M)
        if DISTANCE_M[0] <= np.linalg.norm(speaker - room.microphone) <= DISTANCE_M[1]:
            second = rooms.response(replace(room, speaker=tuple(speaker.tolist())), RATE)
            if np.abs(second).argmax() == rooms.direct_at(RATE):
                return [first, second]


def heard(recording: np.ndarray, response: np.ndarray, kept_s: float = np.inf) -> np.ndarray:
    """A recording (T,) in a room, aligned with the dry one; `kept_s` of the response is used."""
    direct = rooms.direct_at(RATE)
    kept = response if kept_s == np.inf else response[: direct + round(kept_s * RATE)]
    convolved = fftconvolve(recording.astype(np.float64), kept)
    return convolved[direct : direct + len(recording)].astype(np.float32)


def extended(noise: np.ndarray, length: int) -> np.ndarray:
    """A noise (T,) repeated with crossfades, then cut to `length` samples."""
    n_fade = round(CROSSFADE_S * RATE) + 1
    window = np.hanning(2 * n_fade - 1).astype(np.float32)
    rise, fall = window[:n_fade], window[n_fade - 1 :]
    longer = noise
    while len(longer) < length:
        seam = longer[-n_fade:] * fall + noise[:n_fade] * rise
        longer = np.concatenate([longer[:-n_fade], seam, noise[n_fade:]])
    return longer[:length]


def _read(path: Path) -> np.ndarray:
    """The first channel, (T,) float32."""
    waveform, rate = audio.load(path)
    if rate != RATE:
        raise UserError(f"{path}: has {rate} Hz, the published recordings {RATE}; unpack it again")
    return waveform[0].numpy()


def _signals(mixture: Mixture, config: Libri2MixConfig) -> dict[str, np.ndarray]:
    """The signals speech, noise, s1 and s2, (T,) each, at the rate of the mixture."""
    recordings = [_read(_speech(config) / path) for path in mixture.speech]
    images = references = recordings
    if config.mixture == "mix_both_reverb":
        places = responses(mixture.name, config)
        images = [heard(*pair) for pair in zip(recordings, places, strict=True)]
        references = images
        if config.reference == "early":
            references = [heard(*pair, EARLY_S) for pair in zip(recordings, places, strict=True)]
    noise = np.zeros(max(map(len, recordings)), dtype=np.float32)
    if config.mixture != "mix_clean":
        path = _noise(config) / mixture.noise
        noise = _read(path)
        if len(noise) <= round(CROSSFADE_S * RATE) + 1 < max(map(len, recordings)):
            raise UserError(f"{path}: too short to be repeated; unpack its archive again")
        noise = extended(noise, max(map(len, recordings)))
    gains = (*mixture.gains, mixture.noise_gain, *mixture.gains)
    parts = mixed([*images, noise, *references], gains, config.sample_rate, config.mode)
    first, second, noise, s1, s2 = parts
    signals = {"speech": first + second, "noise": noise, "s1": s1, "s2": s2}
    peak = max(np.abs(signal).max() for signal in (first + second + noise, s1, s2))
    gain = np.float32(min(1.0, PEAK / peak))  # 1 for published mixtures; a room is louder
    return {kind: gain * signal for kind, signal in signals.items()}


def _sources(task: tuple[str, Mixture], config: Libri2MixConfig) -> list[Path]:
    _, mixture = task
    noise = [_noise(config) / mixture.noise] if config.mixture != "mix_clean" else []
    return [*(_speech(config) / path for path in mixture.speech), *noise]


def _make(task: tuple[str, Mixture], target: Path, config: Libri2MixConfig) -> Item:
    split, mixture = task
    signals = _signals(mixture, config)
    speech, noise = signals["speech"], signals["noise"]
    outputs = {config.mixture: speech + noise, "s1": signals["s1"], "s2": signals["s2"]}
    for kind, signal in outputs.items():
        waveform = torch.from_numpy(signal.astype(np.float32))[None]  # (1, T)
        audio.save(target / split / kind / f"{mixture.name}.wav", waveform, config.sample_rate)
    paths = [f"{split}/{kind}/{mixture.name}.wav" for kind in outputs]
    recordings, snr_db = mixture.utterances, None
    if config.mixture != "mix_clean":
        recordings = (*recordings, mixture.noise_recording)
        snr_db = float(10 * np.log10(np.mean(speech**2) / np.mean(noise**2)))
    return preparing.mixture(
        target,
        paths,
        name=mixture.name,
        speakers=mixture.speakers,
        recordings=recordings,
        snr_db=snr_db,
    )
