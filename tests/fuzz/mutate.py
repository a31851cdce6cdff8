"""Mutated files, seeded, and the count of what the program said to each.

A fuzz test has a function `tried(random, folder)`: it makes one file with `random`, gives it to the
program and returns "opened" or another short word. It may raise a UserError, which is counted as a
refusal. `survey` calls it in a process of its own and asserts that nothing else is raised, nothing
hangs, memory stays bounded and no temporary file is left.

Case i is the same in every run: its random numbers have the seed i. A short run takes the first
cases of the long run, which `make fuzz` starts (SPEECHLAB_FUZZ=full).
"""

import importlib
import json
import os
import re
import resource
import select
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from speechlab.errors import LONGEST_MESSAGE, UserError
from tests.support import warm

HANG_S = 300  # without an answer to one case; a busy machine needs seconds
FULL = os.environ.get("SPEECHLAB_FUZZ") == "full"
N_SHOWN = 25  # outcomes in the printed table

Tried = Callable[[Random, Path], str]


def survey(tried: Tried, folder: Path, short: int, full: int, most_mb: float = 300) -> Counter[str]:
    """Try `short` cases (`full` in `make fuzz`), print the counts, assert that none is a fault.

    most_mb: growth of the process's peak memory over all cases.
    """
    n, name = full if FULL else short, f"{tried.__module__}:{tried.__qualname__}"
    rows, ended = _rows(name, n, folder)
    outcomes = Counter(row["outcome"] for row in rows)
    peak, slowest = (max((row[key] for row in rows), default=0) for key in ("mb", "seconds"))
    lines = [f"\n{name}: {len(rows)} of {n} cases, {peak:.0f} MB, slowest {slowest:.1f} s"]
    lines += [f"{count:6d}  {outcome}" for outcome, count in outcomes.most_common(N_SHOWN)]
    sys.stdout.write("\n".join(lines) + "\n")
    faults = [f"case {row['index']}: {row['fault']}" for row in rows if row["fault"]]
    assert not faults, "\n".join(faults[:5])
    assert len(rows) == n, f"case {len(rows)} of {name}: {ended}"
    first = next((row["index"] for row in rows if row["mb"] > most_mb), None)
    assert first is None, f"case {first} of {name}: memory grows by more than {most_mb} MB"
    return outcomes


def any_bytes(content: bytes, random: Random) -> bytes:
    """Content with one to four changes: flips, odd numbers, cuts, copies and insertions."""
    for _ in range(random.choice((1, 1, 2, 4))):
        content = random.choice((_flip, _flip, _number, _number, _cut, _copy, _insert))(
            content, random
        )
    return content


