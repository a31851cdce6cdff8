"""evaluate, check-metrics: scores of a test set."""

import argparse

from speechlab.cli.options import (
    add_device,
    add_jobs,
    check_checkpoint,
    check_inputs,
    check_test_set,
)
from speechlab.cli.output import say, tell

N_REASONS = 3  # failed files that are printed; the rows have all


def evaluate(options: argparse.Namespace) -> int:
    check_test_set(options.test_set)
    check_checkpoint(options.checkpoint)
    check_inputs([options.estimates] if options.estimates else [])
    from speechlab.evaluation import summaries
    from speechlab.evaluation.evaluate import evaluate

    rows = evaluate(
        options.test_set,
        options.output,
        checkpoint=options.checkpoint,
        estimates=options.estimates,
        metrics=options.metrics,
        jobs=options.jobs,
        limit=options.limit,
        quantize=options.quantize,
        sample_rate=options.sample_rate,
        device=options.device,
        progress=not options.quiet,
        tell=tell,
    )
    print(summaries.summarise(rows).to_string(float_format="{:.4f}".format))
    means = summaries.means(rows)
    if "n_silent" in means and (n_silent := means["n_silent"].sum()):
        print(f"silent sources, left out: {n_silent}")
    say(f"rows: {options.output}")
    failed = summaries.failed(rows)
    _tell_failed(failed, f"the column failed of {options.output}")
    return 1 if failed else 0


def _tell_failed(failed: dict[str, str], where: str) -> None:
    """The first failed files with their reasons; where: what has all."""
    for name in list(failed)[:N_REASONS]:
        tell(f"{name}: {failed[name]}")
    if len(failed) > N_REASONS:
        tell(f"{len(failed) - N_REASONS} more failed; {where} has the reasons")


def check_metrics(options: argparse.Namespace) -> int:
    check_test_set(options.test_set)
    from speechlab.evaluation.evaluate import check_metrics

    check = check_metrics(
        options.test_set, jobs=options.jobs, limit=options.limit, output=options.output
    )
    print(check)
    where = f"the column failed of {options.output}" if options.output else "a file of --output"
    _tell_failed(check.failed, where)
    return 1 if check.failed or check.passed is False else 0


def add(commands: argparse._SubParsersAction) -> None:
    _add_evaluate(commands)
    _add_check_metrics(commands)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "evaluate",
        help="score a checkpoint, a folder of estimates or the noisy files of a test set",
        description="Writes one CSV row per file; with several sources one per speaker, in the "
        "best order of each mixture. Interrupt at any time and rerun the command to resume. Rows "
        "whose files have changed are scored again. Warns of pairs that do not belong together, of "
        "samples beyond full scale and of resampled files. Exit code 1 where a file or one of its "
        "metrics failed; the others are scored.",
    )
    command.add_argument(
        "test_set", help="a folder with noisy/ and clean/, or mix/ (or mix_clean/, ...), s1/, s2/"
    )
    command.add_argument(
        "-o", "--output", required=True, help="the CSV file to write; metrics can be added to one"
    )
    source = command.add_mutually_exclusive_group()
    source.add_argument(
        "-c",
        "--checkpoint",
        help="score this model: a published name, a file, or the folder of a run. Mixtures "
        "are not scaled for a separator without a level, unlike in `separate`. Default without "
        "--estimates: score the noisy files or mixtures",
    )
    source.add_argument(
        "--estimates",
        help="a folder of files with the names of the noisy files; of mixtures in s1/, s2/",
    )
    command.add_argument(
        "--metrics", nargs="+", metavar="NAME", help="default: all; of mixtures the usual ones"
    )
    command.add_argument(
        "--quantize", choices=("int16", "float"), help="default: int16; of mixtures float"
    )
    command.add_argument(
        "--sample-rate",
        type=int,
        metavar="HZ",
        help="score at this rate, and resample files of another one: 16000 for a set at 48 kHz. "
        "Default: that of a published set, of the model, or else of the files",
    )
    add_device(command)
    add_jobs(command)
    command.set_defaults(run=evaluate)


def _add_check_metrics(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "check-metrics",
        help="score the noisy files of a test set and compare with their known row",
        description="Exit code 1 where a mean differs from its known value by more than 0.02, or a "
        "file failed.",
    )
    command.add_argument("test_set", help="a folder with noisy/ and clean/")
    command.add_argument(
        "-o", "--output", help="a CSV file for the rows; an interrupted run resumes from it"
    )
    add_jobs(command)
    command.set_defaults(run=check_metrics)
