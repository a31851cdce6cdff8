"""The raw files of every corpus in small: sounds of a fraction of a second, laid out as published.

`lay_out(NAME, raw)` writes them, `prepare(NAME, target, raw)` prepares them with small settings.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechlab.data import manifest
from speechlab.data.corpora import libri2mix, wsj0_2mix
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.manifest import Item
from speechlab.storage.atomic import sha256

VOICEBANK = {  # utterances of the two parts, with their SNR in dB
    "trainset_28spk": {
        "p226_001": 15,
        "p227_001": 0,
        "p227_002": 5,
        "p287_005": 10,
        "p286_404": 2.5,
    },
    "testset": {"p232_001": 2.5, "p257_003": 17.5},
}
LIBRI = {  # recordings of each subset
    "train-clean-100": ("19-198-0000", "26-495-0003", "27-123349-0001"),
    "dev-clean": ("3536-8226-0026", "1673-143397-0009"),
    "test-clean": ("61-70968-0001", "908-157963-0002"),
}
LIBRI_GAINS = (0.7925878276419455, 0.2142791008161834, 1.1114428047969456)
WSJ0 = ("01t", "011", "40n", "012", "02a", "401")  # speakers of tr and cv
WSJ0_TEST = {"050": "si_dt_05", "22h": "si_et_05"}
WSJ0_FOLDERS = {**dict.fromkeys(WSJ0, "si_tr_s"), **WSJ0_TEST}
SPEAKERS = {"train": ("anna", "ben", "carla"), "dev": ("dan", "eva"), "test": ("finn", "gina")}

# Settings that keep the work small; a Path is a folder in the raw one.
_TWO_SPEAKERS = {"source": Path(), "n_mixtures": 3, "mixture_s": 0.5}
_ROOMS = {"n_rooms": 2, "n_rooms_held_out": 1, "rt60_s": (0.15, 0.2)}
_LIBRI_FOLDERS = ("librispeech", "wham_noise", "metadata")
SETTINGS: dict[str, dict[str, Any]] = {
    "synthetic": {"n_train": 4, "n_held_out": 5, "noise_s": 3.0, "rt60_s": (0.15, 0.2)}
    | dict.fromkeys(("n_noises", "n_noises_held_out", "n_rooms", "n_rooms_held_out"), 1),
    "voicebank_demand": {"raw": Path(), "download": False},
    "dns2020": {
        "raw": Path(),
        "hours": 12 / 3600,
        "dev_hours": 4 / 3600,
        "clip_s": 1.0,
        "dev_percent": 30.0,
    },
    "libri2mix": {name: Path(name) for name in _LIBRI_FOLDERS},
    "wsj0_2mix": {"wsj0": Path(), "lists": Path("metadata"), "dev_percent": 40.0},
    "two_speakers": _TWO_SPEAKERS,
    "two_speakers_noisy": _TWO_SPEAKERS | _ROOMS,
    "folder": {"raw": Path(), "n_mixtures": 2, "mixture_s": 0.1, "dev_percent": 30.0},
}


def config(name: str, raw: Path, /, **changes: Any) -> Any:
    """The small settings of a corpus, on the files in `raw`, in this process."""
    settings = {"jobs": 1} | SETTINGS[name] | changes
    folders = {key: str(raw / v) for key, v in settings.items() if isinstance(v, Path)}
    return CORPORA[name].config(**settings | folders)


def prepare(name: str, target: Path, raw: Path, /, **changes: Any) -> list[str]:
    """Prepares a corpus; returns the lines that it told."""
    told = []
    CORPORA[name].prepare(target, config(name, raw, **changes), told.append)
    return told


def lay_out(name: str, raw: Path) -> Path:
    """Writes the raw files of a corpus. The synthetic one has none."""
    layouts = {
        "voicebank_demand": _voicebank_demand,
        "dns2020": _dns2020,
        "libri2mix": _libri2mix,
        "wsj0_2mix": _wsj0,
        "two_speakers": speakers_and_noise,
        "two_speakers_noisy": speakers_and_noise,
        "folder": _folder,
    }
    if name in layouts:
        layouts[name](raw)
    return raw


def noise(path: Path, seconds: float = 0.1, sample_rate: int = 16000, **options) -> Path:
    """White noise that depends on the name of the file: other names, other samples.

    options: level (of full scale, 0.1), n_channels (1), subtype, format, as soundfile has them.
    """
    level, n_channels = options.pop("level", 0.1), options.pop("n_channels", 1)
    seed = list(path.name.encode())
    shape = (round(seconds * sample_rate), n_channels)
    samples = level * np.random.default_rng(seed).standard_normal(shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(samples, -0.9, 0.9), sample_rate, **options)
    return path


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by their path in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def waveforms(target: Path, item: Item) -> np.ndarray:
    """Of a mixture and its sources, (1 + S, T) float32."""
    paths = [target / path for path in (item.path, *item.sources)]
    return np.stack([soundfile.read(path, dtype="float32")[0] for path in paths])


def items(target: Path, *kinds: str) -> dict[str, list[Item]]:
    """The manifests of a prepared corpus by split; of some kinds only, where they are named."""
    return {
        split: [i for i in manifest.parse(target / f"{split}.csv") if not kinds or i.kind in kinds]
        for split in manifest.SPLITS
    }


def _voicebank_demand(raw: Path) -> None:
    """The seven unpacked archives; 48 kHz, as published."""
    (raw / "logfiles").mkdir(parents=True)
    (raw / "logfiles" / "log_readme.txt").write_text("columns: name, noise, SNR")
    for part, snrs in VOICEBANK.items():
        (raw / f"{part}_txt").mkdir()
        for name in snrs:
            for kind in ("noisy", "clean"):
                noise(raw / f"{kind}_{part}_wav" / f"{name}.wav", sample_rate=48000)
            (raw / f"{part}_txt" / f"{name}.txt").write_text(f"Please call {name}.\n")
        lines = "".join(f"{name} cafeteria {snr}\n" for name, snr in snrs.items())
        (raw / "logfiles" / f"log_{part}.txt").write_text(lines)


def _dns2020(raw: Path) -> None:
    """The branch interspeech2020/master."""
    data = raw / "datasets"
    for reader in range(8):
        for part in (0, 7):
            name = f"book_0000{reader}_chp_0009_reader_0670{reader}_{part}.wav"
            noise(data / "clean" / name, seconds=0.4 + 0.2 * part)
    for name in ("--9VR_F7CtY", "-0Kp4S9337k", "-1P1hc8M6Qg", "-24NCAbGKic", "-2rFA4BrQpc"):
        noise(data / "noise" / f"{name}.wav", seconds=0.7)
    for number in range(2):
        noise(data / "noise" / f"door_Freesound_validated_470344_{number}.wav", seconds=1.4)
    test = data / "test_set" / "synthetic" / "no_reverb"
    for number in (0, 9, 12):  # the last is no number of the published set
        noise(test / "noisy" / f"clnsp1_train_69005_1_snr15_tl-21_fileid_{number}.wav")
        noise(test / "clean" / f"clean_fileid_{number}.wav")


def _libri2mix(raw: Path) -> None:
    """LibriSpeech, WHAM! noise and the metadata of LibriMix."""
    (raw / "metadata").mkdir(parents=True)
    for (subset, names), part in zip(LIBRI.items(), ("tr", "cv", "tt"), strict=True):
        paths = [f"{subset}/{n.split('-')[0]}/{n.split('-')[1]}/{n}.flac" for n in names]
        for i, path in enumerate(paths):
            noise(raw / "librispeech" / path, seconds=1.2 + 0.3 * i)
        rows = [",".join(libri2mix.COLUMNS)]
        for i in range(len(paths) - 1):
            added = f"{part}/01oo0109_0.7211{i}_01ua010r_-0.7211{i}.wav"
            # the first is longer than the mixture, the second has to be repeated
            noise(raw / "wham_noise" / added, seconds=2.0 - 1.2 * i, n_channels=2)
            first, second, gain = LIBRI_GAINS
            cells = (f"{names[i]}_{names[i + 1]}", paths[i], first, paths[i + 1], second)
            rows.append(",".join(map(str, (*cells, added, gain))))
        (raw / "metadata" / f"libri2mix_{subset}.csv").write_text("\n".join(rows) + "\n")
        (raw / "metadata" / f"libri2mix_{subset}_info.csv").write_text("speaker_ID\n")


def wsj0_lines(part: str) -> list[tuple[str, str, str, str]]:
    """Every pair of two speakers once, each part with other utterances."""
    speakers = tuple(WSJ0_TEST) if part == "tt" else WSJ0
    rest = "a010x" if part == "cv" else "o030v"
    return [
        (f"{a}{rest}", "1.9857", f"{b}{rest}", "-1.9857")
        for i, a in enumerate(speakers)
        for b in speakers[i + 1 :]
    ]


def _wsj0(raw: Path) -> None:
    """WSJ0 as WAV files of different lengths, the mixing lists and the active levels."""
    names = [f"{speaker}{rest}" for speaker in WSJ0_FOLDERS for rest in ("o030v", "a010x")]
    places = {name: f"wsj0/{WSJ0_FOLDERS[name[:3]]}/{name[:3]}/{name}.wav" for name in names}
    for i, place in enumerate(places.values()):
        noise(raw / place, seconds=0.1 + 0.01 * i, level=0.01 * (i + 1))
    levels = [f"{name} {(0.01 * (i + 1)) ** 2}\n" for i, name in enumerate(names)]
    (raw / "metadata" / "activlev").mkdir(parents=True)
    (raw / "metadata" / "activlev" / "activlev_tr.txt").write_text("".join(levels[:8]))
    (raw / "metadata" / "activlev" / "activlev_si_et_05.txt").write_text("".join(levels[8:]))
    for part in wsj0_2mix.PARTS:
        lines = [f"{places[a]} {x} {places[b]} {y}\n" for a, x, b, y in wsj0_lines(part)]
        (raw / "metadata" / f"mix_2_spk_{part}.txt").write_text("".join(lines))


def wsj0_mixtures(raw: Path) -> Path:
    """The folders that pywsj0-mix writes, at 8 kHz, cut to the shorter speaker."""
    for part in wsj0_2mix.PARTS:
        for line in wsj0_lines(part):
            for kind in wsj0_2mix.FOLDERS:
                path = raw / "wav8k" / "min" / part / kind / f"{'_'.join(line)}.wav"
                noise(path, seconds=0.1, sample_rate=8000)
    return raw


def speakers_and_noise(
    folder: Path,
    speakers: Mapping[str, Sequence[str]] = SPEAKERS,
    noisy: Sequence[str] = manifest.SPLITS,
) -> Path:
    """A prepared corpus at 16 kHz: two recordings of each speaker, and a noise in some splits."""
    splits = {}
    for split, names in speakers.items():
        planned = [("speech", f"{name}_{i}", (name,)) for name in names for i in range(2)]
        planned += [("noise", f"rain_{split}", ())] if split in noisy else []
        splits[split] = []
        for kind, name, who in planned:
            path = noise(folder / split / f"{name}.wav", seconds=0.8)
            item = Item(name, kind, f"{split}/{name}.wav", 12800, 16000, speakers=who)
            item = dataclasses.replace(item, recordings=(name,), sha256=sha256(path))
            splits[split].append(item)
    manifest.write(folder, splits, {"corpus": "toy", "options": {}})
    return folder


def pairs(folder: Path, names: Sequence[str]) -> Path:
    """Noisy files, and as clean ones the same at half their level."""
    for name in names:
        samples, rate = soundfile.read(noise(folder / "noisy" / f"{name}.wav"))
        (folder / "clean").mkdir(exist_ok=True)
        soundfile.write(folder / "clean" / f"{name}.wav", 0.5 * samples, rate)
    return folder


def utterances(speakers: Sequence[str], n: int = 3) -> list[str]:
    """Names of `n` files of each speaker, as "anna_000"."""
    return [f"{speaker}_{number:03d}" for speaker in speakers for number in range(n)]


def _folder(raw: Path) -> None:
    """Pairs, speech and noise, some speakers in both."""
    pairs(raw, utterances(("anna", "ben", "carla", "dan", "eva", "finn")))
    for name in utterances(("anna", "ben", "carla", "dan", "eva", "finn", "gina", "hugo")):
        noise(raw / "speech" / f"{name}_said.wav")
    for name in ("street", "kitchen", "deep/wind"):
        noise(raw / "noise" / f"{name}.wav", sample_rate=44100, n_channels=2)
