"""A user's own recordings: noisy and clean pairs, or speech and noise to be mixed.

If `raw` has train/ and dev/ (and test/), these are the splits; a speaker or recording in two of
them is an error. Otherwise some speakers, chosen by a hash of their names, are held out for dev,
and there is no test set. Speech and noise of dev (and test) are mixed, for the selection of a
model; pairs stay as they are.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from speechlab.audio import files as audio
from speechlab.config import check_ranges
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.corpora.prepare import Preparation, elsewhere
from speechlab.data.manifest import SPLITS, Item
from speechlab.data.mixing import MixtureConfig, Mixtures
from speechlab.data.recordings import Source
from speechlab.errors import UserError
from speechlab.progress import Tell
from speechlab.storage.atomic import sha256

CORPUS = CORPORA["folder"]
KINDS = ("noisy", "clean", "speech", "noise")  # folders that hold sound files


@dataclass(frozen=True)
class FolderConfig:
    sample_rate: int = 16000  # Hz of the prepared files; channels are averaged
    speakers: Literal["prefix", "folder", "none"] = "prefix"
    # the speaker's name: the file name up to the first _ or -, the name of the folder, or none
    dev_percent: float = 10.0  # of the speakers and of the noise files, if raw has no dev/
    n_mixtures: int = 40  # of speech and noise, in each of dev and test
    mixture_s: float = 6.0  # s, longest mixture
    snr_db: tuple[float, float] = (-5.0, 15.0)  # dB, of these mixtures: from, to
    seed: int = 0  # of these mixtures
    raw: str = elsewhere()  # the recordings
    jobs: int = elsewhere(0)  # processes; 0: one per processor

    def __post_init__(self) -> None:
        check_ranges(
            self,
            n_mixtures=(0, math.inf),
            mixture_s=(0.1, 3600),
            snr_db=(-200, 200),
            seed=(0, 2**32 - 1),
        )
        if not 0 < self.dev_percent < 100:
            raise UserError(
                f"FolderConfig.dev_percent is {self.dev_percent}; it must be in 0 to 100"
            )


@dataclass(frozen=True)
class Recording:
    """A sound file of speech or noise, or a pair."""

    name: str  # relative path without the suffix
    kind: str  # "mixture" (a pair), "speech" or "noise"
    files: tuple[Path, ...]  # noisy and clean for a pair
    content: str  # digest of the (clean) file: copies are one recording
    speaker: str  # empty for noise and for unknown speakers

    @property
    def group(self) -> str:
        """The unit of splitting: recordings of one group go to one split."""
        return self.speaker or self.content


@preparing.alone(CORPUS)
def prepare(job: Preparation) -> None:
    """Split and convert the recordings. UserError describes the layout of `raw`."""
    target, config, tell = job.target, job.config, job.tell
    raw = Path(config.raw).expanduser()
    given = [split for split in SPLITS if (raw / split).is_dir()]
    if not config.raw or not ({"train", "dev"} <= set(given) or _kinds(raw)):
        raise UserError(f"folder: {raw} holds no recordings; name as raw a folder with {_LAYOUT}")
    if given:
        splits = {split: _recordings(raw / split, config) for split in given}
    else:
        splits = split(_recordings(raw, config), config.dev_percent, raw)
    if config.speakers == "none":
        tell("speakers are not known: the same voice may be in train and in dev")
    remedy = f"move or remove one of them, or look at the setting speakers ({config.speakers})"
    planned = {name: [_item(name, r, config) for r in found] for name, found in splits.items()}
    preparing.check(target, planned, remedy)  # before the conversion
    tasks = {
        name: list(zip(planned[name], [r.files for r in found], strict=True))
        for name, found in splits.items()
    }
    items = job.items(tasks, partial(_make, target=target))
    for name in items.keys() & {"dev", "test"}:
        items[name] += _mixtures(target, name, items[name], config, tell)
    job.finish(items, remedy, given_splits=given)
    for name, found in items.items():
        minutes = sum(item.seconds for item in found) / 60
        tell(f"{name}: {len(found)} recordings, {minutes:.1f} minutes")


def split(recordings: list[Recording], dev_percent: float, raw: Path) -> dict[str, list[Recording]]:
    """Hold some speakers and noise files out for dev. UserError if there is only one."""
    held: set[str] = set()
    groups_of: dict[str, set[str]] = {}
    for recording in recordings:
        groups_of.setdefault(recording.kind, set()).add(recording.group)
    for kind, groups in groups_of.items():
        if len(groups) < 2:
            what = "recording" if kind == "noise" else "speaker"
            raise UserError(
                f"{raw}: only one {what} of {kind} is known by the names, none can be held out; "
                "add others, lay out train/ and dev/ yourself, or set speakers=none or folder"
            )
        held |= preparing.held_out(groups, dev_percent)  # the same for pairs and speech
    for kind, groups in groups_of.items():
        if groups <= held:
            raise UserError(
                f"{raw}: all speakers of {kind} are held out for dev, as some talk in other files "
                "too; lay out train/ and dev/ yourself"
            )
    splits: dict[str, list[Recording]] = {"train": [], "dev": []}
    for recording in recordings:
        splits["dev" if recording.group in held else "train"].append(recording)
    return splits


def _kinds(folder: Path) -> list[str]:
    return [kind for kind in KINDS if (folder / kind).is_dir()]


def _recordings(folder: Path, config: FolderConfig) -> list[Recording]:
    """Recordings in noisy/ and clean/, speech/ and noise/. UserError for a file without partner."""
    kinds = _kinds(folder)
    if not kinds or ("noisy" in kinds) != ("clean" in kinds):
        raise UserError(f"folder: {folder} has {' and '.join(kinds) or 'none'} of {_LAYOUT}")
    files = {kind: preparing.sounds(folder / kind) for kind in kinds}
    empty = [kind for kind in kinds if not files[kind]]
    if empty:
        raise UserError(f"{folder}: no sound files in {', '.join(empty)}; add some or remove it")
    strange = [name for found in files.values() for name in found if ";" in name]
    if strange:
        raise UserError(f"{folder}: a name holds a semicolon: {strange[0]}; rename the file")
    found = _pairs(folder, files, config) if "noisy" in kinds else []
    for kind in ("speech", "noise"):
        for name, path in files.get(kind, {}).items():
            speaker = _speaker(name, config, path) if kind == "speech" else ""
            found.append(Recording(name, kind, (path,), sha256(path), speaker))
    return found


def _pairs(
    folder: Path, files: Mapping[str, Mapping[str, Path]], config: FolderConfig
) -> list[Recording]:
    noisy, clean = files["noisy"], files["clean"]
    alone = sorted(noisy.keys() ^ clean.keys())
    if alone:
        raise UserError(
            f"{folder}: {len(alone)} file(s) are in one of noisy/ and clean/ only: "
            f"{preparing.some(alone)}; add the partners or remove these files"
        )
    found = []
    for name, path in noisy.items():
        other = clean[name]
        speaker = _speaker(name, config, other)
        found.append(Recording(name, "mixture", (path, other), sha256(other), speaker))
    return found


def _speaker(name: str, config: FolderConfig, path: Path) -> str:
    if config.speakers == "none":
        return ""
    if config.speakers == "folder":
        folder, _, rest = name.partition("/")
        if not rest:
            raise UserError(
                f"{path} is not in a speaker's folder; make one folder per speaker, or set "
                "speakers=prefix or none"
            )
        return folder
    return name.rpartition("/")[2].replace("-", "_").partition("_")[0]


def _item(split: str, recording: Recording, config: FolderConfig) -> Item:
    """The manifest line of a recording, without length and hash."""
    kinds = ("noisy", "clean") if recording.kind == "mixture" else (recording.kind,)
    paths = [f"{split}/{kind}/{recording.name}.wav" for kind in kinds]
    return Item(
        name=paths[0].removesuffix(".wav"),
        kind=recording.kind,
        path=paths[0],
        n_frames=0,
        sample_rate=config.sample_rate,
        sources=tuple(paths[1:]),
        speakers=(recording.speaker,) if recording.speaker else (),
        recordings=(recording.content,),
    )


def _make(task: tuple[Item, tuple[Path, ...]], target: Path) -> Item:
    item, files = task
    paths = [target / path for path in (item.path, *item.sources)]
    n_frames = preparing.convert_all(files, paths, item.sample_rate)
    return replace(item, n_frames=n_frames, sha256=sha256(paths[0]))


def _mixtures(
    target: Path, split: str, items: Sequence[Item], config: FolderConfig, tell: Tell
) -> list[Item]:
    """Mix the speech and noise of a split; recordings take turns in a fixed order."""
    speech, noise = (
        [Source(target, item) for item in items if item.kind == kind]
        for kind in ("speech", "noise")
    )
    if not speech or not noise or not config.n_mixtures:
        if speech and config.n_mixtures:
            tell(f"{split}: no noise to mix its speech with; no mixtures are made")
        return []
    by_name = {source.item.name: source.item for source in speech + noise}
    speech.sort(key=lambda source: hashlib.sha256(source.item.name.encode()).digest())
    made = []
    for index in range(config.n_mixtures):
        voice = speech[index % len(speech)]
        recipe = MixtureConfig(
            segment_s=min(config.mixture_s, voice.item.seconds),
            sample_rate=config.sample_rate,
            snr_db=config.snr_db,
        )
        try:
            mixture = Mixtures([voice], noise, [], recipe, 1).mixture(config.seed, 0, index)
        except UserError as error:
            reason = str(error).partition(";")[0]  # without its advice, which is for training
            raise UserError(f"{reason}; take it out of raw, or set n_mixtures=0") from error
        name = f"mixed_{index:04d}"
        paths = [f"{split}/{kind}/{name}.wav" for kind in ("noisy", "clean")]
        # rounded to 16 bits, so that their difference is exactly the noise
        clean, added = (torch.round(x * 2**15) / 2**15 for x in (mixture.clean, mixture.noise))
        for path, waveform in zip(paths, (clean + added, clean), strict=True):
            audio.save(target / path, waveform, config.sample_rate, "PCM_16")
        of = [by_name[name] for name in mixture.recordings]
        made.append(
            preparing.mixture(
                target,
                paths,
                name=paths[0].removesuffix(".wav"),
                speakers=voice.item.speakers,
                recordings=tuple(dict.fromkeys(key for item in of for key in item.recordings)),
                snr_db=round(mixture.snr_db, 2),
            )
        )
    tell(f"{split}: {len(made)} mixtures made of its speech and noise")
    return made


_LAYOUT = "noisy/ and clean/ (the same names), or speech/ and noise/; or train/ and dev/ with these"
