"""The times of notebooks: what is expected, what runs in parallel, what a study took.

`make study` stays under 15 minutes on two quiet cores: a test adds up MINUTES as the study runs
the notebooks. So a new notebook comes with its minutes.
"""

import contextlib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from speechlab.progress import clock

QUICK = "quick"  # the default profile: minutes on two cores
# Notebooks about trainings: they need the first notebook only, and later ones need them.
SIDE_BY_SIDE = range(2, 10)
MINUTES = {  # by number, at profile quick: a first run on two quiet cores, two trainings at a time
    "01": 1.0,
    "02": 6.0,
    "03": 4.0,
    "04": 4.0,
    "05": 3.0,
    "06": 3.0,
    "10": 1.0,
    "11": 0.5,
}
SMOKE_MINUTES = 0.5


class Planned(Protocol):
    """A parameter set of the study."""

    profile: str
    copy: Path  # executed; its name begins with the notebook's number


class Ended(Protocol):
    """An outcome of the study."""

    status: str
    seconds: float
    wanted: Planned


def is_trained(one: Planned) -> bool:
    """Whether a notebook needs only the first one and measures no times."""
    return int(one.copy.name[:2]) in SIDE_BY_SIDE


def expected_s(one: Planned) -> float:
    """Seconds that a notebook takes: those of its last copy, else MINUTES; 0 where unknown."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        held = json.loads(one.copy.read_text(encoding="utf-8"))
        return float(held["metadata"]["speechlab"]["seconds"])
    minutes = {"smoke": SMOKE_MINUTES, QUICK: MINUTES.get(one.copy.name[:2], 0.0)}
    return 60 * minutes.get(one.profile, 0.0)


def left(planned_s: float, took_s: float, work_s: float) -> str:
    """What is left of a notebook, in words; "" where nothing is known.

    planned_s: of the whole notebook, 0 where unknown. work_s: what its running work still takes.
    """
    if took_s + work_s < planned_s:
        return f"about {clock(planned_s - took_s)} left"
    least = f"at least {clock(work_s)} left" if work_s else ""
    longer = f"longer than the planned {clock(planned_s)}" if planned_s else ""
    return ", ".join(filter(None, (longer, least)))


def groups(wanted: Iterable[Planned], jobs: int) -> Iterable[tuple[int, list[Planned]]]:
    """(number that run in parallel, sets) of each group; groups run one after another.

    Of parallel ones the longest start first, so that the lanes end together.
    """
    for side_by_side, group in itertools.groupby(wanted, is_trained):
        members, lanes = list(group), jobs if side_by_side else 1
        yield lanes, sorted(members, key=expected_s, reverse=True) if lanes > 1 else members


def planned_s(wanted: Iterable[Planned], jobs: int) -> float:
    """Seconds that the sets take in their groups."""
    total = 0.0
    for n_lanes, group in groups(wanted, jobs):
        lanes = [0.0] * n_lanes
        for one in group:
            lanes[lanes.index(min(lanes))] += expected_s(one)
        total += max(lanes)
    return total


def summary(outcomes: Sequence[Ended], seconds: float) -> list[str]:
    """Three lines: how many ended how, their time, where their output is."""
    statuses = [one.status for one in outcomes]
    counts = (f"{statuses.count(one)} {one}" for one in ("done", "finished", "failed"))
    last = max(outcomes, key=lambda one: one.seconds)
    longest = f"; the longest: {last.wanted.copy.stem}, {clock(last.seconds)}"
    return [
        f"{len(outcomes)} notebooks: {', '.join(counts)}",
        f"took {clock(seconds)}{longest if last.seconds else ''}",
        f"executed notebooks: {last.wanted.copy.parent}; what they write: results/local",
    ]
