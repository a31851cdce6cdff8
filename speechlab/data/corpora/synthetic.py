"""The default corpus: synthetic speech, noise and rooms, generated from a seed.

Every split has recordings in `speech`, `noise` and `rooms`. `dev` and `test` also have mixtures in
`noisy` and `clean` (same names) for `speechlab evaluate FOLDER/test`. A file depends only on
(options, seed, split, kind, index), not on order or process. Arithmetic is float64 and rounded to
16 bits, so that the default corpus has the same bytes with and without AVX and FMA. Other versions
or builds of `PACKAGES` may give other files; `key` and `data_hash` in `corpus.json` then differ.
"""

import dataclasses
import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechlab.audio import files
from speechlab.config import check_ranges, to_dict
from speechlab.data import manifest
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.corpora.prepare import Preparation, elsewhere
from speechlab.data.manifest import Item
from speechlab.data.synthesis import noise as noises
from speechlab.data.synthesis import rooms, speech
from speechlab.errors import UserError
from speechlab.storage.atomic import sha256

CORPUS = CORPORA["synthetic"]
GENERATOR = 1  # increase it with every change that changes a file
# their versions change the bytes
PACKAGES = ("espeakng-loader", "numpy", "pyroomacoustics", "soxr")
EXTRA = ("espeakng_loader", "pyroomacoustics")  # modules of the extra `synth`

NOISES = ("coloured", "modulated", "babble", "impulsive", "hum")
N_SENTENCES = 2  # in a recording of about 6 seconds
N_SPEAKERS = 6  # in babble noise
LEVEL_DB = -26.0  # dBFS, power of speech and noise files
SPEECH_LEVEL_DB = (-34.0, -24.0)  # dBFS, in mixtures
PEAK = 0.9  # largest sample
ROOM_GAIN_DB = 6.0  # attenuation of room files, to stay below full scale


@dataclass(frozen=True)
class SyntheticConfig:
    """How much to make; the defaults give 24, 4 and 4 minutes of speech."""

    n_train: int = 240  # recordings of speech, about 6 s each
    n_held_out: int = 40  # the same in each of dev and test, and the number of mixtures
    n_noises: int = 8  # recordings of each kind of noise, for training
    n_noises_held_out: int = 3  # the same in each of dev and test
    noise_s: float = 12.0  # s, of each
    n_rooms: int = 20  # for training
    n_rooms_held_out: int = 4  # in each of dev and test
    rt60_s: tuple[float, float] = (0.15, 0.5)  # s, reverberation times: low, high
    snr_db: tuple[float, float] = (-5.0, 15.0)  # dB, of the mixtures: low, high
    sample_rate: int = 16000  # Hz
    seed: int = 0
    jobs: int = elsewhere(0)  # processes; 0: one per processor

    def __post_init__(self) -> None:
        counts = [field.name for field in dataclasses.fields(self) if field.name.startswith("n_")]
        check_ranges(
            self,
            **dict.fromkeys(counts, (1, math.inf)),
            noise_s=(1, math.inf),
            snr_db=(-math.inf, math.inf),
            rt60_s=(0.1, 0.8),  # longer ones need much memory
            sample_rate=(8000, 48000),
        )


SMOKE = SyntheticConfig(10, 5, 1, 1, 4.0, 2, 1)  # made in seconds


@dataclass(frozen=True)
class Recipe:
    """An item and how its files are made.

    `make(folder, *arguments)` returns the 16-bit samples (T,) of its file, then of its sources.
    """

    item: Item  # without length and hash
    # its repr has an address
    make: Callable[..., tuple[np.ndarray, ...]] = dataclasses.field(repr=False)
    arguments: tuple[Any, ...]
    key: str  # of the corpus, so that files of other versions are not reused


def _refuse_other_versions(job: Preparation) -> None:
    known = manifest.about(job.target)
    if known.get("key") == key(job.config):
        return
    there = {"generator": known.get("generator"), **known.get("versions", {})}
    here = {"generator": GENERATOR, **_versions()}
    what = ", ".join(
        f"{k} {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) != v
    )
    raise UserError(
        f"{job.target} was made by other versions ({what}): name another folder or remove it"
    )


@preparing.alone(CORPUS, when_ready=_refuse_other_versions)
def prepare(job: Preparation) -> None:
    """Make the corpus in `target`, or resume an interrupted preparation.

    UserError if the folder holds anything else, as a corpus of other options or versions, or if
    the extra `synth` is not installed.
    """
    target, tell = job.target, job.tell
    config, wanted = dataclasses.replace(job.config, jobs=0), key(job.config)  # no jobs in a recipe
    recordings, babble, mixtures = (
        {split: of_split(config, split, wanted) for split in manifest.SPLITS}
        for of_split in (_recordings, _babbles, _mixtures)
    )
    splits: dict[str, list[Item]] = {split: [] for split in manifest.SPLITS}
    # files made of other files come last; they take less time than the start of a process
    for what, recipes, n in (
        ("speech, rooms and noise", recordings, 0),
        ("babble", babble, 1),
        ("mixtures of dev and test", mixtures, 1),
    ):
        tell(f"{what}:")
        made = job.items(recipes, partial(_cook, target), jobs=n)
        for split, items in made.items():
            splits[split] += items
    job.finish(
        splits,
        "report this: the generator makes disjoint splits",
        key=wanted,
        generator=GENERATOR,
        versions=_versions(),
        resampler={"name": "soxr", "version": _versions()["soxr"], "quality": "VHQ, float64"},
    )
    minutes = sum(item.seconds for item in splits["train"] if item.kind == "speech") / 60
    tell(f"{target}: {minutes:.0f} minutes of speech to train on, {config.n_held_out} test pairs")


