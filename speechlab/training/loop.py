"""The one training loop. Interrupt it at any time; it resumes exactly.

    batches ─ phase by phase: terms (B,) ─ weighted, summed over examples / their global number
            ─ backward ─ gradients summed over processes ─ clip ─ step ─► average of weights
    every so many steps: a row of history.csv; dev scores and the best checkpoint; the whole state

A step is a function of the state before it and of (seed, step): examples come from an integer
position, and every step seeds its random draws. A killed run repeats the steps after its last
checkpoint and gets the same weights, on a CPU bit for bit (same processor type and versions; the
configuration fixes the thread count). The loop sees examples and dev scores, no file of a corpus.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import pandas as pd
import torch
from torch import nn

from speechlab.config import check, from_dict, override, to_dict
from speechlab.data.loader import Batch, batches
from speechlab.data.mixing import Examples
from speechlab.errors import UserError
from speechlab.models import SYSTEMS
from speechlab.models.macs import n_params
from speechlab.parallel import threads
from speechlab.progress import Tell
from speechlab.storage import state as snapshots
from speechlab.storage.atomic import write
from speechlab.training.distributed import World, is_writer, joined
from speechlab.training.objectives import Objective, Phase, Supervised
from speechlab.training.progress import Record, recording
from speechlab.training.runs import Run
from speechlab.training.schedule import CHANGEABLE, FREE, TrainingConfig, epoch_of, factor
from speechlab.training.state import State, take_step
from speechlab.weights import checkpoints

__all__ = ["Objective", "Phase", "Supervised", "TrainingConfig", "fit", "resume"]

Dev = Callable[[nn.Module], pd.DataFrame]  # a model in eval mode -> metrics, one row per dev file


def fit(
    objective: Objective,
    train: Examples,
    dev: Dev,
    config: TrainingConfig,
    run: Run,
    progress: bool = True,
    tell: Tell | None = None,
    score_start: bool = False,
) -> Run:
    """Train the objective's model on its device; a run that has begun is resumed.

    dev: called every `validate_every` steps and at the end.
    progress: whether to report on stderr.
    tell: takes the lines of the report instead, about one a minute.
    score_start: score before the first step too, so that the best is never worse than the start.

    Under torchrun every process calls this; one of them scores, writes and shows progress.
    Raises UserError if the run has another configuration, is in use or is damaged, and if the
    weights, or `max_bad_steps` steps in a row, are not finite.
    """
    check(config)
    if type(objective.model) not in [kind for _, kind in SYSTEMS.values()]:
        raise TypeError(f"{type(objective.model).__name__} is in no SYSTEMS: it cannot be saved")
    device = next(objective.parameters()).device
    with closing(objective), threads(config.n_threads), contextlib.ExitStack() as stack:
        world = stack.enter_context(joined(device))
        # the caller's random generators stay as they are
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if world.writes:
            stack.enter_context(run.locked())
            run.agree(to_dict(config), FREE)
        state = State(objective, config)
        _restore(state, run, world)
        if state.ended():
            return run
        record = stack.enter_context(recording(state, run, world, len(train), progress, tell))
        if score_start and state.best is None and not state.step:
            _validate(state, dev, run, world, record)
        if world.writes and not run.last.exists():
            run.keep(snapshots.to_bytes(state.state_dict()))
        portions = stack.enter_context(closing(_portions(train, config, state.step, world)))
        objective.train()
        while not state.ended():
            portion = next(portions)
            torch.manual_seed(_mixed(config.seed, state.step, world.rank))
            epoch = epoch_of(state.step, config, len(train))
            values = take_step(state, portion, factor(config, state.step, epoch), world)
            _count(state, values)
            if state.n_bad >= config.max_bad_steps:
                raise _not_finite(state, run)
            record.step(sum(batch.n_examples for batch in portion))
            validates = state.step == config.n_steps or state.step % config.validate_every == 0
            if validates or state.step % config.checkpoint_every == 0:
                _keep(state, dev if validates else None, run, world, record)
    return run


def _keep(state: State, dev: Dev | None, run: Run, world: World, record: Record) -> None:
    """Score with `dev`, where given, and write the state; UserError if it is not finite."""
    if not state.is_finite():
        raise _not_finite(state, run)
    if dev is not None:
        _validate(state, dev, run, world, record)
    # after bad steps the state from before them is kept
    if world.writes and (state.n_bad == 0 or state.ended()):
        run.keep(snapshots.to_bytes(state.state_dict()))


def resume(run: Run, changes: Mapping[str, Any]) -> TrainingConfig:
    """The run's configuration with another schedule, for `fit`; the run records it.

    UserError for a setting that would change the steps already done, and for a damaged state: then
    the run records nothing.
    """
    held = run.settings.get("training")
    if held is None:
        raise UserError(f"{run.folder}: has not begun to train; start it with these settings")
    before = from_dict(TrainingConfig, held)
    after = override(before, **changes)
    fixed = sorted(set(changes) - set(CHANGEABLE))
    if fixed:
        can = ", ".join(CHANGEABLE)
        raise UserError(
            f"{run.folder}: {fixed[0]} cannot change in a run that has begun; {can} can"
        )
    if after != before and is_writer():
        with run.locked():
            with run.offering_previous():
                if run.last.exists():
                    snapshots.from_bytes(snapshots.read(run.last), run.last)
            run.change(to_dict(after), changes)
    return after


def _restore(state: State, run: Run, world: World) -> None:
    """Load the run's state, or share the initial one: the same in all processes."""
    content = None
    if world.writes:
        begun = run.last.exists()
        with run.offering_previous():
            content = snapshots.read(run.last) if begun else snapshots.to_bytes(state.state_dict())
    content = world.share(content)
    with run.offering_previous():  # not for an error of another process
        known = snapshots.from_bytes(content, run.last)
    try:
        state.load_state_dict(known)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{run.last}: is the state of another model or objective ({reason}); "
            "choose another name for the run"
        ) from error


