"""VoiceBank-DEMAND, 28 speakers (doi 10.7488/ds/2117): download, conversion, dev set.

The published set has no dev split. Two of its 28 training speakers, p226 and p287, are held out,
so that 26 remain for training. The test set (p232, p257) is in `test/noisy` and `test/clean`,
where `speechlab evaluate` finds it.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from speechlab.config import SampleRate
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora import survey
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.corpora.prepare import Preparation, elsewhere
from speechlab.data.manifest import Item
from speechlab.errors import UserError, some
from speechlab.progress import Tell
from speechlab.storage import archive as archives
from speechlab.storage import download as downloads

CORPUS = CORPORA["voicebank_demand"]
DEV_SPEAKERS = ("p226", "p287")
N_FILES = {"train": 10802, "dev": 770, "test": 824}  # pairs of the complete set
ADDRESS = "https://datashare.ed.ac.uk"
N_BYTES = {
    "logfiles": 115_932,
    "clean_trainset_28spk_wav": 2_486_057_279,
    "noisy_trainset_28spk_wav": 2_830_205_201,
}
DISK_BYTES = 15e9  # archives and 48 kHz files together, while preparing


@dataclass(frozen=True)
class VoiceBankDemandConfig:
    sample_rate: SampleRate = 16000  # Hz of the prepared files; the published ones have 48000
    raw: str = elsewhere()  # folder of the archives, packed or unpacked; empty: <target>/raw
    download: bool = elsewhere(True)  # missing archives
    mirror: str = elsewhere()  # address of the same archives, tried first
    skip_broken: bool = elsewhere(False)  # leave broken files out
    jobs: int = elsewhere(0)  # processes; 0: one per processor


@dataclass(frozen=True)
class Archive:
    """A file of the dataset's page on Edinburgh DataShare."""

    name: str  # without .zip; also the name of its folder
    bitstream: str  # id on DataShare
    md5: str = ""  # as published; empty if unknown: see `downloads.fetch`

    @property
    def n_bytes(self) -> int | None:
        return N_BYTES.get(self.name)

    @property
    def needed(self) -> bool:
        return self.name.endswith("_wav")

    def urls(self, mirror: str) -> tuple[str, ...]:
        official = (
            f"{ADDRESS}/server/api/core/bitstreams/{self.bitstream}/content",
            f"{ADDRESS}/bitstreams/{self.bitstream}/download",
            f"{ADDRESS}/bitstream/handle/10283/2791/{self.name}.zip",
        )
        return (f"{mirror.rstrip('/')}/{self.name}.zip", *official) if mirror else official


# Small ones first, so that an interrupted download has them.
_LISTED = """
logfiles 11185dc8-9cf1-405b-b858-35bd6a04aedd 0d16f5b6afe12d64238d1e4a0e6ff6e8
trainset_28spk_txt fb55b5de-c2db-4451-ac0a-134e98011ffa
testset_txt 09e12592-879e-4749-bf6d-e34cf0d1ddf6
clean_testset_wav dec213d3-bf57-4777-9663-c24bdce92d5e 34eb1c0ba7ef667e9b966866c542fc16
noisy_testset_wav 13c1bfbf-14a6-41db-9b41-8f7310f01ad5 fb1b86caa31e8ba5b506c0c64da9aab5
clean_trainset_28spk_wav 245452b6-6235-44b6-a6f9-e7eb19797769 d2d5a45ec32f8fcbf201bde0447e20ba
noisy_trainset_28spk_wav ecb5a102-bb00-46d3-8af5-40c79823b837 1fca9e8bafb8cd069f6653c6d92f9e9c
"""
ARCHIVES = tuple(Archive(*line.split()) for line in _LISTED.strip().splitlines())


@dataclass(frozen=True)
class _Task:
    name: str  # "p226_001"
    split: str
    noisy: Path
    clean: Path
    snr_db: float | None
    text: str


@preparing.alone(CORPUS)
def prepare(job: Preparation) -> None:
    """Download, resample and hold two speakers out. UserError names missing archives."""
    target, config, tell = job.target, job.config, job.tell
    raw = job.raw
    _get(raw, config, tell)
    make = partial(_make, target=target, sample_rate=config.sample_rate)
    unlike = partial(survey.unequal, sample_rate=config.sample_rate)
    items = job.items(_tasks(raw), make, _sources, unlike=unlike)
    n_files = {split: len(found) for split, found in items.items()}
    if n_files != N_FILES:
        tell(f"incomplete: {n_files} pairs, the published set has {N_FILES}")
    job.finish(
        items,
        "keep the published names and folders",
        complete=n_files == N_FILES,
        dev_speakers=list(DEV_SPEAKERS),
    )
    tell(f"{target}: {n_files['train']} train, {n_files['dev']} dev, {n_files['test']} test pairs")


