"""study: run the notebooks."""

import argparse

from speechlab.cli.output import say, tell


def study(options: argparse.Namespace) -> int:
    from speechlab.study import runner

    fixed, each = runner.assignments(options.set), runner.assignments(options.each)
    sets = runner.plan(
        options.names, options.profile, fixed, each, only=options.only, publish=options.publish
    )
    if options.list:
        print("\n".join(runner.listing(sets)))
        return 0
    outcomes = runner.run_study(
        sets, options.time_limit, options.overwrite, tell=say, jobs=options.jobs
    )
    failed = [outcome.line for outcome in outcomes if outcome.status == "failed"]
    for line in failed:  # again, behind the summary
        tell(line)
    return 1 if failed else 0


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "study",
        help="run the notebooks that are not finished",
        description="Writes executed copies to results/notebooks, and rows, tables and figures to "
        "results/local. A failed notebook is kept as NAME.failed.ipynb, and the others are run. "
        "Exit code 1 if one failed.",
    )
    command.add_argument("names", nargs="*", metavar="NUMBER", help="or a name; default: all")
    command.add_argument(
        "--profile", metavar="smoke|quick|real|paper", default="quick", help="default: %(default)s"
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a parameter; repeat for more",
    )
    command.add_argument(
        "--each",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="run once per value; repeat for more keys: once per combination",
    )
    command.add_argument(
        "--time-limit", type=float, metavar="MIN", help="per notebook; default: the profile's"
    )
    command.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="parallel trainings; default: %(default)s"
    )
    command.add_argument(
        "--publish",
        action="store_true",
        help="replace the committed rows, tables and figures in results/",
    )
    command.add_argument("--overwrite", action="store_true", help="run finished notebooks again")
    command.add_argument("--list", action="store_true", help="list the numbered runs and exit")
    command.add_argument("--only", type=int, metavar="N", help="run only number N of --list")
    command.set_defaults(run=study)
