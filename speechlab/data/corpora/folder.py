"""A user's own recordings: noisy and clean pairs, speech and noise to be mixed, noisy ones alone.

If `raw` has train/ and dev/ (and test/), these are the splits; a speaker or recording in two of
them is an error. Otherwise some speakers, chosen by a hash of their names, are held out for dev,
and there is no test set. All files are read before the first is converted. Speech and noise of dev
(and test) are mixed, for the selection of a model; pairs stay as they are.
"""

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from speechlab.audio import files as audio
from speechlab.audio.files import resampled_length
from speechlab.config import check_ranges
from speechlab.data import pairs, test_sets
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora import survey
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.corpora.prepare import Preparation, elsewhere
from speechlab.data.manifest import SPLITS, Item
from speechlab.data.mixing import MixtureConfig, Mixtures
from speechlab.data.recordings import Source
from speechlab.errors import UserError
from speechlab.progress import Tell
from speechlab.storage.atomic import sha256

CORPUS = CORPORA["folder"]
READER = re.compile(r"reader_(\d+)")  # in names of DNS-2020
KINDS = ("noisy", "clean", "speech", "noise", "unpaired")  # folders that hold sound files


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
    skip_broken: bool = elsewhere(False)  # leave broken files out
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
    kind: str  # "mixture" (a pair), "speech", "noise" or "unpaired"
    files: tuple[Path, ...]  # noisy and clean for a pair
    speaker: str  # empty for noise, unpaired and unknown speakers
    content: str = ""  # digest of the (clean) file: copies are one recording
    n_frames: int = 0  # of the prepared files
    cut_ms: float = 0.0  # cut from the longer file of a pair

    @property
    def group(self) -> str:
        """The unit of splitting: recordings of one group go to one split."""
        return self.speaker or self.content


def _refuse_other_files(job: Preparation) -> None:
    if job.config.raw and job.raw.is_dir():
        survey.refuse_changed(job.target, job.raw, job.n_jobs)


@preparing.alone(CORPUS, when_ready=_refuse_other_files)
def prepare(job: Preparation) -> None:
    """Split and convert the recordings. UserError describes the layout of `raw`."""
    target, config, tell = job.target, job.config, job.tell
    raw = job.raw
    given = [split for split in SPLITS if (raw / split).is_dir()]
    if not {"train", "dev"} <= set(given):
        given = []
    if not config.raw or not (given or _kinds(raw)):
        raise UserError(f"folder: {raw} holds no recordings; name as raw a folder with {_LAYOUT}")
    layout = {(*([split] if given else []), kind) for split in given or [""] for kind in KINDS}
    for line in survey.left_out(raw, layout):
        tell(line)
    found = _usable(job, {name: _recordings(raw / name, config) for name in given or [""]})
    splits = found if given else split(found[""], config.dev_percent, raw)
    _tell_speakers([r for of in splits.values() for r in of], config, tell)
    remedy = f"move or remove one of them, or look at the setting speakers ({config.speakers})"
    planned = {name: [_item(name, r, config) for r in of] for name, of in splits.items()}
    preparing.check(target, planned, remedy)  # before the conversion
    tasks = {
        name: list(zip(planned[name], [r.files for r in of], strict=True))
        for name, of in splits.items()
    }
    items = job.items(tasks, partial(_make, target=target), _sources)
    cut_ms = {r.files[0]: r.cut_ms for of in splits.values() for r in of}
    survey.compare(
        target,
        [item for of in items.values() for item in of if item.kind == "mixture"],
        {item.name: cut_ms[paths[0]] for of in tasks.values() for item, paths in of},
        job.n_jobs,
        tell,
    )
    for name in items.keys() & {"dev", "test"}:
        items[name] += _mixtures(target, name, items[name], config, tell)
    job.finish(items, remedy, given_splits=given)
    for name, of in items.items():
        minutes = sum(item.seconds for item in of) / 60
        tell(f"{name}: {len(of)} recordings, {minutes:.1f} minutes")


