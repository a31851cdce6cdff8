"""WSJ0-2mix: mixtures of two speakers (arXiv 1508.04306), copied or built from WSJ0.

Either `raw` holds finished mixtures in the layout of pywsj0-mix. Or `wsj0` holds the recordings
(LDC93S6A, bought from the LDC) and `lists` the published mixing lists and active levels. Mixtures
are then built by the published rule: each speaker is divided by the root of its active level,
scaled by its gain, and cut to the shorter (min) or padded to the longer one (max); all three
signals are scaled to a peak of at most 0.9.

The published cv set has the speakers of tr: it would select models on known voices. Here some
speakers of tr and cv are held out. Dev has the mixtures of two such speakers, train those of tr
with none; mixtures with one are left out. The test set is all of tt.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import scipy
import torch
from scipy.signal import resample_poly

from speechlab.audio import files as audio
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.corpora.prepare import Preparation, elsewhere
from speechlab.data.corpora.survey import Heard
from speechlab.data.manifest import Item
from speechlab.errors import UserError, some

CORPUS = CORPORA["wsj0_2mix"]
PARTS = ("tr", "cv", "tt")
FOLDERS = ("mix", "s1", "s2")
WSJ0_RATE = 16000  # Hz of the recordings
PEAK = 0.9
NAME = re.compile(r"([^_]+)_(-?[\d.e-]+)_([^_]+)_(-?[\d.e-]+)")  # utterance, dB, utterance, dB


@dataclass(frozen=True)
class Wsj0TwoMixConfig:
    sample_rate: Literal[8000, 16000] = 8000  # Hz
    mode: Literal["min", "max"] = "min"  # cut to the shorter speaker, or padded to the longer one
    dev_percent: float = 10.0  # of the speakers of tr and cv, held out
    raw: str = elsewhere()  # folder with wav8k/min/tr/mix …; or with 2speakers/wav8k/…
    wsj0: str = elsewhere()  # folder with wsj0/si_tr_s …, to build the mixtures from
    lists: str = elsewhere()  # folder with mix_2_spk_tr.txt … and activlev/
    skip_broken: bool = elsewhere(False)  # leave broken files out
    jobs: int = elsewhere(0)  # processes; 0: one per processor


@dataclass(frozen=True)
class Mixture:
    """One line of a mixing list, or one finished mixture."""

    part: str  # of PARTS
    utterances: tuple[str, str]
    gains_db: tuple[str, str]  # as written in the list and in file names
    files: tuple[Path, ...]  # mix, s1, s2; or the two recordings
    levels: tuple[float, ...] = ()  # active level (power) of each recording, if built

    @property
    def name(self) -> str:
        """The file name of pywsj0-mix: gains have 8 significant digits."""
        gains = [f"{float(gain):.8g}" for gain in self.gains_db]
        return "_".join(itertools.chain(*zip(self.utterances, gains, strict=True)))

    @property
    def speakers(self) -> tuple[str, ...]:
        return tuple(utterance[:3] for utterance in self.utterances)


@preparing.alone(CORPUS)
def prepare(job: Preparation) -> None:
    """Copy or build the mixtures and hold speakers out. UserError names missing files."""
    target, config, tell = job.target, job.config, job.tell
    found = _taken(Path(config.raw).expanduser(), config) if config.raw else _listed(config)
    splits = split(found, config.dev_percent)
    n_used = sum(map(len, splits.values()))
    tasks = {name: [(name, mixture) for mixture in mixtures] for name, mixtures in splits.items()}
    make = partial(_make, target=target, config=config)
    unlike = partial(_unlike, sample_rate=config.sample_rate)
    items = job.items(tasks, make, _sources, unlike=unlike)
    job.finish(
        items,
        "keep the published names",
        built="taken over as it was" if config.raw else "from the recordings",
        mixer={"name": "scipy.signal.resample_poly", "version": scipy.__version__},
        n_left_out=len(found) - n_used,
    )
    tell(f"{len(found) - n_used} mixtures of a held-out and another speaker are left out")
    tell(", ".join(f"{name} {len(mixtures)}" for name, mixtures in splits.items()))


def split(mixtures: list[Mixture], dev_percent: float) -> dict[str, list[Mixture]]:
    """Mixtures by split; no two splits share a speaker. UserError if a split is empty."""
    speakers = {speaker for m in mixtures if m.part != "tt" for speaker in m.speakers}
    held = preparing.held_out(speakers, dev_percent)
    splits = {
        "train": [m for m in mixtures if m.part == "tr" and not held & set(m.speakers)],
        "dev": [m for m in mixtures if m.part != "tt" and set(m.speakers) <= held],
        "test": [m for m in mixtures if m.part == "tt"],
    }
    empty = [name for name, chosen in splits.items() if not chosen]
    if empty:
        raise UserError(
            f"wsj0_2mix: no mixtures for {' and '.join(empty)}; "
            "give all of tr, cv and tt, or raise dev_percent"
        )
    return splits


def _taken(raw: Path, config: Wsj0TwoMixConfig) -> list[Mixture]:
    """The mixtures in `raw`. UserError if one of their three files is missing."""
    inner = Path(f"wav{config.sample_rate // 1000}k") / config.mode
    root = next((raw / p / inner for p in ("", "2speakers") if (raw / p / inner).is_dir()), None)
    missing = [f"{part}/{kind}" for part in PARTS for kind in FOLDERS]
    if root is not None:
        missing = [name for name in missing if not (root / name).is_dir()]
    if missing:
        raise UserError(f"wsj0_2mix: {raw / inner} lacks {', '.join(missing)}; {_ADVICE}")
    mixtures = []
    for part in PARTS:
        files = {kind: preparing.sounds(root / part / kind) for kind in FOLDERS}
        alone = sorted(files["mix"].keys() ^ (files["s1"].keys() & files["s2"].keys()))
        if alone:
            raise UserError(
                f"{root / part}: {len(alone)} mixture(s) without all of mix, s1, s2: "
                f"{some(alone)}; copy them again"
            )
        for name in files["mix"]:
            parsed = NAME.fullmatch(name)
            if not parsed:
                raise UserError(
                    f"{files['mix'][name]}: names are as 40na010x_1.9857_01to030v_-1.9857.wav"
                )
            first, gain, second, other = parsed.groups()
            paths = tuple(files[kind][name] for kind in FOLDERS)
            mixtures.append(Mixture(part, (first, second), (gain, other), paths))
    return mixtures


def _listed(config: Wsj0TwoMixConfig) -> list[Mixture]:
    """The mixtures of the published lists. UserError names missing files."""
    lists, wsj0 = Path(config.lists).expanduser(), Path(config.wsj0).expanduser()
    paths = {part: lists / f"mix_2_spk_{part}.txt" for part in PARTS}
    missing = [str(path) for path in paths.values() if not (config.lists and path.is_file())]
    missing += [] if any(lists.glob("activlev/*.txt")) else [str(lists / "activlev")]
    missing += [] if config.wsj0 and wsj0.is_dir() else [f"the recordings ({wsj0})"]
    if missing:
        raise UserError(f"wsj0_2mix: no raw folder, and no {', '.join(missing)}; {_ADVICE}")
    levels = _levels(lists)
    found = []
    for part, path in paths.items():
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            found += _parsed(part, line, wsj0, levels, f"{path}, line {number}")
    return found


def _parsed(
    part: str, line: str, wsj0: Path, levels: Mapping[str, float], where: str
) -> list[Mixture]:
    """The mixture of a line "wsj0/si_tr_s/40n/40na010x.wav 1.9857 wsj0/… -1.9857"."""
    words = line.split()
    if not words:
        return []
    if len(words) != 4:
        raise UserError(f"{where}: not 'file gain file gain'; take the published lists")
    names = tuple(Path(word).stem for word in words[::2])
    unknown = [name for name in names if name not in levels]
    if unknown:
        raise UserError(f"{where}: no active level of {unknown[0]} in activlev/")
    files = tuple(_recording(wsj0, word) for word in words[::2])
    gains = (words[1], words[3])
    return [Mixture(part, names, gains, files, tuple(levels[name] for name in names))]


def _recording(wsj0: Path, listed: str) -> Path:
    """A recording as WAV or, as on the discs, .wv1. UserError if there is neither."""
    place = wsj0 / listed
    if not place.parent.is_dir():
        place = wsj0 / Path(*Path(listed).parts[1:])  # `wsj0` is the inner folder
    for path in (place, place.with_suffix(".wv1")):
        if path.is_file():
            return path
    raise UserError(f"wsj0_2mix: no {place}, and no .wv1 in its place; copy it from LDC93S6A")


def _levels(lists: Path) -> dict[str, float]:
    """Utterance -> active level (power), of all files "utterance level" in `activlev`."""
    words = [
        line.split()
        for path in sorted(lists.glob("activlev/*.txt"))
        for line in path.read_text().splitlines()
    ]
    return {pair[0]: float(pair[1]) for pair in words if len(pair) == 2}


def mixed(
    sources: list[np.ndarray],
    levels: tuple[float, ...],
    gains_db: tuple[float, ...],
    sample_rate: int,
    mode: str,
) -> np.ndarray:
    """Two recordings (T,) at 16 kHz -> mix, s1, s2 (3, T'), by the published rule."""
    speakers = [resample_poly(source, sample_rate, WSJ0_RATE) for source in sources]
    longest, shortest = max(map(len, speakers)), min(map(len, speakers))
    speakers = np.stack([np.pad(t.astype(np.float64), (0, longest - len(t))) for t in speakers])
    scale = 10 ** (np.array(gains_db) / 20) / np.sqrt(levels)
    speakers = speakers * scale[:, None]
    speakers = speakers[:, : shortest if mode == "min" else longest]
    signals = np.concatenate([speakers.sum(0, keepdims=True), speakers])  # (3, T')
    return signals * (PEAK / max(1.0, np.abs(signals).max()))


def _build(mixture: Mixture, paths: list[Path], config: Wsj0TwoMixConfig) -> None:
    """Write mix, s1, s2."""
    sources = []
    for path in mixture.files:
        waveform, rate = audio.load(path)
        if rate != WSJ0_RATE:
            raise UserError(f"{path}: has {rate} Hz, WSJ0 has {WSJ0_RATE}; copy the file anew")
        sources.append(waveform[0].numpy())
    gains_db = tuple(map(float, mixture.gains_db))
    signals = mixed(sources, mixture.levels, gains_db, config.sample_rate, config.mode)
    for path, signal in zip(paths, signals, strict=True):
        audio.save(path, torch.from_numpy(signal)[None], config.sample_rate)


def _sources(task: tuple[str, Mixture]) -> tuple[Path, ...]:
    return task[1].files


def _unlike(paths: Sequence[Path], heard: Mapping[Path, Heard], sample_rate: int) -> str:
    """The fault of a finished mixture and its speakers; recordings to be mixed may differ."""
    found = {(heard[path].n_frames, heard[path].rate) for path in paths}
    if len(paths) < len(FOLDERS) or found == {(heard[paths[0]].n_frames, sample_rate)}:
        return ""
    return (
        f"{paths[0]}: mix, s1 and s2 differ in length, or are not at {sample_rate} Hz; "
        "make them again"
    )


def _make(task: tuple[str, Mixture], target: Path, config: Wsj0TwoMixConfig) -> Item:
    name, mixture = task
    files = [f"{name}/{kind}/{mixture.part}_{mixture.name}.wav" for kind in FOLDERS]
    paths = [target / path for path in files]
    if mixture.levels:
        _build(mixture, paths, config)
    else:
        for source, path in zip(mixture.files, paths, strict=True):
            preparing.copy(source, path)
    return preparing.mixture(
        target,
        files,
        name=f"{mixture.part}_{mixture.name}",
        speakers=mixture.speakers,
        recordings=mixture.utterances,
    )


_ADVICE = (
    "name as raw the folder that pywsj0-mix wrote, or as wsj0 the recordings of LDC93S6A (a "
    "licence of the LDC) and as lists its folder metadata (mix_2_spk_*.txt, activlev/)"
)
