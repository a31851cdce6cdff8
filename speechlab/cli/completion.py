"""completion: a script with which a shell completes commands, options and names."""

import argparse

from speechlab.errors import UserError
from speechlab.study.experiments import TRAININGS

SHELLS = ("bash", "zsh")
FILES = {"source", "inputs", "test_set", "folder", "estimates", "input", "output", "target", "runs"}


def completion(options: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion needs shtab; run `pip install shtab`") from error
    prepare(options.parser)
    print(shtab.complete(options.parser, shell=options.shell, preamble=_preamble()))


def prepare(parser: argparse.ArgumentParser) -> None:
    """Say what completes each argument: names in `choices`, files by shtab's `complete`."""
    from speechlab.data.corpora.catalogue import CORPORA

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                prepare(inner)
        elif action.dest == "checkpoint":
            action.complete = {"bash": "_speechlab_checkpoint", "zsh": "_speechlab_checkpoint"}
        elif action.dest == "experiment":
            action.choices = list(TRAININGS)
        elif action.metavar == "CORPUS":
            action.choices = list(CORPORA)
        elif parser.prog.endswith("weights download") and action.dest == "names":
            action.choices = _published()
        elif action.dest == "metrics":
            action.choices = _metrics()
        elif action.dest == "device":
            action.choices = ["auto", "cpu", "cuda", "cuda:0", "mps"]
        elif action.dest in FILES:
            action.complete = {"bash": "_shtab_compgen_files", "zsh": "_files"}


def _published() -> list[str]:
    from speechlab.weights import hub

    return [file.name for file in hub.published()]


def _metrics() -> list[str]:
    from speechlab.evaluation import metrics, separation_metrics

    return list(dict.fromkeys((*metrics.METRICS, *separation_metrics.METRICS)))


def _preamble() -> dict[str, str]:
    """Functions of the shells: a checkpoint is a published name, a file or a folder."""
    from speechlab.weights import own

    words = " ".join([*(file.name for file in own.files()), *_published()])
    return {
        "bash": f"_speechlab_checkpoint() {{\n  compgen -W '{words}' -- \"$1\"\n  compgen -f -- "
        '"$1"\n}',
        "zsh": f"_speechlab_checkpoint() {{\n  compadd -- {words}\n  _files\n}}",
    }


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "completion",
        help="print a script that completes commands, options and names",
        description="Needs shtab (pip install shtab).",
    )
    command.add_argument("shell", choices=SHELLS, help="the shell that you use")
    command.set_defaults(run=completion)
