"""The commands of data, training and the study; `cli` has the others."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechlab.errors import UserError


def list_data(options: argparse.Namespace) -> None:
    import pandas as pd

    from speechlab.data import manifest
    from speechlab.data.corpora.catalogue import CORPORA, where

    rows = [
        {
            "corpus": name,
            "here": "yes" if (where(name) / manifest.ABOUT).exists() else "no",
            "GB": f"{corpus.gigabytes:g}" if corpus.gigabytes else "",
            "what": corpus.title,
        }
        for name, corpus in CORPORA.items()
    ]
    print(pd.DataFrame(rows).to_string(index=False))
    print("\nlicence, source, layout and options: speechlab data show CORPUS")


def show_data(options: argparse.Namespace) -> None:
    from speechlab.config import to_dict
    from speechlab.data.corpora import catalogue

    corpus = catalogue.lookup(options.name)
    print(f"{corpus.title}\nsource: {corpus.source}\nlicence: {corpus.licence}")
    print(f"about {corpus.gigabytes:g} GB\n\n{corpus.layout}\n\noptions (--set KEY=VALUE):")
    _show(to_dict(corpus.config()))


def prepare_data(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from speechlab.config import override
    from speechlab.data.corpora import catalogue

    corpus = catalogue.lookup(options.name)
    config = override(corpus.config(), **assigned(options.set))
    folder = (
        Path(options.folder)
        if options.folder
        else catalogue.folder_of(options.name, catalogue.DATA)
    )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    corpus.prepare(folder, config, tqdm.write)
    if options.folder:
        name = catalogue.shortest(folder)
        print(f"to train on it: speechlab train EXPERIMENT --set 'corpora=[\"{name}\"]'")


def train(options: argparse.Namespace) -> None:
    import pandas as pd

    from speechlab.config import to_dict
    from speechlab.study import experiments, launch

    if options.list and options.experiment is None:
        print(pd.DataFrame(experiments.table()).to_string(index=False))
        print("\nsettings of one: speechlab train EXPERIMENT --list")
        return
    if options.experiment is None:
        raise UserError("train needs an EXPERIMENT; `speechlab train --list` has them")
    experiment = _changed(options.experiment, options.name, options.set)
    if options.list:
        _show(to_dict(experiment))
        return
    _tell(launch.train(experiment, _runs(options), options.device, *_shown()))


def resume(options: argparse.Namespace) -> None:
    from speechlab.study import launch

    changes = {k.removeprefix("training."): v for k, v in assigned(options.set).items()}
    _tell(launch.resume(options.folder, changes, options.device, *_shown()))


def finetune(options: argparse.Namespace) -> None:
    from speechlab.study import launch

    taken = [key for key in assigned(options.set) if key.partition(".")[0] in ("model", "system")]
    if taken:
        raise UserError(f"finetune takes the model from the checkpoint; leave {taken[0]} out")
    experiment = _changed(options.experiment, options.name, options.set)
    where = _runs(options), options.device
    _tell(launch.finetune(options.checkpoint, experiment, *where, *_shown()))


def _in_one_voice(run: Callable[[argparse.Namespace], None]) -> Callable[..., None]:
    """The command; where several processes do it and fail, one of them tells."""

    def run_alike(options: argparse.Namespace) -> None:
        from speechlab.training.distributed import one_voice

        with one_voice():
            run(options)

    return run_alike


def _changed(name: str, run: str | None, words: Sequence[str]) -> Any:
    """The experiment of that name with a run's name and the settings given."""
    from speechlab.study import experiments
    from speechlab.study.experiment import changed

    named = {"name": run} if run else {}
    return changed(experiments.lookup(name), assigned(words) | named)


def _runs(options: argparse.Namespace) -> Path:
    from speechlab.training.runs import FOLDER

    return Path(options.runs or FOLDER)


def _shown() -> tuple[bool, Callable[[str], None] | None]:
    """A bar on a terminal; in a log, where it would be one endless line, some lines."""
    if sys.stderr.isatty():
        return True, None
    return False, lambda line: print(line, file=sys.stderr, flush=True)


def list_runs(options: argparse.Namespace) -> None:
    from speechlab.training import runs

    folder = _runs(options)
    if options.names:
        print(runs.compare(options.names, folder).to_string())
        return
    table = runs.listing(folder)
    print(f"no runs in {folder}" if table.empty else table.to_string(index=False))