def key(config: SyntheticConfig) -> str:
    """SHA-256 of all that changes the bytes: options, generator, versions of packages.

    UserError if the extra `synth` is not installed.
    """
    missing = [module for module in EXTRA if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"the synthetic corpus needs {' and '.join(missing)}, which is not installed; "
            "run `pip install -e '.[synth]'` in the repository"
        )
    options = {name: value for name, value in to_dict(config).items() if name != "jobs"}
    parts = {"options": options, "generator": GENERATOR, "versions": _versions()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in PACKAGES}


def _cook(target: Path, recipe: Recipe) -> Item:
    """Write the files of an item atomically; returns it with length and hash."""
    item = recipe.item
    made = recipe.make(target, *recipe.arguments)
    for path, steps in zip((item.path, *item.sources), made, strict=True):
        samples = torch.from_numpy(steps / 2**15).float()[None]  # (1, T); exact
        files.save(target / path, samples, item.sample_rate)
    digest = sha256(target / item.path)
    return dataclasses.replace(item, n_frames=len(made[0]), sha256=digest)


def _random(config: SyntheticConfig, *words: object) -> np.random.Generator:
    """Random numbers that depend only on the seed and the words."""
    text = "/".join(map(str, (config.seed, *words)))
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))


def _recordings(config: SyntheticConfig, split: str, wanted: str) -> list[Recipe]:
    """Recordings made of no other files: speech, rooms, and noise except babble."""
    items = [(item, _speech, (said,)) for item, said in _talks(config, split)]
    for index in range(config.n_rooms if split == "train" else config.n_rooms_held_out):
        about = {"recordings": (f"{split} room {index}",), "gain_db": ROOM_GAIN_DB}
        item = _item(config, split, "room", f"room_{index:04d}", **about)
        items.append((item, _response, (split, index)))
    for kind in (kind for kind in NOISES if kind != "babble"):
        for index in range(_n_noises(config, split)):
            about = {"recordings": (f"{split} {kind} {index}",)}
            item = _item(config, split, "noise", f"noise_{kind}_{index:04d}", **about)
            items.append((item, _by_rule, (split, kind, index)))
    return [Recipe(item, make, (config, *rest), wanted) for item, make, rest in items]


def _n_noises(config: SyntheticConfig, split: str) -> int:
    return config.n_noises if split == "train" else config.n_noises_held_out


def _item(config: SyntheticConfig, split: str, kind: str, name: str, **more: Any) -> Item:
    name = f"{split}_{name}"
    folder = {"room": "rooms", "mixture": "noisy"}.get(kind, kind)
    return Item(name, kind, f"{split}/{folder}/{name}.wav", 0, config.sample_rate, **more)


def _talks(config: SyntheticConfig, split: str) -> list[tuple[Item, speech.Utterance]]:
    """Speakers take turns, with two sentences each; sentences repeat when all are used."""
    texts = speech.sentences(split)
    n_talks = config.n_train if split == "train" else config.n_held_out
    n_rounds = math.ceil(n_talks * N_SENTENCES / len(texts))
    deck = [n for r in range(n_rounds) for n in _random(config, split, r).permutation(len(texts))]
    talks = []
    for index in range(n_talks):
        numbers = deck[N_SENTENCES * index : N_SENTENCES * (index + 1)]
        random = _random(config, split, "speech", index)
        variant = speech.speaker(split, index)
        said = speech.Utterance(
            text=" ".join(texts[number] for number in numbers),
            voice=f"{random.choice(speech.ACCENTS)}+{variant}",
            words_per_minute=int(random.integers(135, 190)),
            pitch=int(random.integers(35, 66)),
            pitch_range=int(random.integers(35, 76)),
            seed=int(random.integers(2**31)),
        )
        about = {
            "speakers": (variant,),
            "recordings": tuple(dict.fromkeys(f"{split} sentence {n}" for n in numbers)),
            "text": said.text,
        }
        talks.append((_item(config, split, "speech", f"speech_{index:04d}", **about), said))
    return talks


