"""The embedded default corpus: synthetic speech, noise and rooms, made anywhere from a seed.

Every split has folders `speech`, `noise` and `rooms` of single recordings; `dev` and `test` also
have ready mixtures in `noisy` and `clean` (same names), which `speechlab evaluate FOLDER/test`
understands. A file is a function of (options, seed, split, kind, index) alone: the same bytes in
whatever order and process it is made. Arithmetic is float64 and ends in 16 bits, so that the last
bits, in which processors differ, do not reach the files: the default corpus is the same bytes with
and without a processor's AVX and FMA. Other versions of `PACKAGES`, and builds of them for another
system, may give other files; `corpus.json` tells that by its `key` and `data_hash`.
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
from speechlab.config import to_dict
from speechlab.data import manifest
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.corpora.corpus import Tell
from speechlab.data.corpora.prepare import elsewhere
from speechlab.data.manifest import Item
from speechlab.data.synthesis import noise as noises
from speechlab.data.synthesis import rooms, speech
from speechlab.errors import UserError
from speechlab.storage.atomic import sha256

CORPUS = CORPORA["synthetic"]
GENERATOR = 1  # one more with every change that changes a file
PACKAGES = ("espeakng-loader", "numpy", "pyroomacoustics", "soxr")  # they decide the bytes, too
EXTRA = ("espeakng_loader", "pyroomacoustics")  # modules that the extra `synth` brings

NOISES = ("coloured", "modulated", "babble", "impulsive", "hum")
N_SENTENCES = 2  # in a recording: about 6 seconds
N_SPEAKERS = 6  # in a babble
LEVEL_DB = -26.0  # of speech and noise files: power over the file, full scale at 0
SPEECH_LEVEL_DB = (-34.0, -24.0)  # in ready mixtures
PEAK = 0.9  # no sample is louder
ROOM_GAIN_DB = 6.0  # what room files were turned down by, to stay under full scale


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise UserError(f"SyntheticConfig.{name} is {value}; it has to be {wanted}")


@dataclass(frozen=True)
class SyntheticConfig:
    """How much to make; the defaults give 24, 4 and 4 minutes of speech."""

    n_train: int = 240  # recordings of speech, about 6 s each
    n_held_out: int = 40  # the same in each of dev and test, and as many ready mixtures
    n_noises: int = 8  # recordings of each kind of noise, for training
    n_noises_held_out: int = 3  # the same in each of dev and test
    noise_s: float = 12.0  # s, of each
    n_rooms: int = 20  # for training
    n_rooms_held_out: int = 4  # in each of dev and test
    rt60_s: tuple[float, float] = (0.15, 0.5)  # s, reverberation times of the rooms: from, to
    snr_db: tuple[float, float] = (-5.0, 15.0)  # dB, of the ready mixtures: from, to
    sample_rate: int = 16000  # Hz
    seed: int = 0
    jobs: int = elsewhere(0)  # processes; 0: one per processor

    def __post_init__(self) -> None:
        for name, value in to_dict(self).items():
            _check(not name.startswith("n_") or value >= 1, name, value, "1 or more")
            _check(not isinstance(value, list) or value[0] <= value[1], name, value, "(low, high)")
        _check(self.noise_s >= 1, "noise_s", self.noise_s, "1 or more")
        within = self.rt60_s[0] >= 0.1 and self.rt60_s[1] <= 0.8  # longer ones need much memory
        _check(within, "rt60_s", self.rt60_s, "0.1 to 0.8")
        within = 8000 <= self.sample_rate <= 48000
        _check(within, "sample_rate", self.sample_rate, "8000 to 48000")


SMOKE = SyntheticConfig(10, 5, 1, 1, 4.0, 2, 1)  # made in seconds


@dataclass(frozen=True)
class Recipe:
    """An item and how its files are made.

    `make(folder, *arguments)` gives the whole 16-bit steps (T,) of its file, then of its sources.
    """

    item: Item  # its length and hash still open
    make: Callable[..., tuple[np.ndarray, ...]] = dataclasses.field(repr=False)  # it has an address
    arguments: tuple[Any, ...]
    key: str  # of the corpus; so that nothing made by other versions is taken for this


@preparing.alone
def prepare(target: Path, config: SyntheticConfig, tell: Tell) -> None:
    """Make the corpus in `target`; nothing where it is there, the rest where that was interrupted.

    UserError where the folder holds anything else, a corpus of other options or versions included,
    or the extra `synth` is not installed.
    """
    wanted = key(config)
    jobs, config = config.jobs, dataclasses.replace(config, jobs=0)  # in no recipe
    if preparing.is_ready(target, CORPUS, config):
        _refuse_other_versions(target, wanted)
        return tell(f"{target} is prepared already")
    recordings, babble, mixtures = (
        {split: of_split(config, split, wanted) for split in manifest.SPLITS}
        for of_split in (_recordings, _babbles, _mixtures)
    )
    splits: dict[str, list[Item]] = {split: [] for split in manifest.SPLITS}
    # what is made of other files comes after them, and quicker than another process starts
    for what, recipes, n in (
        ("speech, rooms and noise", recordings, jobs),
        ("babble", babble, 1),
        ("mixtures of dev and test", mixtures, 1),
    ):
        tell(f"{what}:")
        options = dataclasses.replace(config, jobs=n)
        make = partial(_cook, target)
        made = preparing.items(target, CORPUS, options, recipes, make, tell)
        for split, items in made.items():
            splits[split] += items
    preparing.finish(
        target,
        CORPUS,
        config,
        splits,
        "report this: the generator parts its splits itself",
        key=wanted,
        generator=GENERATOR,
        versions=_versions(),
        resampler={"name": "soxr", "version": _versions()["soxr"], "quality": "VHQ, float64"},
    )
    minutes = sum(item.seconds for item in splits["train"] if item.kind == "speech") / 60
    tell(f"{target}: {minutes:.0f} minutes of speech to train on, {config.n_held_out} test pairs")


def key(config: SyntheticConfig) -> str:
    """SHA-256 of all that decides the bytes: options, this generator, and the packages it calls.

    UserError where the extra `synth` is not installed.
    """
    missing = [module for module in EXTRA if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"the synthetic corpus needs {' and '.join(missing)}, which is not installed; "
            "run `pip install 'speechlab[synth]'`"
        )
    options = {name: value for name, value in to_dict(config).items() if name != "jobs"}
    parts = {"options": options, "generator": GENERATOR, "versions": _versions()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in PACKAGES}


def _refuse_other_versions(target: Path, wanted: str) -> None:
    known = manifest.about(target)
    if known.get("key") == wanted:
        return
    there = {"generator": known.get("generator"), **known.get("versions", {})}
    here = {"generator": GENERATOR, **_versions()}
    what = ", ".join(
        f"{k} {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) != v
    )
    raise UserError(
        f"{target} was made by other versions ({what}): name another folder or remove it"
    )


def _cook(target: Path, recipe: Recipe) -> Item:
    """Make an item's files, whole or not at all, and tell what they are."""
    item = recipe.item
    made = recipe.make(target, *recipe.arguments)
    for path, steps in zip((item.path, *item.sources), made, strict=True):
        samples = torch.from_numpy(steps / 2**15).float()[None]  # (1, T); exact
        files.save(target / path, samples, item.sample_rate)
    digest = sha256(target / item.path)
    return dataclasses.replace(item, n_frames=len(made[0]), sha256=digest)


