"""Options that several commands share, and their checks, which import no torch."""

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechlab.errors import UserError


def add_set(command: argparse.ArgumentParser, example: str) -> None:
    """--set KEY=VALUE, once per setting; `assigned` reads the words."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"one setting; repeat for more. A value is JSON or plain text: {example}",
    )


def assigned(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words; a value is JSON (1e-3, true, [1, 2]) or, if it is not, plain text."""
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


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device",
        default="cpu",
        help="where the model computes: cpu, cuda, cuda:1, mps, or auto (a GPU if there is one); "
        "default: %(default)s",
    )


def add_state_leak(command: argparse.ArgumentParser) -> None:
    """--state-leak SECONDS; `overrides` has the setting."""
    command.add_argument(
        "--state-leak",
        type=float,
        metavar="SECONDS",
        help="time after which the state of a Mamba has faded to 1/e, for streams and recordings "
        "of minutes: 20 for Experiment_CleanU_Mamba. Default: that of the checkpoint, if any",
    )


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of the model to change, for `speechlab.load`."""
    return {} if options.state_leak is None else {"state_leak_s": options.state_leak}


def add_runs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--runs", metavar="FOLDER", help="folder of runs; default: results/runs")


def add_jobs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--jobs", type=int, help="processes; default: one per processor")
    command.add_argument("--limit", type=int, help="score only the first files of the set")


def check_inputs(inputs: Sequence[str]) -> None:
    """UserError for a file or folder that does not exist; patterns are resolved later."""
    for given in inputs:
        if not os.path.lexists(given) and not re.search(r"[*?[]", given):
            raise UserError(f"{given}: no such file or folder; check the name")


def check_test_set(folder: str) -> None:
    """UserError where there is no such folder."""
    if not Path(folder).is_dir():
        raise UserError(
            f"{folder}: no such folder; a test set has the folders noisy/ and clean/, or mix/, "
            "s1/ and s2/"
        )


def check_checkpoint(path: str | None) -> None:
    """UserError where no checkpoint has this path or published name."""
    from speechlab.weights.hub import locate

    if path is not None:
        locate(path)