def _babbles(config: SyntheticConfig, split: str, wanted: str) -> list[Recipe]:
    """Babble of the split's speech, without the sentences that it is mixed with."""
    talks = [item for item, _ in _talks(config, split)]
    mixed = talks[NOISES.index("babble") :: len(NOISES)] if split != "train" else []
    taboo = {recording for talk in mixed for recording in talk.recordings}
    talks = [talk for talk in talks if not taboo & set(talk.recordings)] or talks
    recipes = []
    for index in range(_n_noises(config, split)):
        random = _random(config, split, "talks", index)
        numbers = random.choice(len(talks), min(N_SPEAKERS, len(talks)), replace=False)
        chosen = [talks[number] for number in numbers]
        about = {
            "speakers": tuple(dict.fromkeys(s for talk in chosen for s in talk.speakers)),
            "recordings": tuple(dict.fromkeys(r for talk in chosen for r in talk.recordings)),
        }
        item = _item(config, split, "noise", f"noise_babble_{index:04d}", **about)
        paths = tuple(talk.path for talk in chosen)
        recipes.append(Recipe(item, _crowd, (config, split, index, paths), wanted))
    return recipes


def _mixtures(config: SyntheticConfig, split: str, wanted: str) -> list[Recipe]:
    """Mixtures of dev and test: each speech file once, noises by turns, SNRs evenly spread."""
    if split == "train":
        return []
    noise = [r.item for of in (_recordings, _babbles) for r in of(config, split, wanted)]
    talks = [item for item, _ in _talks(config, split)]
    recipes = []
    for index, talk in enumerate(talks):
        kind, turn = NOISES[index % len(NOISES)], index // len(NOISES)
        n_turns = len(range(index % len(NOISES), len(talks), len(NOISES)))
        random = _random(config, split, "mixture", index)
        place = _random(config, split, "snr", kind).permutation(n_turns)[turn] + random.random()
        low, high = config.snr_db
        snr_db = round(float(low + (high - low) * place / n_turns), 2)
        of_kind = [item for item in noise if f"_noise_{kind}_" in item.name]
        added = of_kind[random.integers(len(of_kind))]
        name = f"{index:04d}_{kind}"
        item = _item(
            config,
            split,
            "mixture",
            name,
            sources=(f"{split}/clean/{split}_{name}.wav",),
            speakers=talk.speakers,
            recordings=tuple(dict.fromkeys(talk.recordings + added.recordings)),
            snr_db=snr_db,
            text=talk.text,
        )
        arguments = (config, split, index, talk.path, added.path, snr_db)
        recipes.append(Recipe(item, _mixed, arguments, wanted))
    return recipes


def _speech(_: Path, config: SyntheticConfig, said: speech.Utterance) -> tuple[np.ndarray]:
    return (_steps(_at_level(speech.say(said, config.sample_rate))),)


def _response(_: Path, config: SyntheticConfig, split: str, index: int) -> tuple[np.ndarray]:
    random = _random(config, split, "room", index)
    _, samples = rooms.drawn_response(random, config.rt60_s, config.sample_rate)
    return (_steps(samples * 10 ** (-ROOM_GAIN_DB / 20)),)


def _by_rule(
    _: Path, config: SyntheticConfig, split: str, kind: str, index: int
) -> tuple[np.ndarray]:
    colours = list(noises.SLOPES.values())
    rule = {
        "coloured": partial(noises.coloured, slope=colours[index % len(colours)]),
        "modulated": noises.modulated,
        "impulsive": noises.impulsive,
        "hum": noises.hum,
    }[kind]
    n_frames = round(config.noise_s * config.sample_rate)
    samples = rule(_random(config, split, kind, index), n_frames, config.sample_rate)
    return (_steps(_at_level(samples)),)


def _crowd(
    folder: Path, config: SyntheticConfig, split: str, index: int, paths: Sequence[str]
) -> tuple[np.ndarray]:
    talks = [_read(folder / path) for path in paths]
    n_frames = round(config.noise_s * config.sample_rate)
    samples = noises.babble(_random(config, split, "babble", index), talks, n_frames)
    return (_steps(_at_level(samples)),)


def _mixed(
    folder: Path,
    config: SyntheticConfig,
    split: str,
    index: int,
    talk: str,
    noise: str,
    snr_db: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy and clean; the SNR is over the whole file."""
    random = _random(config, split, "mix", index)
    clean, added = _read(folder / talk), _read(folder / noise)
    start = random.integers(max(1, len(added) - len(clean)))
    added = np.resize(added[start:], len(clean))
    clean = clean * 10 ** (random.uniform(*SPEECH_LEVEL_DB) / 20) / noises.rms(clean)
    added = added * noises.rms(clean) / noises.rms(added) * 10 ** (-snr_db / 20)
    quieter = min(1.0, PEAK / np.abs(clean + added).max())
    clean, added = _steps(clean * quieter), _steps(added * quieter)
    return clean + added, clean  # rounded: their difference is exactly the noise


def _at_level(samples: np.ndarray) -> np.ndarray:
    """Scale to LEVEL_DB, or lower if a sample would exceed PEAK."""
    samples = samples * (10 ** (LEVEL_DB / 20) / noises.rms(samples))
    return samples * min(1.0, PEAK / np.abs(samples).max())


def _steps(samples: np.ndarray) -> np.ndarray:
    """Round to 16 bits: integers as float64, from samples of full scale 1."""
    return np.rint(samples * 2**15)


def _read(path: Path) -> np.ndarray:
    return files.load(path)[0][0].double().numpy()
