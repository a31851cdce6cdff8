"""In a repository of its own, the study leaves what git holds alone, unless it publishes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from speechlab.models.cleanumamba import CleanUMamba, tiny_config
from speechlab.weights import checkpoints
from tests.support import notebooks, toy_corpus
from tests.support.warm import LIMIT_S, ROOT

NAME = "cleanumamba-tiny"  # of a training whose rows and figures are committed


def git(repository: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@y.z", "-C", str(repository), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def changed(repository: Path) -> set[str]:
    """Paths that `git status` shows, new files one by one."""
    status = git(repository, "status", "--porcelain", "--untracked-files=all")
    return {line[3:] for line in status.splitlines()}


@pytest.fixture
def repository(tmp_path):
    """Notebooks and results as committed; a corpus and a model that take seconds."""
    left_out = shutil.ignore_patterns("runs", "local", "notebooks", ".ipynb_checkpoints")
    folder = tmp_path / "repository"
    for name in ("notebooks", "results"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    shutil.copy(ROOT / ".gitignore", folder)
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "as committed")
    toy_corpus.prepared(folder / "data" / "own")
    checkpoints.save(folder / "given.safetensors", CleanUMamba(tiny_config()))
    git(folder, "add", "--force", "given.safetensors")
    git(folder, "commit", "--quiet", "--message", "a model")
    assert changed(folder) == set()
    return folder


GIVEN = {"corpus": "../data/own", "checkpoint": "../given.safetensors", "name": NAME}


def look_at_a_model(repository: Path, **parameters: object) -> None:
    """Run notebook 02 on a model under the name of a committed training."""
    notebook = repository / "notebooks" / "02_train_cleanumamba.ipynb"
    words = GIVEN | {"results": "../results"} | parameters
    notebooks.run(notebook, repository.parent / "executed", **words)


def test_a_study_leaves_git_status_clean(repository):
    look_at_a_model(repository)
    assert changed(repository) == set()
    assert (repository / f"results/local/dev/{NAME}.csv").exists()
    command = [sys.executable, "-m", "speechlab", "study", "11", "--profile", "smoke"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"cwd": repository, "env": environment, "timeout": LIMIT_S}
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert changed(repository) == set()
    assert (repository / "results/notebooks/11_paper_tables__profile=smoke.ipynb").exists()


def test_what_is_published_replaces_the_committed(repository):
    look_at_a_model(repository, publish=True)
    figures = (f"{NAME}_by_snr.svg", f"{NAME}_spectrograms.png")
    written = {f"results/dev/{NAME}.csv", *(f"results/figures/{name}" for name in figures)}
    assert changed(repository) == written  # and nothing else
    assert not (repository / "results/local").exists()