def _portions(
    train: Examples, config: TrainingConfig, step: int, world: World
) -> Iterator[list[Batch]]:
    """The batches of each step from `step` on, on the device; closing it ends the workers."""
    source = batches(
        train,
        config.batch_size,
        config.seed,
        position=step * config.accumulate,
        n_workers=config.n_workers,
        rank=world.rank,
        world_size=world.size,
    )
    with closing(source):
        while True:
            yield [next(source).to(world.device) for _ in range(config.accumulate)]


def _count(state: State, values: Mapping[str, float] | None) -> None:
    state.step += 1
    if values is None:
        state.n_skipped += 1
        state.n_bad += 1
        return
    state.n_bad = 0
    state.n_summed += 1
    for name, value in values.items():
        state.sums[name] = state.sums.get(name, 0.0) + value


def _validate(state: State, dev: Dev, run: Run, world: World, record: Record) -> None:
    """Score on dev; save the best so far with its scores per file."""
    score, n_failed = math.nan, 0
    if world.writes:
        with state.deployable() as model:
            frame = dev(model)
            means = frame.select_dtypes("number").mean()  # each without the files that failed
            if state.config.metric not in means:
                names = ", ".join(means.index)
                raise UserError(
                    f"the dev scores have no metric '{state.config.metric}'; they have: {names}"
                )
            score = float(means[state.config.metric])
            n_failed = int(frame[state.config.metric].isna().sum())
            if _is_better(score, n_failed, state):
                save_best(state, model, frame, means, run)
            record.validation(means, len(frame), n_failed)
    score, n_failed = world.share_number(score), int(world.share_number(n_failed))
    if _is_better(score, n_failed, state):
        state.best, state.best_failed = score, n_failed
        state.best_step, state.n_since = state.step, 0
    else:
        state.n_since += 1


def _is_better(score: float, n_failed: int, state: State) -> bool:
    """Fewer failed files first, since a mean without the hard files is no better; then the mean.

    The first score is always the best so far; if all files failed, the mean is NaN.
    """
    if state.best is None or n_failed != state.best_failed:
        return state.best is None or n_failed < state.best_failed
    return score > state.best if state.config.direction == "max" else score < state.best


def save_best(
    state: State, model: nn.Module, frame: pd.DataFrame, means: pd.Series, run: Run
) -> None:
    """Write the model, and its scores per file, as the best of the run."""
    known, config = run.settings, state.config
    about = {"run": run.name, "step": state.step, "metric": config.metric}
    about |= {"score": float(means[config.metric]), "n_files": len(frame)}
    about |= {"n_failed": int(frame[config.metric].isna().sum()), "ema": config.ema}
    about |= {"n_params": n_params(model), "seed": config.seed}
    about |= {"git_commit": known.get("git_commit", ""), "data_hash": known["data_hash"]}
    about |= {"means": means.to_dict()}
    checkpoints.save(run.best, model, about)
    write(run.folder / "dev.csv", frame.to_csv(index=False))
    readable = about | {"config": to_dict(model.config)}
    write(run.folder / "best.json", json.dumps(readable, indent=2) + "\n")


def _not_finite(state: State, run: Run) -> UserError:
    found = f"loss or gradient was not finite in {state.n_bad} steps in a row, up to"
    if not state.is_finite():
        found = "weights are not finite at"
    return UserError(
        f"{run.folder}: {found} step {state.step}; {run.last} holds the last good state: resume "
        "it with a lower lr or a clip_norm"
    )


def _mixed(seed: int, step: int, rank: int) -> int:
    """A seed for one step of one process, unrelated to those of other steps."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # PyTorch takes 63 bits
