"""Test sets on disk: mixtures and their sources, and what is known of the published sets.

    noisy/  clean/         one source: noisy speech and its clean speech
    mix/  s1/  s2/  ...    several sources: speech of several speakers; mix_clean/, mix_both/, ...

Two ways of naming are understood. VoiceBank-DEMAND (doi 10.7488/ds/2117): files of one item have
one name in all folders. DNS-2020 (arXiv 2005.13981): they have one number, `..._fileid_N` with
`clean_fileid_N`. Extensions may differ. A folder of estimates is understood in the same way.
"""

import contextlib
import csv
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import soundfile

from speechlab.audio.files import SUFFIXES
from speechlab.audio.folders import listing, names_of_sources
from speechlab.errors import UserError, shown, some

LONGEST_NAME = 2**16  # characters; paths are shorter
PAIR = ("noisy", "clean")  # folders of a test set with one source
_FILEID = re.compile(r"(?:^|_)fileid_(\d+)$")


@dataclass(frozen=True)
class Mixture:
    """One item of a test set. With one source the mixture is noisy speech, the source clean."""

    name: str  # the same for every spelling of the set: "p232_001", "fileid_7"
    mixture: Path
    sources: tuple[Path, ...]  # S files, one per speaker

    @property
    def folder(self) -> Path:
        """noisy/, mix/, ..."""
        return self.mixture.parents[self.name.count("/")]


@dataclass(frozen=True)
class TestSet:
    """A published test set: the names of its items and the metrics of its unprocessed noisy files.

    DNS-2020 is recognised by the contents of its files, in any lossless format. VoiceBank-DEMAND
    has no list, as its 16-kHz files depend on the resampler: any 824 names that match its pattern
    pass for the complete set.
    """

    __test__ = False  # not a test class, whatever pytest makes of the name

    title: str
    pattern: str  # every item's name matches
    n_files: int  # of the complete set
    known: dict[str, float]  # metric -> mean over the complete set, as published
    sample_rate: int = 16000  # Hz, at which `known` and the papers' tables are scored
    digests: dict[str, tuple[str, str]] = field(default_factory=dict)
    # name -> `_digest` of the noisy and of the clean file; a set with other files is another set.
    # Empty where the list is not known here

    def holds(self, names: Iterable[str]) -> bool:
        """Whether all of `names` are names of this set."""
        names = list(names)
        return bool(names) and all(
            re.fullmatch(self.pattern, name) and (not self.digests or name in self.digests)
            for name in names
        )


def _digests(name: str) -> dict[str, tuple[str, str]]:
    """Of the files of a published set, by the name of the item: name.csv in this folder."""
    with (Path(__file__).parent / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: (row["noisy"], row["clean"]) for row in csv.DictReader(file)}


TEST_SETS = {
    "dns2020_no_reverb": TestSet(
        title="DNS-2020 synthetic no_reverb",
        digests=_digests("dns2020_no_reverb"),
        pattern=r"fileid_\d+",
        n_files=150,
        known={"pesq_wb": 1.582, "pesq_nb": 2.161, "stoi": 0.915, "si_sdr": 9.07},
    ),
    "voicebank_demand_test": TestSet(
        title="VoiceBank-DEMAND test",
        pattern=r"p(232|257)_\d{3}",
        n_files=824,
        known={
            "pesq_wb": 1.97,
            "stoi": 0.92,
            "csig_int16": 3.35,
            "cbak_int16": 2.44,
            "covl_int16": 2.63,
            "csig_float": 3.49,
            "cbak_float": 2.55,
            "covl_float": 2.74,
            "ssnr": 1.68,
        },
    ),
}


def find(folder: str | Path, tell: Callable[[str], Any] = lambda line: None) -> list[Mixture]:
    """The mixtures of a folder by name (numbers as numbers), with their sources.

    Subfolders noisy/ and clean/ are one source each. Else there are mix/ (or mix_clean/, ...), s1/,
    s2/, ...; where there are several such mix folders, `folder` is one of them. Raises UserError
    for several mix folders, a missing or empty folder, a name that occurs twice, and a file that
    has no partner in another folder. tell: receives one line for each folder with other files.
    """
    place, parts = _parts(Path(folder))
    files = {part: sound_files(place / part, tell) for part in parts}
    every = {name: path.name for of_part in files.values() for name, path in of_part.items()}
    for part, of_part in files.items():
        absent = sorted(every.keys() - of_part.keys(), key=_natural)
        if absent:
            raise UserError(
                f"{place}: {part}/ lacks {len(absent)} file(s) that the others have: "
                f"{some([every[name] for name in absent])}; add them or remove the others"
            )
    mixtures, *sources = files.values()
    return [
        Mixture(name, mixtures[name], tuple(of_part[name] for of_part in sources))
        for name in sorted(every, key=_natural)
    ]


