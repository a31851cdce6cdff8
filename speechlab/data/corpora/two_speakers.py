"""Two speakers at once, made from another prepared corpus: its speech, and its noise where wanted.

    source: speech, noise ─ at 8 kHz ─► train, dev, test     splits, speakers and names stay
            rooms of two places each ─►                      simulated, in two_speakers_noisy
                       dev, test ─► ready mixtures in mix/, s1/, s2/

`two_speakers` is their sum, as WSJ0-2mix; `two_speakers_noisy` has both in one room and noise, as
U-Mamba-Net's data (arXiv 2412.18217). Ready mixtures are drawn as `data.mixing` draws
training examples, of their own split alone. Files are in whole steps of 16 bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from speechlab.audio import files
from speechlab.data import manifest
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.corpora.corpus import Tell
from speechlab.data.corpora.prepare import elsewhere
from speechlab.data.manifest import SPLITS, Item
from speechlab.data.mixing import MixtureConfig, Mixtures, generator
from speechlab.data.recordings import Source
from speechlab.data.synthesis import rooms
from speechlab.errors import UserError
from speechlab.storage.atomic import sha256

CORPUS, NOISY = CORPORA["two_speakers"], CORPORA["two_speakers_noisy"]
FOLDERS = ("mix", "s1", "s2")
ROOM_GAIN_DB = 6.0  # what room files were turned down by, to stay under full scale
ROOMS = 2  # their stream of random numbers; mixtures have 0


@dataclass(frozen=True)
class TwoSpeakersConfig:
    sample_rate: int = 8000  # Hz
    n_mixtures: int = 40  # ready ones, in each of dev and test
    mixture_s: float = 4.0  # s, of each
    source_level_db: tuple[float, float] = (-2.5, 2.5)  # dB, of the speakers: see MixtureConfig
    seed: int = 0
    source: str = elsewhere("data/synthetic")  # a prepared corpus that has speech
    jobs: int = elsewhere(0)  # processes; 0: one per processor

    def __post_init__(self) -> None:
        _check(0.1 <= self.mixture_s <= 3600, "mixture_s", "0.1 to 3600")
        _check(1 <= self.n_mixtures <= 10**6, "n_mixtures", "1 to 10**6")
        _check(8000 <= self.sample_rate <= 48000, "sample_rate", "8000 to 48000")
        _check(0 <= self.seed < 2**32, "seed", "0 or more, under 2**32")
        recipe(self)  # says what else cannot be


@dataclass(frozen=True)
class NoisyTwoSpeakersConfig(TwoSpeakersConfig):
    """The same with both speakers in a room, and noise."""

    snr_db: tuple[float, float] = (0.0, 15.0)  # dB of both speakers over the noise
    n_rooms: int = 20  # for training
    n_rooms_held_out: int = 4  # in each of dev and test
    rt60_s: tuple[float, float] = (0.15, 0.5)  # s, reverberation times
    reference: Literal["early", "reverberant"] = "early"  # s1, s2: 50 ms of the room, or all of it

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(min(self.n_rooms, self.n_rooms_held_out) >= 1, "n_rooms", "1 or more")
        low, high = self.rt60_s
        _check(0.1 <= low <= high <= 0.8, "rt60_s", "(low, high) in 0.1 to 0.8")


def _check(holds: bool, name: str, wanted: str) -> None:
    if not holds:
        raise UserError(f"two speakers: {name} must be {wanted}")


def recipe(config: TwoSpeakersConfig) -> MixtureConfig:
    """How a mixture is drawn, of dev and test, and in training as its base."""
    clean = MixtureConfig(
        segment_s=config.mixture_s,
        sample_rate=config.sample_rate,
        n_sources=2,
        source_level_db=config.source_level_db,
    )
    if not isinstance(config, NoisyTwoSpeakersConfig):
        return clean
    return replace(clean, snr_db=config.snr_db, p_room=1.0, reference=config.reference)


class _Task(NamedTuple):
    """A file to be made: from one of the source's, or a place in a room from nothing."""

    item: Item  # its length and hash still open
    file: str  # empty for a room
    room: tuple[str, int, int] = ("", 0, 0)  # split, number of the room, which place


@preparing.alone
def prepare(target: Path, config: TwoSpeakersConfig, tell: Tell) -> None:
    """Convert the source's recordings and mix. UserError where it has too few speakers."""
    source = Path(config.source).expanduser()
    corpus = NOISY if isinstance(config, NoisyTwoSpeakersConfig) else CORPUS
    is_ready = preparing.is_ready(target, corpus, config)
    made_from = "" if is_ready and not source.exists() else manifest.data_hash(source)
    if is_ready:
        if made_from not in ("", manifest.about(target).get("made_from")):
            raise UserError(f"{target} was made from another {source}: name another folder")
        return tell(f"{target} is prepared already")
    tasks = {split: _tasks(split, source, config) for split in SPLITS}
    make = partial(_make, target=target, config=config)
    splits = preparing.items(target, corpus, config, tasks, make, tell)
    for split in ("dev", "test"):
        splits[split] += _mixtures(target, split, splits[split], config, tell)
    preparing.finish(
        target, corpus, config, splits, "prepare the source again", made_from=made_from
    )
    minutes = sum(item.seconds for item in splits["train"] if item.kind == "speech") / 60
    tell(f"{target}: {minutes:.0f} minutes of speech to train on")


