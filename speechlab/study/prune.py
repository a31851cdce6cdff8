"""From a checkpoint to a smaller model: removals of channels and training by turns.

A pruning is a run with the files of a training. Its best model is the smallest so far. A row of
history.csv is a removal. A row of validations.csv is the checkpoint itself, or the end of a cycle.

A step is a removal or a step of training. Examples come from an integer position and every step
seeds its random draws, so an interrupted pruning resumes exactly. (Where it ends by a measured
time, up to that measurement.)
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechlab.config import from_dict, to_dict
from speechlab.data.loader import Batch, batches
from speechlab.data.mixing import generator
from speechlab.errors import UserError
from speechlab.models import SYSTEMS
from speechlab.models.base import Model
from speechlab.models.macs import n_params
from speechlab.parallel import threads
from speechlab.progress import Report, Tell
from speechlab.pruning import importance, remove
from speechlab.pruning.calibration import scales, trials
from speechlab.pruning.measures import divisors
from speechlab.pruning.plan import PruningConfig, check, enough
from speechlab.pruning.ranking import least_important, together
from speechlab.pruning.removal import cut, cut_optimizer
from speechlab.storage import state as snapshots
from speechlab.study.experiment import PRUNING, Experiment, passes_states
from speechlab.study.launch import begun, starting
from speechlab.training import loggers
from speechlab.training.distributed import World, world_size
from speechlab.training.loop import Dev, Objective, save_best
from speechlab.training.runs import FOLDER, Run
from speechlab.training.schedule import FREE, factor
from speechlab.training.state import State, take_step
from speechlab.weights.checkpoints import load

DRAWS = 2  # stream of random numbers: examples have 0, their order 1
COUNTS = ("n_removals", "n_in_cycle", "n_trained", "position", "final", "ended")
_AGAIN = "begin another run with a lower lr or a clip_norm"


def prune(
    checkpoint: str | Path,
    experiment: Experiment,
    config: PruningConfig,
    folder: str | Path = FOLDER,
    device: str = "cpu",
    progress: bool = True,
    tell: Tell | None = None,
) -> Run:
    """Prune a checkpoint in `folder`/NAME; an existing run resumes.

    experiment: data, objective and training between removals; its schedule is that of a cycle.
    progress, tell: as of `launch.train`. UserError, before anything is written, for invalid
    settings, a corpus that is not prepared, and a target that the checkpoint has reached.
    """
    model = load(checkpoint)
    check(config, model)
    _check_training(experiment)
    experiment = starting(experiment, checkpoint, model)
    run, (objective, train, dev) = begun(experiment, folder, device, **{PRUNING: to_dict(config)})
    training = experiment.training
    with closing(objective), threads(training.n_threads), ExitStack() as stack:
        where = next(objective.parameters()).device
        stack.enter_context(torch.random.fork_rng([where] if where.type == "cuda" else []))
        stack.enter_context(run.locked())
        run.agree(to_dict(training), FREE)
        pruning = Pruning(objective, experiment, config, run)
        if pruning.ended:
            return run
        kept = pruning.state.step if run.last.exists() else -1
        pruning.outputs = loggers.started(training.loggers, run.folder, run.settings, kept)
        for output in pruning.outputs:
            stack.callback(output.close)
        report = Report(run.name, None, "step", pruning.state.step, progress, tell)
        arguments = training.batch_size, training.seed, pruning.position, training.n_workers
        source = stack.enter_context(closing(batches(train, *arguments)))
        with report:
            report.note = pruning.note()
            report.say(first=True)
            if not run.last.exists():
                pruning.begin(dev)
            while not pruning.ended:
                pruning.step(source, dev)
                report.note = pruning.note()
                report.update()
            report.outcome = f"{pruning.ended}: {run.best}"
    return run


def _check_training(experiment: Experiment) -> None:
    """UserError for an objective that cannot change its model, and for a schedule by epochs."""
    if world_size() > 1:
        raise UserError("prune works in one process; start it without torchrun")
    if experiment.objective == "metric_gan":
        raise UserError("prune takes no metric_gan; prune with another objective, then finetune")
    if experiment.training.schedule == "exponential":
        raise UserError("a cycle has no epochs: set training.schedule=cosine or constant")
    if passes_states(experiment):
        raise UserError("a pruned model takes no states of a wider one: set distillation.passed=0")


class Pruning:
    """A pruning under way: the state of its training, its place in the plan, its scales."""

    def __init__(
        self, objective: Objective, experiment: Experiment, config: PruningConfig, run: Run
    ) -> None:
        """At the beginning, or as the run was left."""
        self.objective, self.config, self.run = objective, config, run
        self.training = experiment.training
        self.world = World(next(objective.parameters()).device)
        self.n_removals = 0  # in all
        self.n_in_cycle = 0  # removals in this cycle
        self.n_trained = 0  # steps of training in this cycle
        self.position = 0  # batches taken
        self.final = ""  # why there is no further removal
        self.ended = ""
        self.scales: dict[str, float] = {}
        self.outputs: Sequence[loggers.Logger] = ()
        known = self._left(experiment) if run.last.exists() else {}
        self.state = State(objective, self.training)
        if known:
            self.state.load_state_dict(known)
            self.scales = known["scales"]
            for name in COUNTS:
                setattr(self, name, known[name])

    def _left(self, experiment: Experiment) -> dict[str, Any]:
        """The state in the run; the objective gets a model of its widths."""
        with self.run.offering_previous():
            known = snapshots.from_bytes(snapshots.read(self.run.last), self.run.last)
        kind, model = SYSTEMS[experiment.system]
        self.objective.model = model(from_dict(kind, known["model"])).to(self.world.device)
        return known

    @property
    def model(self) -> Model:
        return self.objective.model

    @property
    def n_steps(self) -> int:
        """Steps of training in this cycle."""
        n_examples = self.config.n_recover if self.final else self.config.n_trained
        return math.ceil(n_examples / (self.training.batch_size * self.training.accumulate))

    def begin(self, dev: Dev) -> None:
        """Score and save the checkpoint itself."""
        self._score(dev)
        self._keep()

    def step(self, source: Iterator[Batch], dev: Dev) -> None:
        """A removal or a step of training; scores and saves the model at the end of a cycle."""
        draws = generator(self.training.seed, self.state.step, 0, DRAWS)
        torch.manual_seed(int(draws.integers(2**63)))
        self.state.step += 1
        self.objective.train()
        if not self.final and self.n_in_cycle < self.config.n_removals:
            n_batches = math.ceil(self.config.n_scored / self.training.batch_size)
            self._remove(self._portion(source, n_batches))
        else:
            self._train(self._portion(source, self.training.accumulate))
        removed = self.final or self.n_in_cycle == self.config.n_removals
        ends_cycle = removed and self.n_trained >= self.n_steps
        if ends_cycle:
            self._score(dev)
            self.ended, self.n_in_cycle, self.n_trained = self.final, 0, 0
        if ends_cycle or self.state.step % self.training.checkpoint_every == 0:
            self._keep()

    def note(self) -> str:
        """What is left of the model."""
        return f"{n_params(self.model):,} parameters, removal {self.n_removals}"

    def _portion(self, source: Iterator[Batch], n: int) -> list[Batch]:
        """The next batches, on the device."""
        self.position += n
        return [next(source).to(self.world.device) for _ in range(n)]

    def _train(self, portion: list[Batch]) -> None:
        cycle = replace(self.training, n_steps=self.n_steps)
        values = take_step(self.state, portion, factor(cycle, self.n_trained, 0), self.world)
        self.n_trained += 1
        self.state.n_bad = self.state.n_bad + 1 if values is None else 0
        if self.state.n_bad >= self.training.max_bad_steps:
            raise UserError(
                f"{self.run.folder}: loss or gradient was not finite in {self.state.n_bad} steps "
                f"in a row; {_AGAIN}"
            )

    def _remove(self, portion: list[Batch]) -> None:
        """Score the channels, remove the least important ones, log a row."""
        model, config = self.model, self.config
        loss = self._with_gradients(portion)
        scores = importance(model, config.measure, config.pairing, self.state.step)
        if config.calibrate_every and self.n_removals % config.calibrate_every == 0:
            costs = divisors(model, config.measure)
            n_batches = math.ceil(config.n_calibrated / self.training.batch_size)
            loss_of = partial(self._loss_of, portion[:n_batches])
            results = trials(model, scores, loss_of, config.ranking, costs)
            self.scales = scales(results, scores, self.scales or None)
        scaled = {name: self.scales.get(name, 1.0) * values for name, values in scores.items()}
        chosen = enough(model, least_important(scaled, config.ranking), config)
        model.zero_grad(set_to_none=True)
        self._narrow(together(chosen))
        self.n_removals += 1
        self.n_in_cycle += 1
        row = {"removal": self.n_removals, "n_channels": sum(len(b) for _, b in chosen)}
        self._log("history", row | self._sizes() | {"loss": loss})
        if config.size(self.model) <= config.to:
            self.final = "reached the target"
        elif not chosen:
            self.final = "every group is at its least width"
        elif self.n_removals >= config.most_removals:
            self.final = f"removed {self.n_removals} times"

    def _narrow(self, channels: dict[str, list[int]]) -> None:
        """Replace the model by one without the channels; averages are cut alike."""
        before, state = self.model, self.state
        known = state.state_dict()
        known["optimizers"] = [cut_optimizer(o, before, channels) for o in known["optimizers"]]
        known["ema"] = cut(state.ema, before.channel_groups(), channels)
        self.objective.model = remove(before, channels)
        known["objective"] = self.objective.state_dict()
        self.state = State(self.objective, self.training)
        self.state.load_state_dict(known)

    def _with_gradients(self, portion: list[Batch]) -> float:
        """The mean loss; `.grad` of the parameters are its gradients."""
        n_examples, total = sum(len(batch.noisy) for batch in portion), 0.0
        self.model.zero_grad(set_to_none=True)
        for batch in portion:
            loss = self._sum_of_losses(batch) / n_examples
            loss.backward()
            total += loss.item()
        return total

    @torch.no_grad()
    def _loss_of(self, portion: list[Batch], model: Model) -> float:
        """The mean loss of another model; counts of batches in the objective stay."""
        own, n_examples = self.model, sum(len(batch.noisy) for batch in portion)
        kept = [(buffer, buffer.clone()) for buffer in self.objective.buffers()]
        self.objective.model = model
        try:
            return sum(self._sum_of_losses(batch).item() for batch in portion) / n_examples
        finally:
            self.objective.model = own
            for buffer, before in kept:
                buffer.copy_(before)

    def _sum_of_losses(self, batch: Batch) -> Tensor:
        """Over the examples of a batch."""
        [phase] = self.state.phases
        terms = phase.terms(batch, {})
        return sum(weight * terms[name].sum() for name, weight in phase.weights.items())

    def _score(self, dev: Dev) -> None:
        """Score on dev; the model becomes the best of the run, log a row."""
        with self.state.deployable() as model:
            frame = dev(model)
            means = frame.select_dtypes("number").mean()
            save_best(self.state, model, frame, means, self.run)
        n_failed = int(frame[self.training.metric].isna().sum())
        row = self._sizes() | means.to_dict() | {"n_files": len(frame), "n_failed": n_failed}
        self._log("validations", row)

    def _sizes(self) -> dict[str, float]:
        return {"n_params": n_params(self.model), "macs_per_second": self.model.macs(1)}

    def _log(self, table: str, row: dict[str, float]) -> None:
        for output in self.outputs:
            output.log(table, {"step": self.state.step, **row})

    def _keep(self) -> None:
        if not self.state.is_finite():
            raise UserError(f"{self.run.folder}: weights are not finite; {_AGAIN}")
        counts = {name: getattr(self, name) for name in COUNTS}
        held = {"scales": self.scales, "model": to_dict(self.model.config)}
        self.run.keep(snapshots.to_bytes({**self.state.state_dict(), **counts, **held}))
