"""The command `speechlab`: thin doors to the modules, one function a subcommand.

Exit codes: 0 done, 1 done but a known value was not met, 2 bad input, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from speechlab import __version__
from speechlab.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"speechlab: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("speechlab: interrupted", file=sys.stderr)
        return 130


def doctor(options: argparse.Namespace) -> None:
    from speechlab.doctor import report

    print(report())


def list_weights(options: argparse.Namespace) -> None:
    from speechlab import weights

    print(weights.table().to_string(index=False))


def download_weights(options: argparse.Namespace) -> None:
    from speechlab import weights

    names = options.names or [file.name for file in weights.published(options.system)]
    for name in names:
        print(weights.download(name))


def import_weights(options: argparse.Namespace) -> None:
    from speechlab.checkpoints import import_checkpoint, n_params

    model = import_checkpoint(options.source, options.target, options.system)
    print(f"{options.target}: {type(model).__name__}, {n_params(model):,} parameters")


def evaluate(options: argparse.Namespace) -> None:
    from speechlab import evaluate as evaluation

    rows = evaluation.evaluate(
        options.test_set,
        options.output,
        checkpoint=options.checkpoint,
        estimates=options.estimates,
        metrics=options.metrics,
        jobs=options.jobs,
        quantize=options.quantize,
        limit=options.limit,
    )
    print(evaluation.summarise(rows).to_string(float_format="{:.4f}".format))
    print(f"rows: {options.output}")


def check_metrics(options: argparse.Namespace) -> int:
    from speechlab import evaluate as evaluation

    check = evaluation.check_metrics(
        options.test_set, jobs=options.jobs, limit=options.limit, output=options.output
    )
    print(check)
    return 1 if check.passed is False else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speechlab",
        description="Mamba models for speech enhancement and separation under one protocol.",
    )
    parser.add_argument("--version", action="version", version=f"speechlab {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_doctor(commands)
    _add_weights(commands)
    _add_import(commands)
    _add_evaluate(commands)
    _add_check_metrics(commands)
    return parser


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("doctor", help="versions, devices, kernels in use and why")
    command.set_defaults(run=doctor)


def _add_weights(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "weights",
        help="list or download the published weights",
        description="Files are verified by git blob id. SPEECHLAB_WEIGHTS names an offline folder.",
    )
    actions = command.add_subparsers(required=True, metavar="list|download")
    listing = actions.add_parser("list", help="every published file and whether it is here")
    listing.set_defaults(run=list_weights)
    download = actions.add_parser("download", help="fetch files from their authors' repositories")
    download.add_argument("names", nargs="*", metavar="NAME", help="default: all of --system")
    download.add_argument("--system", default="cleanumamba", help="default: %(default)s")
    download.set_defaults(run=download_weights)


def _add_import(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "import", help="convert published weights to .safetensors and a JSON configuration"
    )
    command.add_argument("source", help="a published file, or its name in `weights list`")
    command.add_argument("target", help="the .safetensors file to write; .json comes beside it")
    command.add_argument("--system", help="where the file does not tell which system it holds")
    command.set_defaults(run=import_weights)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "evaluate",
        help="score a checkpoint, a folder of estimates or the noisy files of a test set",
        description="One CSV row per file. Interrupted and started again, it goes on.",
    )
    command.add_argument("test_set", help="a folder with noisy/ and clean/")
    command.add_argument("--output", required=True, help="the CSV file to write")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", help="enhance with this model; neither: the noisy files")
    source.add_argument("--estimates", help="a folder of enhanced files, named as the noisy ones")
    command.add_argument("--metrics", nargs="+", metavar="NAME", help="default: all")
    command.add_argument("--quantize", choices=("int16", "float"), default="int16")
    _add_work(command)
    command.set_defaults(run=evaluate)


def _add_check_metrics(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "check-metrics",
        help="score a test set's noisy files against their known row",
        description="Exit code 1 where a known value is not met within 0.02, or a file failed.",
    )
    command.add_argument("test_set", help="a folder with noisy/ and clean/")
    command.add_argument(
        "--output", help="a CSV file to keep the rows in, to go on with if interrupted"
    )
    _add_work(command)
    command.set_defaults(run=check_metrics)


def _add_work(command: argparse.ArgumentParser) -> None:
    command.add_argument("--jobs", type=int, help="processes; default: one per processor")
    command.add_argument("--limit", type=int, help="just the first files of the set")