def _usable(
    job: Preparation, found: Mapping[str, tuple[list[Recording], list[str]]]
) -> dict[str, list[Recording]]:
    """Recordings of each split without broken ones; reads all files. UserError names the faults.

    found: recordings and faults of names, by split.
    """
    every = [recording for recordings, _ in found.values() for recording in recordings]
    paths = [path for recording in every for path in recording.files]
    job.survey(paths)
    faults = [fault for _, of_names in found.values() for fault in of_names]
    good: dict[str, list[Recording]] = {}
    for split, (recordings, _) in found.items():
        good[split] = []
        for recording in recordings:
            of_files = _faults(recording, job)
            faults += of_files
            if not of_files:
                good[split].append(_heard(recording, job))
    job.refuse(faults, len(paths))
    for line in survey.warnings(job.heard, job.raw):
        job.tell(line)
    kept = [recording for of in good.values() for recording in of]
    if cut := [recording.cut_ms for recording in kept if recording.cut_ms]:
        job.tell(f"{len(cut)} pair(s) were cut to the shorter file, by up to {max(cut):.2f} ms")
    for name in [name for name, of in good.items() if not of]:
        raise UserError(f"{job.raw / name}: no usable recording is left; replace the broken files")
    return good


def _faults(recording: Recording, job: Preparation) -> list[str]:
    """Faults of the files of a recording, or of a pair's files together."""
    heard = [job.heard[path] for path in recording.files]
    faults = [h.fault for h in heard if h.fault]
    if faults or len(heard) < 2:
        return faults
    if heard[0].n_channels != heard[1].n_channels:
        what = " and ".join(map(str, recording.files))
        n_channels = " and ".join(str(h.n_channels) for h in heard)
        return [f"{what} have {n_channels} channels; convert both to one layout"]
    fault = survey.unequal(recording.files, job.heard, job.config.sample_rate, pairs.CUT_MS)
    return [fault] if fault else []


def _heard(recording: Recording, job: Preparation) -> Recording:
    """With what is known from reading the files."""
    heard = [job.heard[path] for path in recording.files]
    rate = job.config.sample_rate
    return replace(
        recording,
        content=heard[-1].sha256,
        n_frames=min(resampled_length(h.n_frames, h.rate, rate) for h in heard),
        cut_ms=max(h.ms for h in heard) - min(h.ms for h in heard),
    )


def _tell_speakers(recordings: Sequence[Recording], config: FolderConfig, tell: Tell) -> None:
    """Warns where names seem not to tell the speaker."""
    if config.speakers == "none":
        tell("speakers are not known: the same voice may be in train and in dev")
    for kind in ("mixture", "speech"):
        counts = Counter(r.speaker for r in recordings if r.kind == kind and r.speaker)
        if len(counts) > 1 and max(counts.values()) == 1:
            tell(
                f"each of the {len(counts)} speakers has one recording (such as '{min(counts)}' "
                f"in {min(r.name for r in recordings if r.kind == kind)}): if the names begin with "
                "no speaker, the same voice is in train and in dev; make one folder per speaker "
                "and set speakers=folder, or set speakers=none"
            )


def split(recordings: list[Recording], dev_percent: float, raw: Path) -> dict[str, list[Recording]]:
    """Hold some speakers and noise files out for dev. UserError if there is only one."""
    held: set[str] = set()
    groups_of: dict[str, set[str]] = {}
    for recording in recordings:
        groups_of.setdefault(recording.kind, set()).add(recording.group)
    for kind, groups in groups_of.items():
        if len(groups) < 2:
            what = "recording" if kind in ("noise", "unpaired") else "speaker"
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