def study(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from speechlab.study import runner as notebooks

    fixed, each = notebooks.assignments(options.set), notebooks.assignments(options.each)
    chosen = {"only": options.only, "publish": options.publish}
    sets = notebooks.plan(options.names, options.profile, fixed, each, **chosen)
    if options.list:
        print("\n".join(notebooks.listing(sets)))
        return 0
    outcomes = notebooks.run_study(
        sets, options.time_limit, options.overwrite, tell=tqdm.write, jobs=options.jobs
    )
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def assigned(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words; a value is JSON (1e-3, true, [1, 2]), or else a text as it stands."""
    changes: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes KEY=VALUE, not '{word}'")
        try:
            changes[key] = json.loads(text)
        except ValueError:
            changes[key] = text
    return changes


def _show(settings: Mapping[str, Any], above: str = "  ") -> None:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            _show(value, f"{above}{key}.")
        else:
            print(f"{above}{key}={json.dumps(value)}")


def _tell(run: Any) -> None:
    from speechlab.storage import state
    from speechlab.training.distributed import is_writer

    if not is_writer():
        return
    ended, best = state.values(run.last)["ended"], run.best_known
    print(f"{run.folder}: {ended} at step {run.step} of {run.settings['training']['n_steps']}")
    if best:
        score = f"{best['metric']} {best['score']:.4g} at step {best['step']}"
        print(f"best on dev: {score}: {run.best}")


def add(commands: argparse._SubParsersAction) -> None:
    """Add these commands to the parser of `cli`."""
    _add_data(commands)
    _add_train(commands)
    _add_resume(commands)
    _add_finetune(commands)
    _add_runs(commands)
    _add_study(commands)


def _add_data(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("data", help="list, describe or prepare the corpora")
    actions = command.add_subparsers(required=True, metavar="list|show|prepare")
    listing = actions.add_parser("list", help="every corpus, its size, licence, whether it is here")
    listing.set_defaults(run=list_data)
    show = actions.add_parser("show", help="one corpus: source, layout, options")
    show.add_argument("name", metavar="CORPUS", help="a name in `data list`")
    show.set_defaults(run=show_data)
    prepare = actions.add_parser(
        "prepare",
        help="make, fetch or convert a corpus",
        description="Interrupted and started again, it goes on.",
    )
    prepare.add_argument("name", metavar="CORPUS", help="a name in `data list`")
    prepare.add_argument("--folder", help="default: data/CORPUS")
    _add_set(prepare, "n_train=100 seed=1; `data show CORPUS` has them all")
    prepare.set_defaults(run=prepare_data)


def _add_train(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "train",
        help="train an experiment of the study; a run that is there goes on",
        description="Writes results/runs/NAME: configuration, history, dev scores, the best model. "
        "Killed and started again, it goes on as if nothing had been. Under torchrun every process "
        "takes its part of each batch.",
    )
    command.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="a name in --list")
    command.add_argument(
        "--list", action="store_true", help="the experiments, or the settings of one, and end"
    )
    command.add_argument("--name", help="of the run; default: the experiment's")
    _add_place(command)
    command.set_defaults(run=_in_one_voice(train))


def _add_resume(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "resume",
        help="go on with a run, longer or with another schedule",
        description="A run goes on by the command that began it, too; with --set its schedule "
        "changes (n_steps, lr, ...), which config.json notes. What steps already done depended on "
        "cannot change.",
    )
    command.add_argument("folder", metavar="RUN", help="its folder, as results/runs/NAME")
    _add_device(command)
    _add_set(command, "n_steps=20000 lr=1e-4")
    command.set_defaults(run=_in_one_voice(resume))


def _add_finetune(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "finetune",
        help="train a checkpoint on, as an experiment says but for the model",
        description="Writes results/runs/NAME as `train` does. Killed and started again, it goes "
        "on.",
    )
    command.add_argument("checkpoint", help="a file, a run's folder, or a published name")
    command.add_argument("--experiment", default="finetune", help="default: %(default)s")
    command.add_argument("--name", required=True, help="of the new run")
    _add_place(command)
    command.set_defaults(run=_in_one_voice(finetune))


def _add_runs(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("runs", help="list the runs, or compare some by name")
    command.add_argument("names", nargs="*", metavar="NAME", help="to compare; none: list all")
    command.add_argument("--runs", metavar="FOLDER", help="of runs; default: results/runs")
    command.set_defaults(run=list_runs)


def _add_study(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "study",
        help="run the notebooks; what is finished is not run again",
        description="Executed copies go to results/notebooks; rows, tables and figures go to "
        "results/local. A notebook that fails is kept as NAME.failed.ipynb, and the others "
        "still run. Exit code 1 if one failed.",
    )
    command.add_argument("names", nargs="*", metavar="NUMBER", help="or a name; default: all")
    command.add_argument(
        "--profile", metavar="smoke|quick|real|paper", default="quick", help="default: %(default)s"
    )
    words = {"nargs": "+", "action": "extend", "default": []}
    command.add_argument("--set", metavar="KEY=VALUE", help="a parameter's value", **words)
    command.add_argument(
        "--each", metavar="KEY=A,B", help="a run for each; of several keys all products", **words
    )
    command.add_argument(
        "--time-limit", type=float, metavar="MIN", help="of each notebook; default: the profile's"
    )
    command.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="trainings at a time; default: %(default)s"
    )
    command.add_argument(
        "--publish",
        action="store_true",
        help="replace the committed rows, tables and figures in results/ instead",
    )
    command.add_argument("--overwrite", action="store_true", help="run what is finished too")
    command.add_argument("--list", action="store_true", help="number what would run, and end")
    command.add_argument("--only", type=int, metavar="N", help="of these the one with that number")
    command.set_defaults(run=study)


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--runs", metavar="FOLDER", help="of runs; default: results/runs")
    _add_device(command)
    _add_set(command, "training.lr=1e-3 'mixture.snr_db=[0, 10]'; `train NAME --list` has them all")


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")


def _add_set(command: argparse.ArgumentParser, example: str) -> None:
    told = f"settings, the values JSON or plain text, as {example}"
    words = {"nargs": "+", "action": "extend", "default": [], "metavar": "KEY=VALUE"}
    command.add_argument("--set", help=told, **words)
