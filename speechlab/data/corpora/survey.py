"""Reads every source once, before any is converted: digest, length, scale, channels, faults.

All faults are then one list, and a preparation that refuses has written nothing. `compare` measures
the prepared pairs.
"""

import csv
import io
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechlab.audio import files
from speechlab.audio.files import resampled_length
from speechlab.audio.folders import listing
from speechlab.data import pairs
from speechlab.data.digests import digest
from speechlab.data.manifest import Item
from speechlab.errors import UserError, shown, some
from speechlab.progress import Report
from speechlab.storage.atomic import sha256, write

ADVICE = {".wv1": "; convert shortened files with sph2pipe first"}  # by the ending of a name
PAIRS = "pairs.csv"  # in the prepared folder: whether noisy and clean belong together
SOURCES = "sources.csv"  # in the prepared folder: the files that there were, digests of used ones
HEADING = "# files that `speechlab data prepare` cannot use"  # first line of a list of faults
MEASURES = ("lag_ms", "snr_db", "correlation", "prominence", "gain_db", "pause_db", "peak")
COMPARED_S = 600.0  # at most, of each pair
N_NAMED = 3  # faults in a message


@dataclass(frozen=True)
class Heard:
    """A source that was read to its end."""

    fault: str = ""  # why it is not usable; the other fields are then empty
    sha256: str = ""
    n_frames: int = 0
    rate: int = 1  # Hz
    n_channels: int = 0
    peak: float = 0.0  # largest absolute sample; full scale is 1
    n_beyond: int = 0  # samples beyond full scale
    channels: tuple[str, ...] = ()  # silent channels, and those that cancel

    @property
    def ms(self) -> float:
        """Length in milliseconds."""
        return 1000 * self.n_frames / self.rate


def hear(path: Path) -> Heard:
    """Read one file, in blocks; its fault begins with its path."""
    try:
        recording = files.Recording(path)
        peak, n_beyond, products = 0.0, 0, np.zeros((recording.n_channels,) * 2)
        for block in recording:
            samples = block.double().numpy()  # (C, n)
            size = np.abs(samples)
            peak, n_beyond = max(peak, size.max(initial=0.0)), n_beyond + int((size > 1).sum())
            products += samples @ samples.T
        pairs.check_peak(peak, str(path))
        return Heard(
            sha256=sha256(path),
            n_frames=recording.n_frames,
            rate=recording.file_rate,
            n_channels=recording.n_channels,
            peak=float(peak),
            n_beyond=n_beyond,
            channels=tuple(pairs.faults_of_products(products)),
        )
    except UserError as error:
        return Heard(f"{error}{ADVICE.get(path.suffix.lower(), '')}")
    except OSError as error:
        return Heard(f"{path}: cannot be read ({error.strerror})")


def hear_all(paths: Iterable[Path], jobs: int, tell: Callable[[str], None]) -> dict[Path, Heard]:
    """Read files in threads; tells progress."""
    paths, heard = list(dict.fromkeys(paths)), {}
    if not paths:
        return heard
    report = Report("checking", len(paths), tell=tell)
    with report, ThreadPoolExecutor(jobs) as threads:
        for path, found in zip(paths, threads.map(hear, paths), strict=True):
            heard[path] = found
            report.update()
    return heard


def left_out(raw: Path, layout: Collection[tuple[str, ...]]) -> list[str]:
    """Lines on sound files in other folders, files that are not read, links not entered.

    layout: parts of the folders that are read, from `raw`.
    """
    everything, depth = listing(raw), max(map(len, layout))
    unused = [file for file in everything.files if file.parts[:-1][:depth] not in layout]
    lines = [f"left out: {everything.left_out}"] if everything.left_out else []
    if unused:
        names = some([shown(file, 80) for file in unused])
        lines.append(f"left out: {len(unused)} sound file(s) in no folder of the layout: {names}")
    return lines


def unequal(
    paths: Sequence[Path], heard: Mapping[Path, Heard], sample_rate: int, cut_ms: float = 0
) -> str:
    """The fault of files of one recording that differ in length; empty if there is none.

    sample_rate: Hz of the prepared files.
    cut_ms: a difference up to which they are cut.
    """
    ms = [heard[path].ms for path in paths]
    lengths = [resampled_length(h.n_frames, h.rate, sample_rate) for h in map(heard.get, paths)]
    if len(set(lengths)) == 1 or max(ms) - min(ms) <= cut_ms:
        return ""
    cut = f"up to {cut_ms:g} ms are cut, so " if cut_ms else ""
    return (
        f"{' and '.join(map(str, paths))} are of different length "
        f"({' and '.join(map(str, lengths))} samples at {sample_rate} Hz); "
        f"{cut}replace them by files of one length"
    )


def header_faults(paths: Sequence[Path], jobs: int) -> dict[Path, str]:
    """Files that cannot be opened as sound; reads their beginning and end only."""
    with ThreadPoolExecutor(jobs) as threads:
        faults = zip(paths, threads.map(_header_fault, paths), strict=True)
        return {path: fault for path, fault in faults if fault}


def _header_fault(path: Path) -> str:
    try:
        files.Recording(path)
    except UserError as error:
        return str(error)
    return ""