def _recordings(folder: Path, config: FolderConfig) -> tuple[list[Recording], list[str]]:
    """Recordings in the folders of KINDS, and faults of their names."""
    kinds = _kinds(folder)
    if not kinds or ("noisy" in kinds) != ("clean" in kinds):
        raise UserError(f"folder: {folder} has {' and '.join(kinds) or 'none'} of {_LAYOUT}")
    files = {kind: preparing.sounds(folder / kind) for kind in kinds}
    empty = [kind for kind in kinds if not files[kind]]
    if empty:
        raise UserError(f"{folder}: no sound files in {', '.join(empty)}; add some or remove it")
    found, faults = _pairs(folder, files, config) if "noisy" in kinds else ([], [])
    for kind in ("speech", "noise", "unpaired"):
        for name, path in files.get(kind, {}).items():
            speaker = _speaker(name, config, path) if kind == "speech" else ""
            found.append(Recording(name, kind, (path,), speaker))
    wrong = [(recording, _wrong(folder, recording)) for recording in found]
    faults += [
        f"{recording.files[0]}: the name holds {what}: {recording.name}; rename the file"
        for recording, what in wrong
        if what
    ]
    return [recording for recording, what in wrong if not what], faults


def _wrong(folder: Path, recording: Recording) -> str:
    """What a manifest cannot hold in a name; empty if nothing."""
    name = " ".join(str(path.relative_to(folder)) for path in recording.files)
    if ";" in name:
        return "a semicolon"
    odd = any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    return "control characters, or is not UTF-8" if odd else ""


def _pairs(
    folder: Path, files: Mapping[str, Mapping[str, Path]], config: FolderConfig
) -> tuple[list[Recording], list[str]]:
    """Pairs of one name or, as in the DNS challenge, of one number; and files without partner."""
    noisy, clean = (_by_item(files[kind]) for kind in ("noisy", "clean"))
    alone = sorted(noisy.keys() ^ clean.keys())
    faults = [
        f"{(noisy | clean)[name]} is in one of noisy/ and clean/ only: {name}; add the partner or "
        "remove the file"
        for name in alone
    ]
    found = []
    for name in (name for name in noisy if name in clean):
        both = noisy[name], clean[name]
        reader = READER.search(" ".join(path.stem for path in both))
        by_reader = reader and config.speakers == "prefix"
        speaker = reader[1] if by_reader else _speaker(name, config, both[1])
        found.append(Recording(name, "mixture", both, speaker))
    return found, faults


def _by_item(files: Mapping[str, Path]) -> dict[str, Path]:
    """Files by the name of their item. UserError if two have one name."""
    found: dict[str, Path] = {}
    for name, path in files.items():
        item = test_sets.item_name(name)
        if item in found:
            raise UserError(f"{found[item]} and {path} are one item; remove one of them")
        found[item] = path
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
    """The manifest line of a recording, without its hash."""
    kinds = ("noisy", "clean") if recording.kind == "mixture" else (recording.kind,)
    paths = [f"{split}/{kind}/{recording.name}.wav" for kind in kinds]
    return Item(
        name=paths[0].removesuffix(".wav"),
        kind=recording.kind,
        path=paths[0],
        n_frames=recording.n_frames,
        sample_rate=config.sample_rate,
        sources=tuple(paths[1:]),
        speakers=(recording.speaker,) if recording.speaker else (),
        recordings=(recording.content,),
    )


def _sources(task: tuple[Item, tuple[Path, ...]]) -> tuple[Path, ...]:
    return task[1]


def _make(task: tuple[Item, tuple[Path, ...]], target: Path) -> Item:
    item, files = task
    paths = [target / path for path in (item.path, *item.sources)]
    for file, path in zip(files, paths, strict=True):
        preparing.convert(file, path, item.sample_rate, item.n_frames)
    return replace(item, sha256=sha256(paths[0]))


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


_LAYOUT = (
    "noisy/ and clean/ (the same names), or speech/ and noise/, and unpaired/ for a teacher; or "
    "train/ and dev/ with these"
)
