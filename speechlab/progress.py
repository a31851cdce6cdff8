"""Progress reporting: a bar on a terminal, lines in a log, a pipe or a notebook.

Lines are at least EVERY_S apart. Three more at the end give what was done, its time and its
outcome. A process that watches this one, as `speechlab study` watches a notebook, names a file in
the environment variable WATCHED. The file holds JSON: `now`, the newest count, and `left_s`, the
seconds for the rest.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tqdm import tqdm

EVERY_S = 60.0  # between two lines
NOTED_S = 2.0  # between two writes to the file of WATCHED
WATCHED = "SPEECHLAB_PROGRESS"
QUIET = "SPEECHLAB_QUIET"  # set: nothing is reported; `-q` sets it, also for child processes

Tell = Callable[[str], None]  # takes one line for the user


def on_stderr(line: str) -> None:
    """A line on stderr, above a bar."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def clock(seconds: float) -> str:
    """Minutes and seconds, 02:05; with hours, 1:02:05."""
    return tqdm.format_interval(seconds)


class Report:
    """The progress of some work: `with Report("enhance", 12) as report: report.update()`.

    note: the newest values, shown behind the count. outcome: the last line of the summary.
    """

    def __init__(
        self,
        label: str,
        total: float | None,
        unit: str = "file",
        initial: float = 0,
        shown: bool = True,
        tell: Tell | None = None,
    ) -> None:
        """Nothing is shown until the work begins.

        label: name of the work.
        total: units of work in all; None where it is unknown.
        unit: name of one, as "file"; "B" for bytes.
        initial: units that an earlier run did.
        shown: whether to report on stderr.
        tell: takes the lines instead; then there is no bar.
        """
        self.label, self.total, self.unit = label, total, unit
        self.done = self.first = initial
        self.note = self.outcome = ""
        shown = shown and not os.environ.get(QUIET)
        self._tell = None if os.environ.get(QUIET) else tell or (on_stderr if shown else None)
        self._has_bar = tell is None and shown and sys.stderr.isatty()
        self._watched = os.environ.get(WATCHED, "")
        self.restart()

    def __enter__(self) -> Self:
        self.restart()
        form = {"unit": self.unit, "unit_scale": self.unit == "B", "total": self.total}
        self._bar = tqdm(desc=self.label, initial=self.first, disable=not self._has_bar, **form)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._bar.close()
        if kind is None and self._tell and not self._has_bar:
            for line in self.summary():
                self._tell(f"{self.label}: {line}")

    def restart(self) -> None:
        """Take the time from here on."""
        self._begun_s = self._told_s = time.monotonic()
        self._noted_s = -math.inf

    def update(self, n: float = 1) -> None:
        """Call when `n` more units are done."""
        self.done += n
        if self._has_bar:
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(n)
        self.say()

    def say(self, first: bool = False) -> None:
        """Give a line where the last one is EVERY_S old. first: give it in any case."""
        now = time.monotonic()
        if self._watched and now - self._noted_s >= NOTED_S:
            self._noted_s = now
            noted = {"now": f"{self.label}: {self._count()}", "left_s": self.left_s()}
            with contextlib.suppress(OSError):
                Path(self._watched).write_text(json.dumps(noted))
        if first or now - self._told_s >= EVERY_S:
            self._told_s = now
            if self._tell and not self._has_bar:
                self._tell(f"{self.label}: {self.line()}")

    def line(self) -> str:
        """What is done, the newest values, and the remaining time."""
        left_s = self.left_s()
        left = "" if left_s is None else f"{clock(left_s)} left"
        return ", ".join(filter(None, (self._count(), self.note, left)))

    def left_s(self) -> float | None:
        """Seconds for the rest at the rate so far; None where that is not known."""
        n_done, left = self.done - self.first, (self.total or -math.inf) - self.done
        if n_done <= 0 or left < 0:
            return None
        return (time.monotonic() - self._begun_s) / n_done * left

    def summary(self) -> list[str]:
        """Three lines: what was done, its time, its outcome."""
        n_done, took_s = self.done - self.first, time.monotonic() - self._begun_s
        rate = ""
        if self.unit == "B":
            rate = f", {tqdm.format_sizeof(n_done / max(took_s, 1e-3))}B a second"
        elif n_done > 0:
            rate = f", {took_s / n_done:.3g} s a {self.unit}"
        return [
            ", ".join(filter(None, (self._count(), self.note))),
            f"took {clock(took_s)}{rate}",
            self.outcome or "finished",
        ]

    def _count(self) -> str:
        if self.unit == "B":
            total = f" of {tqdm.format_sizeof(self.total)}B" if self.total else ""
            return f"{tqdm.format_sizeof(self.done)}B{total}"
        total = f" of {self.total:g}" if self.total is not None else ""
        return f"{self.unit} {round(self.done, 1):.10g}{total}"  # a file may be done in parts
