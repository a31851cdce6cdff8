"""The files of a row: their digest, and what is wrong with their scale, length and pairing.

Each row has these columns behind its scores:

    lag_ms, snr_db, correlation   `data.pairs`, against the clean file or the source: of the file
                                  that is scored, with a checkpoint of the file that the model reads
    n_cut                         samples that the files are longer than the shortest, up to 10 ms
    n_beyond                      samples beyond full scale, all files together
    warnings                      in words
    inputs                        digest of every file that was read, and of the checkpoint
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from speechlab.data import pairs
from speechlab.data.pairs import Pair
from speechlab.data.test_sets import Mixture, rate_of_each
from speechlab.errors import UserError, shown
from speechlab.evaluation.estimates import digest
from speechlab.evaluation.rows import cell

COLUMNS = ("lag_ms", "snr_db", "correlation", "n_cut", "n_beyond", "warnings", "inputs")
UNREADABLE = "unreadable"

Signals = dict[Path, np.ndarray]  # file -> samples (T,)


def fingerprint(paths: Iterable[Path], checkpoint: str = "") -> str:
    """64 bits of the SHA-256 of all files, in the order given, and of a checkpoint's digest."""
    try:
        return digest(paths, checkpoint)[:16]
    except OSError:  # the reader tells why
        return UNREADABLE


def unknown() -> dict[str, str]:
    """The columns of a row that failed."""
    return dict.fromkeys(COLUMNS, "")


def cut(signals: Signals, sample_rate: int) -> tuple[Signals, int]:
    """All signals at the length of the shortest, and the most samples that one lost.

    UserError for a file whose length differs from that of the first by more than 10 ms.
    """
    (first, reference), *others = signals.items()
    for path, samples in others:
        apart_ms = 1000 * abs(len(samples) - len(reference)) / sample_rate
        if apart_ms > pairs.CUT_MS:
            raise UserError(
                f"{path} has {len(samples)} samples, that in {first.parent.name}/ has "
                f"{len(reference)}; make them of one length, up to {pairs.CUT_MS:g} ms are cut"
            )
    lengths = [len(samples) for samples in signals.values()]
    n = min(lengths)
    return {path: samples[:n] for path, samples in signals.items()}, max(lengths) - n


def beyond(signals: Signals, free: Iterable[Path]) -> dict[str, int]:
    """Samples beyond full scale of the files, by the name of their folder, where there are any.

    UserError from about twice full scale on, except for files in `free`, which may have any level.
    """
    counts, free = Counter(), set(free)
    for path, samples in signals.items():
        name = shown(path.parent.name)
        if path in free:
            counts[f"estimate in {name}"] += int(np.count_nonzero(np.abs(samples) > 1))
        else:
            counts[name] += pairs.check_scale(samples, str(path))
    return {name: n for name, n in counts.items() if n}


def checks(
    mixture: Mixture,
    scored: Sequence[Path | np.ndarray],
    signals: Signals,
    sample_rate: int,
    n_cut: int,
    beyond: Mapping[str, int],
) -> list[dict[str, str]]:
    """The columns of each source's row, without the digest.

    scored: of each source the file of its estimate, or of a model the samples
    signals: of the files that were read; the mixture is among them where it was needed
    n_cut, beyond: as `cut` and `beyond` give them
    """
    notes = [f"{n} samples beyond full scale ({name})" for name, n in beyond.items()]
    if n_cut:
        notes.append(f"{n_cut} samples cut, the files differ in length")
    rows = []
    for source, estimate in zip(mixture.sources, scored, strict=True):
        measured = _measured(mixture, source, estimate, signals, sample_rate)
        several = len(mixture.sources) > 1
        found = [
            fault
            for pair, kind in measured
            if not (several and {"clean"} & {*pair.silent})  # a speaker may be silent
            for fault in pairs.faults(pair, kind, source.parent.name if several else "clean")
        ]
        pair = measured[0 if isinstance(estimate, np.ndarray) else -1][0]
        numbers = (pair.lag_ms, pair.snr_db, pair.correlation)
        cells = [cell(value) if np.isfinite(value) else "" for value in numbers]
        cells += [str(n_cut), str(sum(beyond.values())), "; ".join([*notes, *found])]
        rows.append(unknown() | dict(zip(COLUMNS, cells, strict=False)))
    return rows


def _measured(
    mixture: Mixture,
    source: Path,
    estimate: Path | np.ndarray,
    signals: Signals,
    sample_rate: int,
) -> list[tuple[Pair, str]]:
    """The pairs of a row: the mixture where it was read, and the estimate if it is another."""
    kinds = {"noisy" if len(mixture.sources) == 1 else "mix": signals.get(mixture.mixture)}
    if isinstance(estimate, np.ndarray):
        kinds["estimate"] = estimate
    elif estimate != mixture.mixture:
        kinds["estimate"] = signals[estimate]
    return [
        (pairs.measure(samples, signals[source], sample_rate), kind)
        for kind, samples in kinds.items()
        if samples is not None
    ]


def resampled(paths: Iterable[Path], sample_rate: int) -> str:
    """The files that are not at this rate, counted by folder and rate; "" if there are none."""
    counts: Counter[tuple[str, int]] = Counter()
    for path, rate in rate_of_each(paths).items():
        counts[path.parent.name, rate] += rate != sample_rate
    parts = [
        f"{n} files of {shown(folder)}/ at {rate} Hz" for (folder, rate), n in counts.items() if n
    ]
    return f"resampled to {sample_rate} Hz before scoring: {', '.join(parts)}" if parts else ""


def told(warnings: Mapping[str, str], snrs: Mapping[str, float]) -> str:
    """The rows with warnings as one line, the first by name; those with an SNR apart too."""
    found = {name: text for name, text in warnings.items() if text}
    found |= {name: text for name, text in pairs.far(snrs).items() if name not in found}
    return pairs.told(found, len(warnings), "rows have warnings")
