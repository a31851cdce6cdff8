"""train, resume, finetune, prune, runs: trainings and their runs."""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechlab.cli.options import add_device, add_runs, add_set, assigned, check_checkpoint
from speechlab.cli.output import print_settings, print_table, say
from speechlab.errors import UserError
from speechlab.study import experiments

BY = ("parameters", "macs", "time")  # as in pruning.plan, which imports torch
SCHEDULES = ("short", "paper")
OF_PLAN = "pruning."  # begins the settings that are not those of an experiment
OF_CHECKPOINT = ("model", "system", "start")
FREE = ("model.normalize", "model.state_leak_s")  # as in study.launch
UNREAD = ("pruning.to", "pruning.by", "training.direction", "training.decay")  # by prune
UNREAD += tuple(f"training.{n}" for n in ("n_steps", "validate_every", "patience", "log_every"))
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


def train(options: argparse.Namespace) -> None:
    if options.experiment is None:
        if not options.list:
            raise UserError("train needs an EXPERIMENT; `speechlab train --list` lists them")
        print_table(experiments.table())
        print("\nsettings of one: speechlab train EXPERIMENT --list")
        return
    experiments.check_name(options.experiment)
    changes = assigned(options.set)
    if options.list:
        print_settings(_experiment(options, changes))
        return
    _check_run(options, changes)
    from speechlab.study import launch

    experiment = _experiment(options, changes)
    _print_result(launch.train(experiment, _folder(options), device=options.device))


def resume(options: argparse.Namespace) -> None:
    from speechlab.training.runs import Run

    Run.open(options.folder)
    changes = {k.removeprefix("training."): v for k, v in assigned(options.set).items()}
    from speechlab.study import launch

    _print_result(launch.resume(options.folder, changes, device=options.device))


def finetune(options: argparse.Namespace) -> None:
    changes = assigned(options.set)
    settings = {key.partition(".")[2]: changes.pop(key) for key in FREE if key in changes}
    _refuse_model(changes, "finetune")
    experiments.check_name(options.experiment)
    check_checkpoint(options.checkpoint)
    _check_run(options, changes)
    from speechlab.study import launch

    experiment = _experiment(options, changes)
    where = options.checkpoint, experiment, _folder(options)
    run = launch.finetune(*where, settings, device=options.device)
    _print_result(run)


def prune(options: argparse.Namespace) -> None:
    changes = assigned(options.set)
    _refuse_model(changes, "prune")
    if unread := [key for key in changes if key in UNREAD]:
        raise UserError(
            f"prune does not read {unread[0]}; leave it out: --to, --by and the settings of "
            "`pruning` say when it ends"
        )
    of_plan = {key: changes.pop(key) for key in list(changes) if key.startswith(OF_PLAN)}
    of_plan = {key.removeprefix(OF_PLAN): value for key, value in of_plan.items()}
    of_plan |= {"to": number(options.to), "by": options.by}
    experiments.check_name(options.experiment)
    check_checkpoint(options.checkpoint)
    _check_run(options, changes)
    from speechlab.config import replaced
    from speechlab.pruning import plan
    from speechlab.study.prune import prune

    config = replaced(plan.SCHEDULES[options.schedule], of_plan)
    experiment = _experiment(options, changes)
    where = _folder(options)
    run = prune(options.checkpoint, experiment, config, where, device=options.device)
    last = run.validations.iloc[-1]
    say(f"{run.folder}: {run.progress['ended']} at step {run.step}")
    sizes = f"{last['n_params']:,.0f} parameters, {last['macs_per_second'] / 1e6:.4g} M MACs/s"
    best = run.best_known
    say(f"{sizes}, {best['metric']} {best['score']:.4g} on dev: {run.best}")


def _refuse_model(changes: dict[str, Any], command: str) -> None:
    """UserError for settings that the checkpoint gives."""
    if fixed := [key for key in changes if key.partition(".")[0] in OF_CHECKPOINT]:
        raise UserError(f"{command} takes the model from the checkpoint; leave {fixed[0]} out")


def number(text: str) -> float:
    """200k, 1.5M, 0.05. UserError for anything else."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([kMG]?)", text)
    if not found:
        raise UserError(f"--to takes a number such as 200k, 1.5M or 0.05, not '{text}'")
    return float(found[1]) * UNITS[found[2]]


def list_runs(options: argparse.Namespace) -> None:
    from speechlab.training import runs

    folder = _folder(options)
    if options.names:
        print(runs.compare(options.names, folder).to_string())
    elif rows := runs.listing(folder):
        print_table(rows)
    else:
        say(f"no runs in {folder}")


def _one_error(run: Callable[[argparse.Namespace], None]) -> Callable[..., None]:
    """The command; if several processes (torchrun) fail alike, one of them prints the error."""

    def run_once(options: argparse.Namespace) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return run(options)
        from speechlab.training.distributed import one_voice

        with one_voice():
            run(options)

    return run_once


def _experiment(options: argparse.Namespace, changes: dict[str, Any]) -> Any:
    """The named experiment with the run's name and the changes."""
    from speechlab.study.experiment import changed

    named = {"name": options.name} if options.name else {}
    return changed(experiments.lookup(options.experiment), changes | named)