def _parts(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Where the folders of a test set are, and their names, that of the mixtures first."""
    is_pairs = all((folder / part).is_dir() for part in PAIR)
    places = [folder, *([folder.parent] if _is_mix(folder.name) else [])]
    place = next((place for place in places if (place / "s1").is_dir()), None)
    if is_pairs or place is None:
        return folder, PAIR
    kinds = sorted(path.name for path in place.iterdir() if path.is_dir() and _is_mix(path.name))
    if place != folder:
        kinds = [folder.name]
    if len(kinds) != 1:
        found = " and ".join(f"{kind}/" for kind in kinds) or "no mix/"
        raise UserError(f"{place}: has {found} beside s1/; name one, as {place / 'mix_both'}")
    n_sources = next(n for n in count(1) if not (place / f"s{n + 1}").is_dir())
    return place, (kinds[0], *names_of_sources(n_sources))


def _is_mix(name: str) -> bool:
    return name != "mix_single" and re.fullmatch(r"mix(_\w+)?", name) is not None


def title(mixtures: list[Mixture]) -> str:
    """The name of a test set: its published title, or that of its folder."""
    known = recognise(mixtures)
    return known.title if known else mixtures[0].folder.parent.resolve().name


def rate_of_each(paths: Iterable[Path]) -> dict[Path, int]:
    """Rates in Hz in the files' headers; a file without one is left to the reader to report."""
    rates = {}
    for path in paths:
        with contextlib.suppress(soundfile.LibsndfileError, OSError):
            rates[path] = soundfile.info(os.fsencode(path)).samplerate
    return rates


def sample_rates(paths: Iterable[Path]) -> set[int]:
    """The different ones of `rate_of_each`."""
    return set(rate_of_each(paths).values())


def recognise(mixtures: list[Mixture]) -> TestSet | None:
    """The published test set, complete or not, of these names and contents; None if none is it.

    The published sets have one source.
    """
    known = _named_as(mixtures)
    return None if known is None or _others(mixtures, known) else known


def impostor(mixtures: list[Mixture]) -> str:
    """A line where a set has the names of a published one, and other contents; else ""."""
    known = _named_as(mixtures)
    others = _others(mixtures, known) if known else []
    if not others:
        return ""
    return (
        f"{len(others)} of {len(mixtures)} pairs have names of {known.title} and other contents "
        f"({some(others, 3)}): the set is not called so, and has no known row"
    )


def _named_as(mixtures: list[Mixture]) -> TestSet | None:
    """The published test set that has all these names."""
    if any(len(mixture.sources) > 1 for mixture in mixtures):
        return None
    names = [mixture.name for mixture in mixtures]
    return next((known for known in TEST_SETS.values() if known.holds(names)), None)


def _others(mixtures: list[Mixture], known: TestSet) -> list[str]:
    """Names of the pairs whose contents are not those of the published set, where it lists them."""
    return [
        pair.name
        for pair in mixtures
        if known.digests
        and known.digests[pair.name] != (_digest(pair.mixture), _digest(pair.sources[0]))
    ]


def _digest(path: Path) -> str:
    """64 bits of the MD5 of the 16-bit samples; a FLAC has it in its header. "" if unreadable."""
    try:
        stat = path.stat()
        return _digest_of(path, stat.st_size, stat.st_mtime_ns)
    except (OSError, soundfile.LibsndfileError):
        return ""


@lru_cache(maxsize=1000)
def _digest_of(path: Path, size: int, changed_ns: int) -> str:
    """size, changed_ns: of the file, so that another content is read again."""
    with path.open("rb") as file:
        head = file.read(42)
    if head[:4] == b"fLaC" and any(head[26:42]):
        return head[26:34].hex()
    samples = soundfile.read(os.fsencode(path), dtype="int16")[0]
    return hashlib.md5(samples.tobytes(), usedforsecurity=False).hexdigest()[:16]


def sound_files(folder: Path, tell: Callable[[str], Any] = lambda line: None) -> dict[str, Path]:
    """Sound files at any depth of a folder, of a test set or of estimates, by their item's name.

    The name is the path in the folder without the ending, in Unicode's composed form (NFC), with
    control characters escaped. tell: receives one line if something is left out.
    Raises UserError where the folder is missing, unreadable or has none, or two files have one
    name.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; a test set has the folders noisy/ and clean/, "
            "or mix/, s1/ and s2/"
        )
    found = listing(folder)
    for inner, reason in found.unreadable.items():
        raise UserError(f"{folder / inner}: cannot be read ({reason}); change its permissions")
    files: dict[str, Path] = {}
    for inner in found.files:
        name = item_name(unicodedata.normalize("NFC", inner.with_suffix("").as_posix()))
        name = shown(name, LONGEST_NAME)
        if name in files:
            other = files[name].relative_to(folder)
            raise UserError(f"{folder}: {other} and {inner} are one name; remove one of them")
        files[name] = folder / inner
    if not files:
        raise UserError(
            f"{folder}: no sound files in it; expected names that end in {', '.join(SUFFIXES)}"
        )
    if found.left_out:
        tell(f"{folder}: left out: {found.left_out}")
    return files


def item_name(name: str) -> str:
    """The item of a path without its ending: "a/fileid_7" of "a/clean_fileid_07", else the same."""
    folder, slash, stem = name.rpartition("/")
    numbered = _FILEID.search(stem)
    return f"{folder}{slash}fileid_{int(numbered[1])}" if numbered else name


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: digits as numbers, so that fileid_9 comes before fileid_10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]
