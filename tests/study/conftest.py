"""Notebooks of the study's tests start in warm processes."""

import shutil
import subprocess
from types import SimpleNamespace

import pytest

from speechlab.config import replaced
from speechlab.data.corpora import two_speakers
from speechlab.study import execution, launch, runner
from speechlab.study.experiments import EXPERIMENTS
from tests.support import toy_corpus, warm


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return toy_corpus.prepared(tmp_path_factory.mktemp("corpus") / "own")


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory):
    """The tiny corpora of the profile "smoke", as a notebook prepares them for itself.

    Notebook 01 prepares its own in its tests.
    """
    folder = tmp_path_factory.mktemp("stand_ins")
    for corpus in two_speakers.SMOKE:
        runner.stand_in(folder, corpus)
    return folder


@pytest.fixture(scope="module")
def toy(corpus):
    changes = toy_corpus.SETTINGS | {"corpora": [str(corpus)], "name": "toy"}
    return replaced(EXPERIMENTS["cleanumamba-tiny"], changes)


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """The folder of a run that has ended."""
    return launch.train(toy, tmp_path_factory.mktemp("runs"), progress=False).folder


@pytest.fixture
def prepared(tmp_path, stand_ins):
    """The folder of results has them."""
    return shutil.copytree(stand_ins, tmp_path / "runs" / "smoke")


@pytest.fixture(scope="module")
def warm_papermill():
    """papermill is a fork of the warm process; kernels are processes of their own.

    It starts cold in the tests of `killed_in_the_middle` and of a repository of its own.
    """
    names = {name: getattr(subprocess, name) for name in ("PIPE", "TimeoutExpired")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "subprocess", SimpleNamespace(Popen=warm.popen, **names))
        yield
