"""In a repository of its own, the study leaves what git holds alone, unless it publishes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from speechlab.models.cleanumamba import CleanUMamba, tiny_config
from speechlab.weights import checkpoints
from tests.support import toy_corpus

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 1800  # of a process that hangs; none that works is near it, however busy the machine
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


def study(repository: Path, *words: str) -> None:
    command = [sys.executable, "-m", "speechlab", "study", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


GIVEN = ["--set", "corpus=../data/own", "checkpoint=../given.safetensors", f"name={NAME}"]


def test_a_study_leaves_git_status_clean(repository):
    """It looks at a model under the name of a committed training, which it would overwrite."""
    study(repository, "02", *GIVEN)
    assert changed(repository) == set()
    assert (repository / f"results/local/dev/{NAME}.csv").exists()
    study(repository, "1", "2", "--profile", "smoke")
    assert changed(repository) == set()


def test_what_is_published_replaces_the_committed(repository):
    study(repository, "02", *GIVEN, "--publish")
    figures = (f"{NAME}_by_snr.svg", f"{NAME}_spectrograms.png")
    written = {f"results/dev/{NAME}.csv", *(f"results/figures/{name}" for name in figures)}
    assert changed(repository) == written  # and nothing else
    assert not (repository / "results/local").exists()