def _get(raw: Path, config: VoiceBankDemandConfig, tell: Tell) -> None:
    """Download and unpack archives into `raw`. UserError names missing ones."""
    absent = [archive for archive in ARCHIVES if not (raw / archive.name).is_dir()]
    zipped = [a for a in absent if (raw / f"{a.name}.zip").is_file()]
    missing = [a.name for a in absent if a.needed and a not in zipped]
    if missing and not config.download:
        raise UserError(
            f"voicebank_demand: {raw} lacks {', '.join(missing)}; unpack these archives of "
            "doi 10.7488/ds/2117 (CC BY 4.0) there, or set download=true to fetch them (6 GB)"
        )
    if missing:
        downloads.check_space(raw, DISK_BYTES * len(missing) / 4, "preparing voicebank_demand")
    for archive in absent:
        if archive not in zipped and not missing:
            continue  # optional: not worth a download
        try:
            _unpack(raw, archive, config.mirror, tell)
        except UserError as error:
            if archive.needed:
                raise
            tell(f"continuing without SNR or transcripts: {error}")


def _unpack(raw: Path, archive: Archive, mirror: str, tell: Tell) -> None:
    zipped = raw / f"{archive.name}.zip"
    if not zipped.exists():
        tell(f"fetching {zipped.name}")
        if not archive.md5:
            tell(f"no digest of {zipped.name} is known here: its first download is trusted")
    downloads.fetch(
        archive.urls(mirror),
        zipped,
        f"md5:{archive.md5}" if archive.md5 else "",
        n_bytes=archive.n_bytes,
        what=f"the published {zipped.name}",
        advice=f"or put {zipped.name} of doi 10.7488/ds/2117 into {raw} yourself",
        elsewhere="name another folder as raw",
    )
    try:
        archives.unpack(zipped, raw / archive.name)
    except UserError:
        if not archive.md5:
            downloads.forget(zipped)  # download it again next time
        raise


def _tasks(raw: Path) -> dict[str, list[_Task]]:
    """The tasks of each split, one per pair. UserError for a file without its partner."""
    snrs, texts = _snrs(raw / "logfiles"), {}
    for name in ("trainset_28spk_txt", "testset_txt"):
        texts |= {path.stem: path for path in (raw / name).rglob("p*.txt")}
    tasks: dict[str, list[_Task]] = {"train": [], "dev": [], "test": []}
    for published, part in (("train", "trainset_28spk"), ("test", "testset")):
        noisy, clean = (_wavs(raw / f"{kind}_{part}_wav") for kind in ("noisy", "clean"))
        alone = sorted(noisy.keys() ^ clean.keys())
        if alone:
            raise UserError(
                f"{raw}: {len(alone)} file(s) of {part} without a partner: "
                f"{some(alone)}; unpack its two archives again"
            )
        for name in sorted(noisy):
            split = "dev" if name.partition("_")[0] in DEV_SPEAKERS else published
            text = _read(texts[name]).strip() if name in texts else ""
            task = _Task(name, split, noisy[name], clean[name], snrs.get(name), text)
            tasks[split].append(task)
    return tasks


def _wavs(folder: Path) -> dict[str, Path]:
    """Sound files of an unpacked archive, at any depth, by utterance."""
    found = {path.stem: path for path in preparing.sounds(folder).values()}
    wrong = [name for name in found if not re.fullmatch(r"p\d+_\d+", name)]
    if wrong or not found:
        what = f"{some(wrong)} is no utterance" if wrong else "no sound files in it"
        raise UserError(f"{folder}: {what}; names are as p226_001.wav: unpack the archive again")
    return found


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _snrs(folder: Path) -> dict[str, float]:
    """Utterance -> SNR in dB, from log lines as "p226_001 cafeteria 15"."""
    snrs = {}
    for path in sorted(folder.rglob("log_*set*.txt")):
        for line in _read(path).splitlines():
            found = re.fullmatch(r"\s*(p\d+_\d+)\s+\S+\s+(-?[\d.]+)\s*", line)
            if found:
                snrs[found[1]] = float(found[2])
    return snrs


def _sources(task: _Task) -> tuple[Path, Path]:
    return task.noisy, task.clean


def _make(task: _Task, target: Path, sample_rate: int) -> Item:
    paths = [f"{task.split}/{kind}/{task.name}.wav" for kind in ("noisy", "clean")]
    for source, path in zip(_sources(task), paths, strict=True):
        preparing.convert(source, target / path, sample_rate)
    return preparing.mixture(
        target,
        paths,
        name=task.name,
        speakers=(task.name.partition("_")[0],),
        recordings=(task.name,),
        snr_db=task.snr_db,
        text=task.text,
    )
