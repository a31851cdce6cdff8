"""A notebook of the study, executed in a warm process (`warm`, `kernel`)."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import nbformat

from speechlab.study.notebooks import Notebook
from tests.support import warm

EMPTY = MappingProxyType({})


def run(
    notebook: Path, folder: Path, environment: Mapping[str, str] = EMPTY, /, **parameters: object
) -> str:
    """All text that a notebook shows, executed in the folder where it lies.

    folder: of the executed copy, and of results where no parameter names another. environment:
    added to that of the tests, without SPEECHLAB_WEIGHTS. AssertionError where a cell fails, with
    its output, and where a warning or a figure without a description is shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    executed, job = folder / notebook.name, folder / "job.json"
    few = {"jobs": 1} if "jobs" in Notebook.read(notebook).defaults else {}
    values = {"results": folder, **few, **parameters}
    values = {name: str(one) if isinstance(one, Path) else one for name, one in values.items()}
    paths = {"notebook": notebook, "executed": executed, "cwd": notebook.parent}
    settings = {name: str(path) for name, path in paths.items()} | {"parameters": values}
    job.write_text(json.dumps(settings))
    usual = {key: value for key, value in os.environ.items() if key != "SPEECHLAB_WEIGHTS"}
    words = "-m", "tests.support.kernel", job
    warm.run(*words, cwd=warm.ROOT, env=usual | dict(environment), check=True)
    cells = nbformat.read(executed, as_version=4).cells
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    warned = [one for one in shown if one.get("name") == "stderr" and "Warn" in one.text]
    assert not warned
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    assert all(one.metadata.get("image/png", {}).get("alt") for one in pictures)
    assert all('<img alt="' in one.data["text/html"] for one in pictures)
    return "\n".join(str(output.get("data", output.get("text", ""))) for output in shown)