def _random(config: SyntheticConfig, *words: object) -> np.random.Generator:
    """Random numbers that depend on the seed and the words alone."""
    text = "/".join(map(str, (config.seed, *words)))
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))


def _recordings(config: SyntheticConfig, split: str, wanted: str) -> list[Recipe]:
    """What is made of nothing else: speech, rooms, and noise but for babble."""
    train = split == "train"
    n_rooms = config.n_rooms if train else config.n_rooms_held_out
    kinds = [kind for kind in NOISES if kind != "babble"]
    items = [
        *((item, _speech, (said,)) for item, said in _talks(config, split)),
        *(_room(config, split, index) for index in range(n_rooms)),
        *(
            _noise(config, split, kind, i)
            for kind in kinds
            for i in range(_n_noises(config, split))
        ),
    ]
    return [Recipe(item, make, (config, *rest), wanted) for item, make, rest in items]


def _n_noises(config: SyntheticConfig, split: str) -> int:
    return config.n_noises if split == "train" else config.n_noises_held_out


def _item(config: SyntheticConfig, split: str, kind: str, name: str, **more: Any) -> Item:
    name = f"{split}_{name}"
    folder = "rooms" if kind == "room" else kind
    return Item(name, kind, f"{split}/{folder}/{name}.wav", 0, config.sample_rate, **more)