def _tasks(split: str, source: Path, config: TwoSpeakersConfig) -> list[_Task]:
    """Speech of one known speaker each; where it is to be noisy, noise and rooms, too."""
    items = manifest.parse(source / f"{split}.csv")
    kept = [item for item in items if item.kind == "speech" and len(item.speakers) == 1]
    if split != "test" and len({item.speakers for item in kept}) < 2:
        raise UserError(f"{source}: needs speech of two known speakers or more in {split}")
    noisy = isinstance(config, NoisyTwoSpeakersConfig)
    noise = [item for item in items if item.kind == "noise"] if noisy else []
    if noisy and not noise and (kept or split != "test"):
        raise UserError(
            f"{source}: has no noise in {split}; prepare two_speakers, which needs none"
        )
    converted = [
        _Task(replace(item, path=f"{split}/{item.kind}/{item.name}.wav"), str(source / item.path))
        for item in (*kept, *noise)
    ]
    return [*converted, *(_places(split, config) if noisy else ())]


def _places(split: str, config: NoisyTwoSpeakersConfig) -> Iterator[_Task]:
    """Two in each room."""
    for number in range(config.n_rooms if split == "train" else config.n_rooms_held_out):
        for place in range(2):
            name = f"{split}_room_{number:04d}_{place + 1}"
            item = Item(
                name,
                "room",
                f"{split}/rooms/{name}.wav",
                0,
                config.sample_rate,
                recordings=(f"{split} room {number}",),
                gain_db=ROOM_GAIN_DB,
            )
            yield _Task(item, "", (split, number, place))


def _make(task: _Task, target: Path, config: TwoSpeakersConfig) -> Item:
    item, path = task.item, target / task.item.path
    if task.file:
        length = preparing.convert(Path(task.file), path, config.sample_rate)
    else:
        split, number, place = task.room
        random = generator(config.seed, SPLITS.index(split), number, ROOMS)
        response = rooms.drawn_pair(random, config.rt60_s, config.sample_rate)[place]
        length = len(response)
        _save(path, torch.from_numpy(response * 10 ** (-ROOM_GAIN_DB / 20))[None], config)
    return replace(item, n_frames=length, sample_rate=config.sample_rate, sha256=sha256(path))


def _mixtures(
    target: Path, split: str, items: Sequence[Item], config: TwoSpeakersConfig, tell: Tell
) -> list[Item]:
    """Ready mixtures of a split's own recordings."""
    speech, noise, places = (
        [Source(target, item) for item in items if item.kind == kind]
        for kind in ("speech", "noise", "room")
    )
    if len({source.item.speakers for source in speech}) < 2:
        tell(f"{split}: no speech of two speakers in the source, so that it has no mixtures")
        return []
    by_name = {source.item.name: source.item for source in (*speech, *noise)}
    examples = Mixtures(speech, noise, places, recipe(config), config.n_mixtures)
    made = []
    for index in range(config.n_mixtures):
        mixture = examples.mixture(config.seed, SPLITS.index(split), index)
        name = f"{split}_{index:04d}"
        paths = [f"{split}/{kind}/{name}.wav" for kind in FOLDERS]
        clean = torch.round(mixture.clean * 2**15) / 2**15
        mix = mixture.noisy if noise else clean.sum(0, keepdim=True)
        for path, waveform in zip(paths, (mix, clean[:1], clean[1:]), strict=True):
            _save(target / path, waveform, config)
        of = [by_name[name] for name in mixture.recordings]
        made.append(
            Item(
                name=name,
                kind="mixture",
                path=paths[0],
                n_frames=clean.shape[-1],
                sample_rate=config.sample_rate,
                sources=tuple(paths[1:]),
                speakers=tuple(item.speakers[0] for item in of[:2]),
                recordings=tuple(dict.fromkeys(key for item in of for key in item.recordings)),
                snr_db=round(mixture.snr_db, 2) if noise else None,
                sha256=sha256(target / paths[0]),
            )
        )
    tell(f"{split}: {len(made)} mixtures of two speakers")
    return made


def _save(path: Path, waveform: torch.Tensor, config: TwoSpeakersConfig) -> None:
    files.save(path, waveform.float(), config.sample_rate, "PCM_16")


SMOKE = {  # made in seconds
    CORPUS.name: TwoSpeakersConfig(n_mixtures=4, mixture_s=2.0),
    NOISY.name: NoisyTwoSpeakersConfig(n_mixtures=4, mixture_s=2.0, n_rooms=2, n_rooms_held_out=1),
}
