"""Progress reporting: rows of the loggers, a bar, lines in a log."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import pandas as pd
from tqdm import tqdm

from speechlab.training import loggers
from speechlab.training.distributed import World
from speechlab.training.runs import Run
from speechlab.training.schedule import epoch_of, factor
from speechlab.training.state import State, columns

EVERY_S = 60.0  # between two lines without a validation

Tell = Callable[[str], None]  # takes one line for the user


@contextlib.contextmanager
def recording(
    state: State, run: Run, world: World, length: int, progress: bool, tell: Tell | None
) -> Iterator["Record"]:
    """The record of a training; only that of the writing process has outputs.

    length: examples in an epoch. progress: whether to show a bar.
    """
    shown = progress and world.writes
    options = {"total": state.config.n_steps, "initial": state.step, "unit": "step"}
    outputs = []
    if world.writes:
        done = state.step if run.last.exists() else -1  # without a checkpoint all rows are dropped
        outputs = loggers.started(state.config.loggers, run.folder, run.settings, done)
    heard = world.writes and tell is not None
    try:
        with tqdm(desc=run.name, disable=not shown, **options) as bar:
            lines = (lambda line: tell(f"{run.name}: {line}")) if heard else (lambda line: None)
            yield Record(state, outputs, bar, lines, length)
    finally:
        for output in outputs:
            output.close()


class Record:
    """Records every step and validation of a training."""

    def __init__(
        self, state: State, outputs: list[loggers.Logger], bar: tqdm, tell: Tell, length: int
    ) -> None:
        """length: examples in an epoch."""
        self.state, self.outputs, self.bar = state, outputs, bar
        self.tell, self.length = tell, length
        self.means: dict[str, float] = {}  # of the steps since the last row
        self.rate = math.nan  # examples a second
        self.dev: dict[str, str] = {}
        self.first_step = state.step
        self._restart_clock()
        self.begun_s = self.interval_s
        self._line()

    def step(self, n_examples: int) -> None:
        """Call once per step; writes a row every `log_every` steps and at the end."""
        state, config = self.state, self.state.config
        self.n_examples += n_examples
        self.means = {
            name: state.sums.get(name, 0.0) / state.n_summed if state.n_summed else math.nan
            for name in columns(state.phases)
        }
        self.bar.update()
        if state.step % config.log_every == 0 or state.step >= config.n_steps:
            self._row()
        if time.monotonic() - self.told_s >= EVERY_S:
            self._measure_rate()
            self._line()

    def validation(self, means: pd.Series, n_files: int, n_failed: int) -> None:
        """means: of each metric over its files; n_failed: files without the selection metric."""
        metric = self.state.config.metric
        row = {"step": self.state.step, **means.to_dict(), "n_files": n_files}
        self._log("validations", row | {"n_failed": n_failed})
        failed = f" ({n_failed} of {n_files} files failed)" if n_failed else ""
        self.dev = {f"dev {metric}": f"{means[metric]:.4g}{failed}"}
        self._bar()
        self._line()
        self._restart_clock()
        if self.state.step == self.first_step:
            self.begun_s = self.interval_s  # step times exclude this first score

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
        self._bar()
        self._restart_clock()

    def _log(self, table: str, row: dict[str, float]) -> None:
        for output in self.outputs:
            output.log(table, row)

    def _bar(self) -> None:
        self.bar.set_postfix(self._known([phase.name for phase in self.state.phases]))

    def _line(self) -> None:
        """Like the bar, with the terms of the loss and the remaining time."""
        step, n_steps = self.state.step, self.state.config.n_steps
        self.told_s = time.monotonic()
        terms = [name for name in self.means if not name.endswith(".grad_norm")]
        parts = [f"step {step} of {n_steps}"]
        parts += [f"{name} {value}" for name, value in self._known(terms).items()]
        if step > self.first_step:
            a_step_s = (self.told_s - self.begun_s) / (step - self.first_step)
            parts.append(f"{tqdm.format_interval(a_step_s * (n_steps - step))} left")
        self.tell(", ".join(parts))

    def _known(self, names: list[str]) -> dict[str, str]:
        """These means, the last rate and the last dev score, if known."""
        shown = {name: f"{self.means[name]:.4g}" for name in names if name in self.means}
        skipped = {"skipped": f"{self.state.n_skipped}"} if self.state.n_skipped else {}
        rate = {} if math.isnan(self.rate) else {"samples/s": f"{self.rate:.3g}"}
        return shown | self.dev | rate | skipped

    def _measure_rate(self) -> None:
        if self.n_examples:  # since the last row or validation
            self.rate = self.n_examples / max(1e-9, time.monotonic() - self.interval_s)

    def _restart_clock(self) -> None:
        self.interval_s, self.n_examples = time.monotonic(), 0