def _talks(config: SyntheticConfig, split: str) -> list[tuple[Item, speech.Utterance]]:
    """Speakers by turns, two sentences each; sentences come again when all have been said."""
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


def _room(config: SyntheticConfig, split: str, index: int) -> tuple[Item, Callable, tuple]:
    about = {"recordings": (f"{split} room {index}",), "gain_db": ROOM_GAIN_DB}
    return _item(config, split, "room", f"room_{index:04d}", **about), _response, (split, index)


def _noise(
    config: SyntheticConfig, split: str, kind: str, index: int
) -> tuple[Item, Callable, tuple]:
    about = {"recordings": (f"{split} {kind} {index}",)}
    item = _item(config, split, "noise", f"noise_{kind}_{index:04d}", **about)
    return item, _by_rule, (split, kind, index)


def _babbles(config: SyntheticConfig, split: str, wanted: str) -> list[Recipe]:
    """Noise that is made of the split's speech, but for the sentences that it is mixed with."""
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
    """Of dev and test: each talk once in noise, kinds by turns, SNRs spread evenly in each kind."""
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
        name = f"{split}_{index:04d}_{kind}"
        item = Item(
            name,
            "mixture",
            f"{split}/noisy/{name}.wav",
            0,
            config.sample_rate,
            sources=(f"{split}/clean/{name}.wav",),
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
    return (
        _steps(_at_level(noises.babble(_random(config, split, "babble", index), talks, n_frames))),
    )


def _mixed(
    folder: Path,
    config: SyntheticConfig,
    split: str,
    index: int,
    talk: str,
    noise: str,
    snr_db: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy and clean; the SNR is that of the powers over the whole file."""
    random = _random(config, split, "mix", index)
    clean, added = _read(folder / talk), _read(folder / noise)
    start = random.integers(max(1, len(added) - len(clean)))
    added = np.resize(added[start:], len(clean))
    clean = clean * 10 ** (random.uniform(*SPEECH_LEVEL_DB) / 20) / noises.rms(clean)
    added = added * noises.rms(clean) / noises.rms(added) * 10 ** (-snr_db / 20)
    quieter = min(1.0, PEAK / np.abs(clean + added).max())
    clean, added = _steps(clean * quieter), _steps(added * quieter)
    return clean + added, clean  # in whole steps: their difference is the noise, exactly


def _at_level(samples: np.ndarray) -> np.ndarray:
    """At LEVEL_DB, or less where its peak would be over PEAK."""
    samples = samples * (10 ** (LEVEL_DB / 20) / noises.rms(samples))
    return samples * min(1.0, PEAK / np.abs(samples).max())


def _steps(samples: np.ndarray) -> np.ndarray:
    """Full scale 1 -> whole steps of 16 bits, as float64."""
    return np.rint(samples * 2**15)


def _read(path: Path) -> np.ndarray:
    return files.load(path)[0][0].double().numpy()