def any_json(value: Any, random: Random) -> Any:
    """A JSON value with one change: at a random place, odd value, missing, renamed or added key."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice([*value])
        if random.random() < 0.7:
            return {**value, key: any_json(value[key], random)}
        rest = {k: v for k, v in value.items() if k != key}
        return random.choice((rest, {**rest, any_text(random): value[key]}, {**value, "x": 1}))
    if isinstance(value, list) and value and random.random() < 0.8:
        place = random.randrange(len(value))
        changed = [*value]
        changed[place : place + 1] = random.choice(
            ([any_json(value[place], random)], [], [value[place]] * 3)
        )
        return changed
    return random.choice((*ODD_VALUES, any_text(random), any_number(random)))


def any_text(random: Random) -> str:
    """A name that may hold anything."""
    odd = ("", "../x", "a" * 5000, "\x1b[2J\r\n", "\ud800", "²é", "\0", "-1")
    return random.choice((*odd, "kind", "config", "self"))


def any_number(random: Random) -> int | float:
    """A number at or past the edge of a type, or one near it."""
    power = 2 ** random.choice((7, 8, 15, 16, 31, 32, 48, 62, 63, 64))
    return random.choice((-1, 0, 1, 1e300, -power, power, power - 1, random.randrange(power)))


def nested(depth: int) -> str:
    """JSON of lists in lists."""
    return "[" * depth + "]" * depth


ODD_VALUES = (None, True, False, [], {}, [[]], "", 0, 0.5, -1, 10**400, float("nan"), float("inf"))


def _flip(content: bytes, random: Random) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 3, 16))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _number(content: bytes, random: Random) -> bytes:
    """An odd integer of 1 to 8 bytes in the place of others, more often near the start."""
    n_bytes = random.choice((1, 2, 4, 4, 8))
    value = int(random.choice((0, 1, -1, any_number(random)))) % 256**n_bytes
    most = max(len(content) - n_bytes, 0)
    place = random.randint(0, random.choice((most, min(most, 128))))
    order = random.choice(("little", "big"))
    return content[:place] + value.to_bytes(n_bytes, order) + content[place + n_bytes :]


def _span(content: bytes, random: Random) -> tuple[int, int]:
    first = random.randint(0, len(content))
    return first, random.randint(first, min(len(content), first + random.choice((4, 64, 4096))))


def _cut(content: bytes, random: Random) -> bytes:
    first, last = _span(content, random)
    return random.choice((content[:first], content[:first] + content[last:]))


def _copy(content: bytes, random: Random) -> bytes:
    (first, last), place = _span(content, random), random.randint(0, len(content))
    return content[:place] + content[first:last] + content[place:]


def _insert(content: bytes, random: Random) -> bytes:
    place = random.randint(0, len(content))
    return content[:place] + random.randbytes(random.choice((1, 4, 100))) + content[place:]


def _rows(name: str, n: int, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Rows of `_serve` from a process, until its end or a hang; and how it ended."""
    reads, writes = os.pipe()
    rows, rest = [], b""
    with os.fdopen(writes, "wb") as sink, (folder / "errors").open("w+") as errors:
        given = ("-m", "tests.fuzz.mutate", name, n, folder)
        process = warm.start(*given, cwd=warm.ROOT, stdout=sink, stderr=errors)
    with process, os.fdopen(reads, "rb", buffering=0) as source:
        while select.select([source], [], [], HANG_S)[0]:
            received = source.read(1 << 16)
            if not received:
                said = (folder / "errors").read_text(errors="replace")[-2000:]
                return rows, f"the process ended with {process.wait()}\n{said}"
            *lines, rest = (rest + received).split(b"\n")
            rows += [json.loads(line) for line in lines]
    return rows, f"no answer for {HANG_S} s"


def _serve(name: str, n: int, folder: Path) -> None:
    """Try case after case; print a row for each."""
    module, _, function = name.partition(":")
    tried = getattr(importlib.import_module(module), function)
    before = _peak_mb()
    for index in range(n):
        place, begun = folder / f"case_{index}", time.process_time()
        place.mkdir()
        outcome, fault = _outcome(tried, Random(index), place)
        row = {"index": index, "outcome": outcome, "fault": fault, "mb": _peak_mb() - before}
        row["seconds"] = time.process_time() - begun
        if not fault:
            shutil.rmtree(place)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def _outcome(tried: Tried, random: Random, place: Path) -> tuple[str, str]:
    """What became of a case, and what was wrong with that, or ""."""
    try:
        outcome, fault = tried(random, place), ""
    except UserError as error:
        said = str(error)
        outcome, fault = f"refused: {_family(said, place)}", ""
        if "\n" in said or len(said) > LONGEST_MESSAGE or not said.isprintable():
            fault = f"not one line of at most {LONGEST_MESSAGE} characters: {said!r}"
    except Exception as error:  # noqa: BLE001 (any other error is what the survey looks for)
        outcome, fault = f"FAULT: {type(error).__name__}", traceback.format_exc()[-3000:]
    left = sorted(path.name for path in place.rglob("*.part"))
    return outcome, fault or (f"left {', '.join(left)}" if left else "")


def _family(said: str, place: Path) -> str:
    """A message without what differs from case to case: paths, numbers, quoted names."""
    said = re.sub(rf"{re.escape(str(place))}\S*", "FILE", said)
    said = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", said)
    return re.sub(r"\d[\d,.]*", "N", said)[:90]


def _peak_mb() -> float:
    """Peak memory of this process so far; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
