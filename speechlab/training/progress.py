"""Progress reporting of a training: rows of the loggers, and what a `Report` shows."""

import contextlib
import math
import time
from collections.abc import Iterator

import pandas as pd

from speechlab.progress import Report, Tell
from speechlab.training import loggers
from speechlab.training.distributed import World
from speechlab.training.runs import Run
from speechlab.training.schedule import epoch_of, factor
from speechlab.training.state import State, columns


@contextlib.contextmanager
def recording(
    state: State, run: Run, world: World, length: int, progress: bool, tell: Tell | None
) -> Iterator["Record"]:
    """The record of a training; only that of the writing process has outputs.

    length: examples in an epoch. progress, tell: as `Report` takes them.
    """
    outputs = []
    if world.writes:
        done = state.step if run.last.exists() else -1  # without a checkpoint all rows are dropped
        outputs = loggers.started(state.config.loggers, run.folder, run.settings, done)
    shown = {"shown": progress, "tell": tell} if world.writes else {"shown": False}
    try:
        with Report(run.name, state.config.n_steps, "step", state.step, **shown) as report:
            yield Record(state, outputs, report, length)
            if best := run.best_known:
                score = f"{best['metric']} {best['score']:.4g} at step {best['step']}"
                report.outcome = f"best on dev: {score}"
    finally:
        for output in outputs:
            output.close()


class Record:
    """Records every step and validation of a training."""

    def __init__(
        self, state: State, outputs: list[loggers.Logger], report: Report, length: int
    ) -> None:
        """length: examples in an epoch."""
        self.state, self.outputs, self.report, self.length = state, outputs, report, length
        self.means: dict[str, float] = {}  # of the steps since the last row
        self.rate = math.nan  # examples a second
        self.dev: dict[str, str] = {}
        self.first_step = state.step
        self._restart_clock()
        report.say(first=True)

    def step(self, n_examples: int) -> None:
        """Call once per step; writes a row every `log_every` steps and at the end."""
        state, config = self.state, self.state.config
        self.n_examples += n_examples
        self.means = {
            name: state.sums.get(name, 0.0) / state.n_summed if state.n_summed else math.nan
            for name in columns(state.phases)
        }
        if state.step % config.log_every == 0 or state.step >= config.n_steps:
            self._row()
        self._note()
        self.report.update()

    def validation(self, means: pd.Series, n_files: int, n_failed: int) -> None:
        """means: of each metric over its files; n_failed: files without the selection metric."""
        metric = self.state.config.metric
        row = {"step": self.state.step, **means.to_dict(), "n_files": n_files}
        self._log("validations", row | {"n_failed": n_failed})
        failed = f" ({n_failed} of {n_files} files failed)" if n_failed else ""
        self.dev = {f"dev {metric}": f"{means[metric]:.4g}{failed}"}
        self._note()
        if self.state.step == self.first_step:
            self.report.restart()  # step times exclude this first score
        self.report.say()
        self._restart_clock()

    def _row(self) -> None:
        """One row of the history."""
        state, config = self.state, self.state.config
        done = state.step - 1
        epoch = epoch_of(done, config, self.length)
        lr = state.rates[-1][0] * factor(config, done, epoch)
        self._measure_rate()
        row = {"step": state.step, "epoch": epoch, "lr": lr, **self.means}
        self._log("history", row | {"n_skipped": state.n_skipped, "samples_per_s": self.rate})
        state.sums, state.n_summed = {}, 0
        self._restart_clock()

    def _log(self, table: str, row: dict[str, float]) -> None:
        for output in self.outputs:
            output.log(table, row)

    def _note(self) -> None:
        """The terms of the loss, the last dev score and the last rate, where known."""
        self._measure_rate()
        terms = [name for name in self.means if not name.endswith(".grad_norm")]
        shown = {name: f"{self.means[name]:.4g}" for name in terms}
        skipped = {"skipped": f"{self.state.n_skipped}"} if self.state.n_skipped else {}
        rate = {} if math.isnan(self.rate) else {"samples/s": f"{self.rate:.3g}"}
        values = shown | self.dev | rate | skipped
        self.report.note = ", ".join(f"{name} {value}" for name, value in values.items())

    def _measure_rate(self) -> None:
        if self.n_examples:  # since the last row or validation
            self.rate = self.n_examples / max(1e-9, time.monotonic() - self.interval_s)

    def _restart_clock(self) -> None:
        self.interval_s, self.n_examples = time.monotonic(), 0