def _check_run(options: argparse.Namespace, changes: dict[str, Any]) -> None:
    """UserError for a bad name of the run or a corpus that is not prepared."""
    from speechlab.data.corpora import catalogue
    from speechlab.training.runs import check_name

    check_name(str(options.name or changes.get("name", options.experiment)))
    corpora = changes.get("corpora", experiments.setting(options.experiment, "corpora"))
    if isinstance(corpora, list | tuple):
        catalogue.prepared(map(str, corpora))


def _folder(options: argparse.Namespace) -> Path:
    from speechlab.training.runs import FOLDER

    return Path(options.runs or FOLDER)


def _print_result(run: Any) -> None:
    from speechlab.storage import state
    from speechlab.training.distributed import is_writer

    if not is_writer():
        return
    ended, best = state.values(run.last)["ended"], run.best_known
    say(f"{run.folder}: {ended} at step {run.step} of {run.settings['training']['n_steps']}")
    if best:
        score = f"{best['metric']} {best['score']:.4g} at step {best['step']}"
        say(f"best on dev: {score}: {run.best}")


def add(commands: argparse._SubParsersAction) -> None:
    _add_train(commands)
    _add_resume(commands)
    _add_finetune(commands)
    _add_prune(commands)
    command = commands.add_parser("runs", help="list all runs, or compare some")
    command.add_argument("names", nargs="*", metavar="NAME", help="runs to compare; default: list")
    add_runs(command)
    command.set_defaults(run=list_runs)


def _add_train(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "train",
        help="train an experiment of the study, or resume its run",
        description="Writes results/runs/NAME: configuration, history, dev scores, best model. "
        "Interrupt at any time and rerun the command to resume: the result is the same, bit for "
        "bit. Under torchrun each process computes a part of every batch.",
    )
    command.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="a name in --list")
    command.add_argument(
        "--list", action="store_true", help="list the experiments, or the settings of one, and exit"
    )
    command.add_argument("-n", "--name", help="of the run; default: the experiment's")
    _add_training(command)
    command.set_defaults(run=_one_error(train))


def _add_resume(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "resume",
        help="continue a run for more steps or with another schedule",
        description="To resume an interrupted run, rerun the command that began it; `resume` does "
        "it too. --set changes the schedule (n_steps, lr, ...), and config.json records the "
        "change. Settings that the finished steps depended on cannot change.",
    )
    command.add_argument("folder", metavar="RUN", help="its folder, such as results/runs/NAME")
    add_device(command)
    add_set(command, "n_steps=20000, or lr=1e-4")
    command.set_defaults(run=_one_error(resume))


def _add_finetune(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "finetune",
        help="train the model of a checkpoint further",
        description="The checkpoint gives the model; of its settings, model.normalize and "
        "model.state_leak_s can change. The experiment gives all other settings. Writes "
        "results/runs/NAME as `train` does. Interrupt at any time and rerun the command to resume.",
    )
    command.add_argument("checkpoint", help="a published name, a file, or the folder of a run")
    command.add_argument("--experiment", default="finetune", help="default: %(default)s")
    command.add_argument("-n", "--name", required=True, help="of the new run")
    _add_training(command)
    command.set_defaults(run=_one_error(finetune))


def _add_prune(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "prune",
        help="make a model smaller: remove channels and train by turns",
        description="Writes results/runs/NAME: a row of history.csv for each removal, dev scores "
        "for each cycle, and the smallest model so far. Interrupt at any time and rerun the "
        "command to resume. The result is an ordinary model: enhance, stream or finetune it.",
    )
    command.add_argument("checkpoint", help="a published name, a file, or the folder of a run")
    command.add_argument("--to", required=True, metavar="SIZE", help="200k, 1.5M, 0.05")
    command.add_argument(
        "--by",
        choices=BY,
        default="parameters",
        help="what SIZE counts: parameters; macs, multiply-accumulates per second of input; time, "
        "measured seconds of a processor core per second of input. Default: %(default)s",
    )
    command.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default="short",
        help="short: hours on a processor for a small model; paper: CleanUMamba's, days on a GPU. "
        "Default: %(default)s",
    )
    command.add_argument(
        "--experiment",
        default="finetune",
        help="data, losses and training between removals; default: %(default)s",
    )
    command.add_argument("-n", "--name", required=True, help="of the new run")
    add_runs(command)
    add_device(command)
    add_set(
        command,
        "pruning.ranking.multiple=8, pruning.measure=random, training.lr=1e-3, "
        "objective=distillation",
    )
    command.set_defaults(run=prune)


def _add_training(command: argparse.ArgumentParser) -> None:
    add_runs(command)
    add_device(command)
    add_set(command, "training.lr=1e-3, 'mixture.snr_db=[0, 10]'; `train NAME --list` lists all")
