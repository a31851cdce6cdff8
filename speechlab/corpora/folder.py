"""A user's own recordings: noisy and clean pairs, or speech and noise to be mixed.

Where `raw` has train/ and dev/ (and test/), they are taken as they are, and refused where a talker
or a recording is in two of them. Where it has none, talkers are held out for dev by their names,
always the same ones, and there is no test set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from speechlab.corpora import preparing
from speechlab.corpora.corpus import Corpus, Tell
from speechlab.corpora.manifest import SPLITS, Item
from speechlab.corpora.preparing import elsewhere
from speechlab.errors import UserError
from speechlab.files import sha256

KINDS = ("noisy", "clean", "speech", "noise")  # folders that hold sound files


@dataclass(frozen=True)
class FolderConfig:
    sample_rate: int = 16000  # Hz of the prepared files; channels are averaged
    speakers: Literal["prefix", "folder", "none"] = "prefix"
    # what tells a talker: a file's name up to the first _ or -, the folder it lies in, or nothing
    dev_percent: float = 10.0  # of the talkers and of the noise files, where raw has no dev/
    raw: str = elsewhere()  # the recordings
    jobs: int = elsewhere(0)  # processes; 0: one per processor


@dataclass(frozen=True)
class Recording:
    """A sound file of speech or noise, or a pair."""

    name: str  # its path below its folder, without the ending
    kind: str  # "mixture" (a pair), "speech" or "noise"
    files: tuple[Path, ...]  # of a pair noisy and clean
    content: str  # digest of the file, of a pair of the clean one: one recording, whatever its name
    speaker: str  # empty where it is not known, and of noise

    @property
    def group(self) -> str:
        """What must not be torn apart by a split."""
        return self.speaker or self.content


def prepare(target: Path, config: FolderConfig, tell: Tell) -> None:
    """Convert the recordings and split them. UserError says what `raw` must hold."""
    if preparing.is_ready(target, CORPUS, config):
        return tell(f"{target} is prepared already")
    raw = Path(config.raw).expanduser()
    given = [split for split in SPLITS if (raw / split).is_dir()]
    if not config.raw or not ({"train", "dev"} <= set(given) or _kinds(raw)):
        raise UserError(f"folder: {raw} holds no recordings; name as raw a folder with {_LAYOUT}")
    if given:
        splits = {split: _recordings(raw / split, config) for split in given}
    else:
        splits = split(_recordings(raw, config), config.dev_percent, raw)
    if config.speakers == "none":
        tell("talkers are not known: the same voice may be in train and in dev")
    tasks = {name: [(name, recording) for recording in found] for name, found in splits.items()}
    make = partial(_make, target=target, sample_rate=config.sample_rate)
    items = preparing.items(target, CORPUS, config, tasks, make, tell)
    remedy = f"move or remove one of them, or look at the setting speakers ({config.speakers})"
    preparing.finish(target, CORPUS, config, items, remedy, given_splits=given)
    for name, found in items.items():
        minutes = sum(item.seconds for item in found) / 60
        tell(f"{name}: {len(found)} recordings, {minutes:.1f} minutes")


def split(recordings: list[Recording], dev_percent: float, raw: Path) -> dict[str, list[Recording]]:
    """Some talkers, and some noise files, held out for dev. UserError where there is only one."""
    splits: dict[str, list[Recording]] = {"train": [], "dev": []}
    for kind in dict.fromkeys(recording.kind for recording in recordings):
        chosen = [recording for recording in recordings if recording.kind == kind]
        groups = {recording.group for recording in chosen}
        if len(groups) < 2:
            what = "recording" if kind == "noise" else "talker"
            raise UserError(
                f"{raw}: only one {what} of {kind} is told by the names, none can be held out; "
                "add others, lay out train/ and dev/ yourself, or set speakers=none or folder"
            )
        held = preparing.held_out(groups, dev_percent)
        for recording in chosen:
            splits["dev" if recording.group in held else "train"].append(recording)
    return splits


def _kinds(folder: Path) -> list[str]:
    return [kind for kind in KINDS if (folder / kind).is_dir()]


def _recordings(folder: Path, config: FolderConfig) -> list[Recording]:
    """What lies in noisy/ and clean/, speech/ and noise/. UserError for a file without partner."""
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
    return [
        Recording(
            name,
            "mixture",
            (noisy[name], clean[name]),
            sha256(clean[name]),
            _speaker(name, config, clean[name]),
        )
        for name in noisy
    ]


def _speaker(name: str, config: FolderConfig, path: Path) -> str:
    if config.speakers == "none":
        return ""
    if config.speakers == "folder":
        folder, _, rest = name.partition("/")
        if not rest:
            raise UserError(
                f"{path} lies in no folder of a talker; make one folder per talker, or set "
                "speakers=prefix or none"
            )
        return folder
    return name.rpartition("/")[2].replace("-", "_").partition("_")[0]


def _make(task: tuple[str, Recording], target: Path, sample_rate: int) -> Item:
    split, recording = task
    kinds = ("noisy", "clean") if recording.kind == "mixture" else (recording.kind,)
    paths = [f"{split}/{kind}/{recording.name}.wav" for kind in kinds]
    lengths = [
        preparing.convert(source, target / path, sample_rate)
        for source, path in zip(recording.files, paths, strict=True)
    ]
    if len(set(lengths)) > 1:
        raise UserError(
            f"{recording.files[0]} and {recording.files[1]} are of different length "
            f"({lengths[0]} and {lengths[1]} samples at {sample_rate} Hz); cut them to one length"
        )
    return Item(
        name=paths[0].removesuffix(".wav"),
        kind=recording.kind,
        path=paths[0],
        n_frames=lengths[0],
        sample_rate=sample_rate,
        sources=tuple(paths[1:]),
        speakers=(recording.speaker,) if recording.speaker else (),
        recordings=(recording.content,),
        sha256=sha256(target / paths[0]),
    )


_LAYOUT = "noisy/ and clean/ (the same names), or speech/ and noise/; or train/ and dev/ with these"

CORPUS = Corpus(
    name="folder",
    title="Own recordings",
    licence="the user's own",
    source="the user's own",
    gigabytes=0.0,
    layout="\n".join(
        (
            "raw/noisy/anna_001.wav …, raw/clean/anna_001.wav …   pairs; the prefix is the talker",
            "or  raw/speech/anna_001.wav …, raw/noise/street.wav …   to be mixed while training",
            "or  raw/train/…, raw/dev/…, raw/test/… (optional), each laid out as one of these",
        )
    ),
    config=FolderConfig,
    prepare=prepare,
)
