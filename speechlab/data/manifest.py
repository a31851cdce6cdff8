"""Manifests of a prepared corpus: one line per recording, one CSV file per split.

A prepared folder has `corpus.json` (source and options), `train.csv`, `dev.csv`, `test.csv`,
`files.csv` (see `digests`) and sound files. `corpus.json` is written last: a folder without it is
incomplete. Training reads train and dev by `read`, never test; `speechlab evaluate FOLDER/test`
scores the test pairs.
"""

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from speechlab.errors import UserError
from speechlab.storage import atomic
from speechlab.storage.atomic import sha256

SPLITS = ("train", "dev", "test")
ABOUT = "corpus.json"
FILES = "files.csv"
KINDS = ("speech", "noise", "room", "mixture", "unpaired")


@dataclass(frozen=True)
class Item:
    """A recording of a corpus, or a mixture with its clean sources."""

    name: str  # unique in the corpus
    kind: str  # one of KINDS; a room is an impulse response; unpaired: noisy, no clean file
    path: str  # of the sound file in the corpus folder; of a mixture the noisy one
    n_frames: int  # samples per channel
    sample_rate: int  # Hz
    sources: tuple[str, ...] = ()  # clean files of a mixture, one per speaker
    speakers: tuple[str, ...] = ()  # of a mixture one per source
    recordings: tuple[str, ...] = ()  # original recordings; no two splits share one
    gain_db: float = 0.0  # applied when the file is read
    snr_db: float | None = None  # of a mixture, if known
    text: str = ""  # transcript
    sha256: str = ""  # of the sound file, if known

    @property
    def seconds(self) -> float:
        return self.n_frames / self.sample_rate


COLUMNS = tuple(field.name for field in dataclasses.fields(Item))


def write(
    folder: str | Path, splits: Mapping[str, Sequence[Item]], about: Mapping[str, Any]
) -> None:
    """Write the manifests of a corpus and, last, `corpus.json`. ValueError if splits overlap.

    about: plain JSON values; the name, licence, source, options and resampler of the corpus.
    """
    check_disjoint(splits)
    folder = Path(folder)
    (folder / ABOUT).unlink(missing_ok=True)
    for split in SPLITS:
        atomic.write(folder / f"{split}.csv", _to_csv(splits.get(split, ())))
    hashes = {split: sha256(folder / f"{split}.csv") for split in SPLITS}
    about = {**about, "manifests": hashes, "data_hash": _combined(hashes, about)}
    atomic.write(folder / ABOUT, json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def read(folder: str | Path, split: Literal["train", "dev"]) -> list[Item]:
    """The recordings of train or dev. UserError for another split or a damaged corpus."""
    if split not in ("train", "dev"):
        raise UserError(f"{folder}: training reads 'train' and 'dev', never '{split}'")
    about(folder)
    return parse(Path(folder) / f"{split}.csv")


def about(folder: str | Path) -> dict[str, Any]:
    """The content of `corpus.json`. UserError if the folder is not prepared or damaged."""
    path = Path(folder) / ABOUT
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is no prepared corpus: it has no {ABOUT}; run `speechlab data prepare`"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); prepare the corpus again") from error
    return known


def data_hash(folder: str | Path) -> str:
    """SHA-256 of the options and the manifests, and so of the hashes of sound files in them.

    UserError if the manifest of train or dev or `files.csv` was changed; that of test is not
    opened.
    """
    known = about(folder)
    wrong = changed(folder, known, ("train", "dev"))
    if wrong:
        raise UserError(
            f"{folder}: {' and '.join(wrong)} changed by hand; prepare the corpus again"
        )
    return known["data_hash"]


def changed(
    folder: str | Path, known: Mapping[str, Any], splits: Iterable[str] = SPLITS
) -> list[str]:
    """The manifests, `files.csv` and `corpus.json` that are not as they were written.

    known: the content of `corpus.json`. UserError if it or one of them is damaged.
    """
    try:
        hashes = {f"{split}.csv": known["manifests"][split] for split in splits}
        hashes |= {FILES: known["files"]} if "files" in known else {}
        wrong = [name for name in hashes if sha256(Path(folder) / name) != hashes[name]]
        if known["data_hash"] != _combined(known["manifests"], known):
            wrong.append(ABOUT)
    except (KeyError, TypeError, OSError) as error:
        raise UserError(f"{folder} is damaged ({error}); prepare the corpus again") from error
    return wrong


def check_disjoint(splits: Mapping[str, Iterable[Item]]) -> None:
    """ValueError if a speaker, recording or file is in two splits, or a name is not unique."""
    seen: dict[tuple[str, str], str] = {}
    names: set[str] = set()
    for split, items in splits.items():
        if split not in SPLITS:
            raise ValueError(f"no split '{split}'; there are {', '.join(SPLITS)}")
        for item in items:
            if item.name in names:
                raise ValueError(f"two recordings are named {item.name}")
            names.add(item.name)
            files = [("file", path) for path in (item.path, *item.sources)]
            for key in (*origins(item), *files):
                if seen.setdefault(key, split) != split:
                    raise ValueError(f"{key[0]} {key[1]} is in both {seen[key]} and {split}")


def origins(item: Item) -> list[tuple[str, str]]:
    """Speakers and recordings, which no two splits may share, as (kind, name)."""
    return [("speaker", speaker) for speaker in item.speakers] + [
        ("recording", recording) for recording in item.recordings
    ]


def parse(path: Path) -> list[Item]:
    """The items of one manifest. UserError if it is missing, or names the damaged line."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise UserError(f"{path} cannot be read; prepare the corpus again") from error
    items = []
    for line, row in enumerate(rows, start=2):
        try:
            items.append(_item(row))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}, line {line}: {error}; prepare the corpus again") from error
    return items


def _item(row: Mapping[str, str]) -> Item:
    if tuple(row) != COLUMNS:
        raise ValueError(f"columns are not {', '.join(COLUMNS)}")
    names = ("sources", "speakers", "recordings")
    lists = {key: tuple(filter(None, row[key].split(";"))) for key in names}
    numbers = {
        "n_frames": int(row["n_frames"]),
        "sample_rate": int(row["sample_rate"]),
        "gain_db": float(row["gain_db"]),
        "snr_db": float(row["snr_db"]) if row["snr_db"] else None,
    }
    return Item(**{**row, **lists, **numbers})


def _to_csv(items: Iterable[Item]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for item in items:
        table.writerow(_cell(getattr(item, column)) for column in COLUMNS)
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        if any(";" in part for part in value):
            raise ValueError(f"a name holds ';': {value}")
        return ";".join(value)
    return "" if value is None else str(value)


def _combined(hashes: Mapping[str, str], about: Mapping[str, Any]) -> str:
    """With the options and all files: the same mixtures may have other references."""
    words = [*(hashes[split] for split in SPLITS), json.dumps(about.get("options"), sort_keys=True)]
    words += [about["files"]] if "files" in about else []  # version 0.1 had none
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
