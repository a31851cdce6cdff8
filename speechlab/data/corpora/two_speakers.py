"""Mixtures of two speakers, made from the speech and noise of another prepared corpus.

    source: speech, noise ─ at 8 kHz ─► train, dev, test     same splits, speakers, names
            rooms of two places each ─►                      simulated, if noisy
                       dev, test ─► mixtures in mix/, s1/, s2/

`two_speakers` is the sum of both, as WSJ0-2mix. `two_speakers_noisy` has both in one room, and
noise, as the data of U-Mamba-Net (arXiv 2412.18217). Mixtures are drawn from their own split, as
`data.mixing` draws training examples. Files have 16 bits.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from speechlab.audio import files
from speechlab.config import check_ranges
from speechlab.data import digests, manifest
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.corpora.prepare import Preparation, elsewhere
from speechlab.data.manifest import SPLITS, Item
from speechlab.data.mixing import MixtureConfig, Mixtures, generator
from speechlab.data.recordings import Source
from speechlab.data.synthesis import rooms
from speechlab.errors import UserError
from speechlab.progress import Tell
from speechlab.storage.atomic import sha256

CORPUS, NOISY = CORPORA["two_speakers"], CORPORA["two_speakers_noisy"]
FOLDERS = ("mix", "s1", "s2")
ROOM_GAIN_DB = 6.0  # attenuation of room files, to stay below full scale
ROOMS = 2  # stream of random numbers; mixtures have 0


@dataclass(frozen=True)
class TwoSpeakersConfig:
    sample_rate: int = 8000  # Hz
    n_mixtures: int = 40  # in each of dev and test
    mixture_s: float = 4.0  # s, of each
    source_level_db: tuple[float, float] = (-2.5, 2.5)  # dB, see MixtureConfig
    seed: int = 0
    source: str = elsewhere("data/synthetic")  # a prepared corpus with speech
    jobs: int = elsewhere(0)  # processes; 0: one per processor

    def __post_init__(self) -> None:
        check_ranges(
            self,
            mixture_s=(0.1, 3600),
            n_mixtures=(1, 10**6),
            sample_rate=(8000, 48000),
            seed=(0, 2**32 - 1),
        )
        recipe(self)  # checks the rest


@dataclass(frozen=True)
class NoisyTwoSpeakersConfig(TwoSpeakersConfig):
    """The same in a room and with noise."""

    snr_db: tuple[float, float] = (0.0, 15.0)  # dB, both speakers to noise
    n_rooms: int = 20  # for training
    n_rooms_held_out: int = 4  # in each of dev and test
    rt60_s: tuple[float, float] = (0.15, 0.5)  # s, reverberation times
    # of s1, s2: 50 ms of the room response, or all
    reference: Literal["early", "reverberant"] = "early"

    def __post_init__(self) -> None:
        super().__post_init__()
        n_rooms = (1, math.inf)
        check_ranges(self, n_rooms=n_rooms, n_rooms_held_out=n_rooms, rt60_s=(0.1, 0.8))


def recipe(config: TwoSpeakersConfig) -> MixtureConfig:
    """Settings of mixtures of dev and test; a training starts from them."""
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
    """A file to make: a converted recording, or the response of a place in a room."""

    item: Item  # without length and hash
    file: str  # empty for a room
    room: tuple[str, int, int] = ("", 0, 0)  # split, room, place


def _refuse_other_source(job: Preparation) -> None:
    source = Path(job.config.source).expanduser()
    known = manifest.about(job.target).get("made_from")
    if source.exists() and manifest.data_hash(source) != known:
        raise UserError(f"{job.target} was made from another {source}: name another folder")


@preparing.alone(CORPUS, NOISY, when_ready=_refuse_other_source)
def prepare(job: Preparation) -> None:
    """Convert the recordings of the source and mix them. UserError for too few speakers."""
    target, config, tell = job.target, job.config, job.tell
    source = Path(config.source).expanduser()
    made_from = manifest.data_hash(source)
    digests.check(source, [i for split in SPLITS for i in manifest.parse(source / f"{split}.csv")])
    tasks = {split: _tasks(split, source, config) for split in SPLITS}
    splits = job.items(tasks, partial(_make, target=target, config=config), _sources)
    for split in ("dev", "test"):
        splits[split] += _mixtures(target, split, splits[split], config, tell)
    job.finish(splits, "prepare the source again", made_from=made_from)
    minutes = sum(item.seconds for item in splits["train"] if item.kind == "speech") / 60
    tell(f"{target}: {minutes:.0f} minutes of speech to train on")


def _tasks(split: str, source: Path, config: TwoSpeakersConfig) -> list[_Task]:
    """Speech of one named speaker each; for the noisy corpus also noise and rooms."""
    items = manifest.parse(source / f"{split}.csv")
    kept = [item for item in items if item.kind == "speech" and len(item.speakers) == 1]
    if split != "test" and len({item.speakers for item in kept}) < 2:
        raise UserError(f"{source}: needs speech of two or more named speakers in {split}")
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
    """Two places in each room."""
    for number in range(config.n_rooms if split == "train" else config.n_rooms_held_out):
        for place in range(2):
            name = f"{split}_room_{number:04d}_{place + 1}"
            about = {"recordings": (f"{split} room {number}",), "gain_db": ROOM_GAIN_DB}
            item = Item(name, "room", f"{split}/rooms/{name}.wav", 0, config.sample_rate, **about)
            yield _Task(item, "", (split, number, place))


def _sources(task: _Task) -> list[Path]:
    return [Path(task.file)] if task.file else []


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
    """Mixtures of the recordings of a split."""
    speech, noise, places = (
        [Source(target, item) for item in items if item.kind == kind]
        for kind in ("speech", "noise", "room")
    )
    if len({source.item.speakers for source in speech}) < 2:
        tell(f"{split}: no speech of two speakers in the source; no mixtures are made")
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
            preparing.mixture(
                target,
                paths,
                name=name,
                speakers=tuple(item.speakers[0] for item in of[:2]),
                recordings=tuple(dict.fromkeys(key for item in of for key in item.recordings)),
                snr_db=round(mixture.snr_db, 2) if noise else None,
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
