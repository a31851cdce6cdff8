"""DNS-2020 (arXiv 2005.13981): noisy clips from its clean and noise folders, and its test set.

The recipe is that of the challenge's synthesiser. Files are joined with pauses until a clip is
full; clipped files and clips with little speech are drawn again. Noise is scaled to an SNR over the
whole clip and the mixture to a level; both are scaled down if they would clip. A clip is a pure
function of (seed, split, index) and the file names: any number of processes makes the same clips,
and 10 hours are the first clips of 500 hours.

Two deviations: files are drawn at random instead of in a shuffled order, and the level is a real
number instead of an integer.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit

from speechlab.audio import files as audio
from speechlab.config import SampleRate
from speechlab.data import test_sets
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora import survey
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.corpora.prepare import Preparation, elsewhere
from speechlab.data.manifest import Item
from speechlab.errors import UserError, some
from speechlab.storage import download

CORPUS = CORPORA["dns2020"]
CLIPPED = 0.99  # of full scale: louder files are skipped, louder clips scaled down
TRIES = 50  # useless draws in a row before an error
SPLITS = ("train", "dev")  # the position is part of the random seed of a clip
READER = re.compile(r"(book_\d+_chp_\d+_reader_(\d+))")


@dataclass(frozen=True)
class Dns2020Config:
    hours: float = 500.0  # of training clips, as published
    dev_hours: float = 1.0
    clip_s: float = 30.0  # seconds of a clip
    sample_rate: SampleRate = 16000  # Hz
    silence_s: float = 0.2  # between files that are joined
    snr_min_db: float = -5.0  # CleanUMamba's range; the challenge's own default is 0 to 40
    snr_max_db: float = 25.0
    n_snrs: int = 31  # evenly spaced levels, both ends included
    level_min_db: float = -35.0  # dBFS, RMS of the noisy clip
    level_max_db: float = -15.0
    min_activity: float = 0.6  # share of a clean clip that must be speech
    dev_percent: float = 5.0  # of the readers, and of the noise recordings, held out
    seed: int = 0
    raw: str = elsewhere()
    # clone of the branch interspeech2020/master, or its folder datasets; empty: <target>/raw
    skip_broken: bool = elsewhere(False)  # leave broken files out
    jobs: int = elsewhere(0)  # processes; 0: one per processor


@dataclass(frozen=True)
class Material:
    """The files of a split, as sorted paths relative to `root`."""

    root: Path
    clean: tuple[str, ...]
    noise: tuple[str, ...]


@dataclass(frozen=True)
class Clip:
    """Signals (T,) float64 and the files used."""

    noisy: np.ndarray
    clean: np.ndarray
    snr_db: float
    clean_files: tuple[str, ...]
    noise_files: tuple[str, ...]


@dataclass(frozen=True)
class _Task:
    split: str
    index: int
    name: str
    material: str  # see `_digest`, so that clips of other files are not reused
    pair: test_sets.Mixture | None = None  # of the test set, copied unchanged


@preparing.alone(CORPUS)
def prepare(job: Preparation) -> None:
    """Make the clips of train and dev; copy the test set. UserError names missing folders."""
    target, config, tell = job.target, job.config, job.tell
    root, test = _found(job.raw)
    if not (target / "train").exists():  # not when resuming
        seconds = (config.hours + config.dev_hours) * 3600  # of two files of 16 bits
        download.check_space(target, seconds * config.sample_rate * 4, "dns2020")
    _materials.cache_clear()
    broken = _broken(job, root)
    tasks = {}
    for split, material in _materials(root, config, broken).items():
        tell(f"{split}: {len(material.clean)} clean and {len(material.noise)} noise files")
        digest = _digest(material)
        n_clips = round(
            (config.hours if split == "train" else config.dev_hours) * 3600 / config.clip_s
        )
        tasks[split] = [_Task(split, i, f"{split}_{i:06d}", digest) for i in range(n_clips)]
    tasks["test"] = [_Task("test", i, pair.name, "", pair) for i, pair in enumerate(test)]
    make = partial(_make, target=target, root=root, config=config, broken=broken)
    items = job.items(tasks, make, _sources)
    known = test_sets.recognise(test)
    complete = known is not None and len(test) == known.n_files
    tell(f"test: {len(test)} pairs, {'the complete' if complete else 'not the'} no_reverb set")
    job.finish(items, "keep the published file names", complete_test=complete)


def _found(raw: Path) -> tuple[Path, list[test_sets.Mixture]]:
    """The folder `datasets` and the pairs of the test set. UserError names all missing folders."""
    root = next((f for f in (raw / "datasets", raw) if (f / "clean").is_dir()), raw)
    test = root / "test_set" / "synthetic" / "no_reverb"
    wanted = (root / "clean", root / "noise", test / "noisy", test / "clean")
    missing = [str(folder) for folder in wanted if not folder.is_dir()]
    if missing:
        raise UserError(
            f"dns2020: no folder {', '.join(missing)}; clone the branch interspeech2020/master of "
            "github.com/microsoft/DNS-Challenge with git lfs (speech and noise CC BY 4.0 and CC0) "
            "and name it as raw"
        )
    return root, test_sets.find(test)


def _broken(job: Preparation, root: Path) -> frozenset[str]:
    """Files of speech and noise that are to be skipped, relative to `root`, by their headers."""
    materials = _materials(root, job.config, frozenset())
    paths = [root / path for of in materials.values() for path in (*of.clean, *of.noise)]
    faults = survey.header_faults(paths, job.n_jobs)
    job.refuse(list(faults.values()), len(paths))
    return frozenset(path.relative_to(root).as_posix() for path in faults)


def split_material(
    root: Path, config: Dns2020Config, broken: frozenset[str] = frozenset()
) -> dict[str, Material]:
    """Files of train and dev without broken ones, held out by reader and by noise recording."""
    found = {kind: preparing.sounds(root / kind) for kind in ("clean", "noise")}
    paths = {
        kind: [
            inner
            for path in files.values()
            if (inner := path.relative_to(root).as_posix()) not in broken
        ]
        for kind, files in found.items()
    }
    unnamed = [path for path in paths["clean"] if not READER.search(path)]
    if unnamed:
        raise UserError(
            f"{root}: {some(unnamed)} names no reader; the published names are "
            "book_…_chp_…_reader_…_….wav"
        )
    groups = {path: READER.search(path)[2] for path in paths["clean"]}
    groups |= {path: noise_recording(path) for path in paths["noise"]}
    held = {
        kind: preparing.held_out({groups[path] for path in paths[kind]}, config.dev_percent)
        for kind in paths
    }
    parts = {"train": {}, "dev": {}}
    for kind, names in paths.items():
        for split in SPLITS:
            kept = [p for p in names if (groups[p] in held[kind]) == (split == "dev")]
            if not kept:
                raise UserError(f"{root / kind}: too few files to hold some out for {split}")
            parts[split][kind] = tuple(kept)
    return {split: Material(root, **part) for split, part in parts.items()}


def noise_recording(path: str) -> str:
    """The recording of a noise file: a Freesound clip without its number, or an AudioSet id."""
    stem = Path(path).stem
    return stem if len(stem) == 11 else re.sub(r"[_-]\d+$", "", stem)  # ids have 11 characters


def make_clip(config: Dns2020Config, material: Material, split: str, index: int) -> Clip:
    """Clip `index` of a split, deterministic. UserError if no usable files are found."""
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    length = round(config.clip_s * config.sample_rate)
    for _ in range(TRIES):
        clean, clean_files = _joined(rng, material.root, material.clean, length, config)
        if activity(clean, config.sample_rate) > config.min_activity:
            break
    else:
        raise UserError(
            f"{material.root / 'clean'}: {TRIES} clips in a row have little speech; "
            "look at the files or lower min_activity"
        )
    noise, noise_files = _joined(rng, material.root, material.noise, length, config)
    snr_db = float(rng.choice(np.linspace(config.snr_min_db, config.snr_max_db, config.n_snrs)))
    level_db = rng.uniform(config.level_min_db, config.level_max_db)
    noisy, clean = mixed(clean, noise, snr_db, level_db)
    return Clip(noisy, clean, snr_db, clean_files, noise_files)


def mixed(
    clean: np.ndarray, noise: np.ndarray, snr_db: float, level_db: float
) -> tuple[np.ndarray, np.ndarray]:
    """(noisy, clean), each (T,): noise at an SNR over the whole clip, noisy at an RMS in dBFS.

    Both are scaled down together if a sample of the noisy one would exceed 0.99.
    """
    noisy = clean + noise * (_rms(clean) / _rms(noise) * 10 ** (-snr_db / 20))
    gain = 10 ** (level_db / 20) / _rms(noisy)
    gain = min(gain, CLIPPED / np.abs(noisy).max())
    return gain * noisy, gain * clean


def activity(signal: np.ndarray, sample_rate: int) -> float:
    """Share, 0 to 1, of 50-ms windows of a signal (T,) that contain speech, by their energy.

    The challenge's detector: energy at -25 dBFS through a logistic curve, smoothed with a fast
    attack and a slow release, against a threshold. Silence is 0.
    """
    signal = signal * (10 ** (-25 / 20) / max(_rms(signal), 1e-12))
    width = sample_rate // 20
    padded = np.pad(signal, (0, -len(signal) % width)).reshape(-1, width)
    energy_db = 20 * np.log10(np.square(padded).sum(1) + np.finfo(float).eps)
    now = expit(-1 + 0.2 * energy_db)
    before = np.concatenate([[0.0], now[:-1]])
    weight = np.where(now > before, 0.8, 0.05)
    return float(np.mean(weight * now + (1 - weight) * before > 0.13))


def _joined(
    rng: np.random.Generator, root: Path, paths: Sequence[str], length: int, config: Dns2020Config
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Files joined with pauses to `length` samples, (T,) float64; the last is cut at random."""
    signal, used = np.zeros(0), []
    n_useless = 0
    while len(signal) < length:
        path = paths[rng.integers(len(paths))]
        waveform, _ = audio.load(root / path, config.sample_rate)  # (C, T)
        samples = waveform.mean(0).double().numpy()
        missing = length - len(signal)
        first = rng.integers(len(samples) - missing + 1) if len(samples) > missing else 0
        piece = samples[first : first + missing]
        if np.abs(piece).max() > CLIPPED or not piece.any():
            n_useless += 1
            if n_useless == TRIES:
                raise UserError(f"{root / path}: {TRIES} files in a row are clipped or silent")
            continue
        n_useless = 0
        used.append(path)
        pause = np.zeros(round(config.silence_s * config.sample_rate))
        signal = np.concatenate([signal, piece, pause])[:length]
    return signal, tuple(used)