def warnings(heard: Mapping[Path, Heard], root: Path = Path()) -> list[str]:
    """Lines on usable files: samples beyond full scale, channels that are silent or cancel.

    heard: by path.
    root: names in the lines are relative to it.
    """
    loud = {path: h for path, h in heard.items() if h.n_beyond}
    odd = {path: h for path, h in heard.items() if h.channels}
    lines = []
    if loud:
        names = [f"{_short(p, root)} (peak {h.peak:.2f}, {h.n_beyond})" for p, h in loud.items()]
        lines.append(f"{len(loud)} file(s) have samples beyond full scale: {some(names)}")
    if odd:
        names = [f"{_short(path, root)} ({', '.join(h.channels)})" for path, h in odd.items()]
        lines.append(f"{len(odd)} file(s) have channels that spoil their mean: {some(names)}")
    return lines


def _short(path: Path, root: Path) -> str:
    return shown(path.relative_to(root) if path.is_relative_to(root) else path, 80)


def some_faults(faults: Sequence[str]) -> str:
    """The first faults on one line, and the number of the others."""
    more = f" | and {len(faults) - N_NAMED} more" if len(faults) > N_NAMED else ""
    return " | ".join(shown(fault, 300) for fault in faults[:N_NAMED]) + more


def remove_list(path: Path) -> None:
    """Remove a list of faults that a preparation wrote; another file of this name stays."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        is_ours = file.read(len(HEADING)) == HEADING.encode()
    if is_ours:
        path.unlink()


def write_list(path: Path, faults: Sequence[str]) -> str:
    """Write a list of faults where no file is; returns in words where it is."""
    if path.exists():
        return f"{path} is no list of them, and stays; move it to get one"
    write(path, f"{HEADING}\n{listed(faults, ())}")
    return f"{path} lists all"


def listed(faults: Sequence[str], roots: Sequence[str]) -> str:
    """Faults as lines of a file, with paths relative to the folders of raw files."""
    lines = [shown(fault) for fault in faults]
    for root in roots:
        lines = [line.replace(f"{shown(root)}/", "") for line in lines]
    return "".join(f"{line}\n" for line in lines)


def compare(
    target: Path,
    items: Sequence[Item],
    cut_ms: Mapping[str, float],
    jobs: int,
    tell: Callable[[str], None],
) -> None:
    """Measure prepared pairs, write `PAIRS` and name the outliers.

    target: folder of the corpus.
    items: mixtures of one source.
    cut_ms: what was cut from the longer file, by the item's name.
    jobs: number of threads.
    tell: reports one line.
    """
    if not items:
        return
    tell(f"comparing noisy and clean in {len(items)} pairs")
    rows = [row | {"cut_ms": cut_ms[row["name"]]} for row in measured(target, items, jobs)]
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
    write(target / PAIRS, text.getvalue())
    outliers = {row["name"]: row["remark"] for row in rows if row["remark"]}
    if outliers:
        tell(f"{pairs.told(outliers, len(items))}; {PAIRS} has all pairs")


def measured(target: Path, items: Sequence[Item], jobs: int) -> list[dict[str, Any]]:
    """A row of each prepared pair: its name, `MEASURES`, and a remark if it looks wrong.

    items: mixtures of one source, in the folder `target`.
    """
    with ThreadPoolExecutor(jobs) as threads:
        found = list(threads.map(partial(_measured, target), items))
    of_pairs = {item.name: pair for item, pair in zip(items, found, strict=True)}
    outliers = pairs.outliers(of_pairs)
    return [
        {"name": name, **{key: getattr(pair, key) for key in MEASURES}}
        | {"remark": outliers.get(name, "")}
        for name, pair in of_pairs.items()
    ]


def note_sources(target: Path, raw: Path, used: Mapping[str, str]) -> None:
    """Write `SOURCES`: every sound file of `raw` by its path there, with the SHA-256 of used ones.

    used: SHA-256 by path.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("path", "sha256"))
    table.writerows((path, used.get(str(raw / path), "")) for path in listing(raw).files)
    write(target / SOURCES, text.getvalue().encode(errors="surrogateescape"))


def _noted_sources(target: Path) -> dict[str, str]:
    """The content of `SOURCES`; empty for a corpus without it, as those of version 0.1."""
    path = target / SOURCES
    text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""
    return {row["path"]: row["sha256"] for row in csv.DictReader(io.StringIO(text))}


def new_sources(target: Path, raw: Path) -> str:
    """A line on sound files of `raw` that were not there when a corpus was prepared; "" if none."""
    noted = _noted_sources(target)
    new = [str(path) for path in listing(raw).files if str(path) not in noted] if noted else []
    if not new:
        return ""
    names = some([shown(name, 80) for name in new])
    return (
        f"{len(new)} sound file(s) of {raw} are new and not in {target}: {names}; to use them, "
        "prepare all into another folder (--folder)"
    )


def refuse_changed(target: Path, raw: Path, jobs: int) -> None:
    """UserError where a source of a prepared corpus has changed since; reads all sources."""
    noted = {name: digest for name, digest in _noted_sources(target).items() if digest}
    with ThreadPoolExecutor(jobs) as threads:
        present = threads.map(lambda name: digest(raw / name), noted)
    changed = [name for name, now in zip(noted, present, strict=True) if noted[name] != now]
    if changed:
        raise UserError(
            f"{target} is prepared, but {len(changed)} file(s) of {raw} have changed since: "
            f"{some(changed)}; prepare into another folder (--folder)"
        )


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _measured(target: Path, item: Item) -> pairs.Pair:
    noisy, clean = (_beginning(target / path) for path in (item.path, *item.sources))
    return pairs.measure(noisy, clean, item.sample_rate)


def _beginning(path: Path) -> np.ndarray:
    """The first samples of a mono file, (T,): a long recording does not fit into memory."""
    blocks = itertools.islice(files.Recording(path), math.ceil(COMPARED_S / files.BLOCK_S))
    return torch.cat(list(blocks), -1)[0].numpy()
