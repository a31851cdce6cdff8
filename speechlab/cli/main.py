"""The parser of `speechlab`, its exit codes and errors.

Exit codes: 0 done, 1 done but a file failed or a known value was not met, 2 bad input,
130 interrupted. `--help`, lists and errors in the options need neither torch nor pandas.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from speechlab.cli import completion, data, doctor, evaluate, process, study, train, weights
from speechlab.cli.output import escape_all, surroundings
from speechlab.cli.parser import Parser, complete
from speechlab.errors import UserError, reason
from speechlab.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    escape_all()
    options = _parser().parse_args(arguments)
    try:
        with surroundings(options):
            code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"speechlab: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output has ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a path that is too long, a folder without permission, a full disk
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"speechlab: {UserError(f'{where}{reason(error)}')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("speechlab: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="speechlab",
        description="Mamba models for speech enhancement and separation under one protocol.",
    )
    parser.add_argument("--version", action="version", version=f"speechlab {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in (doctor, weights, process, evaluate, data, train, study, completion):
        group.add(commands)
    complete(parser)
    parser.set_defaults(parser=parser, quiet=False, verbose=False, offline=False)
    return parser