def _digest(material: Material) -> str:
    """SHA-256 of names, sizes and times of all files: reading them all would take hours."""
    files = [
        (path, found.st_size, found.st_mtime_ns)
        for path in (*material.clean, *material.noise)
        for found in ((material.root / path).stat(),)
    ]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _rms(signal: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(signal))))


_materials = cache(split_material)  # listed once per process: too long to send


def _sources(task: _Task) -> tuple[Path, ...]:
    """Files of a pair of the test set; those of a clip are in its `material`."""
    return (task.pair.mixture, *task.pair.sources) if task.pair else ()


def _make(
    task: _Task, target: Path, root: Path, config: Dns2020Config, broken: frozenset[str]
) -> Item:
    if task.pair is not None:
        return _take(task, task.pair, target)
    material = _materials(root, config, broken)[task.split]
    clip = make_clip(config, material, task.split, task.index)
    paths = [f"{task.split}/{kind}/{task.name}.wav" for kind in ("noisy", "clean")]
    for path, signal in zip(paths, (clip.noisy, clip.clean), strict=True):
        waveform = torch.from_numpy(signal).float()[None]  # (1, T)
        audio.save(target / path, waveform, config.sample_rate)
    readers = [READER.search(path) for path in clip.clean_files]
    recordings = [found[1] for found in readers]
    recordings += [f"noise {noise_recording(path)}" for path in clip.noise_files]
    return preparing.mixture(
        target,
        paths,
        name=task.name,
        speakers=tuple(dict.fromkeys(found[2] for found in readers)),
        recordings=tuple(dict.fromkeys(recordings)),
        snr_db=clip.snr_db,
    )


def _take(task: _Task, pair: test_sets.Mixture, target: Path) -> Item:
    """Copy a pair of the test set; its names stay."""
    (source,) = pair.sources
    noisy, clean = f"test/noisy/{pair.mixture.name}", f"test/clean/{source.name}"
    preparing.copy(pair.mixture, target / noisy)
    preparing.copy(source, target / clean)
    snr = re.search(r"_snr(-?\d+)_", pair.mixture.name)
    name, snr_db = f"test_{task.name}", float(snr[1]) if snr else None
    return preparing.mixture(target, (noisy, clean), name=name, recordings=(name,), snr_db=snr_db)
