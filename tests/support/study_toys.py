"""Notebooks of seconds and a study of them, for the tests."""

import nbformat

from speechlab.study import runner
from speechlab.study.runner import plan, run_study, stale

LIMIT_MIN = 30.0  # of what hangs; nothing that works is near it, however busy the machine


def write(folder, name, *cells):
    """A notebook; the cell that begins with # is its parameters cell, without the #."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_markdown_cell("# Is it?")]
    for text in cells:
        tags = {"tags": ["parameters"]} if text.startswith("#") else {}
        notebook.cells.append(nbformat.v4.new_code_cell(text.removeprefix("#"), metadata=tags))
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


def wanted(root, *names, **options):
    """The plan for the notebooks in root/notebooks."""
    return plan(names, folder=root / "notebooks", copies=root / "copies", **options)


def run(root, *names, minutes=LIMIT_MIN, jobs=1, **options):
    return run_study(wanted(root, *names, **options), minutes, progress=False, jobs=jobs)


def copies(root):
    return sorted(path.name for path in (root / "copies").glob("*"))


def read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def printed(path):
    outputs = [out for cell in read(path).cells for out in cell.get("outputs", [])]
    return "".join(out.get("text", "") for out in outputs)


def reason(root, name, **options):
    [one] = wanted(root, name, **options)
    return stale(one, runner.source_hash())
