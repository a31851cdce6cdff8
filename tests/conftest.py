"""What every test shares: one torch thread, and the folder of golden tensors and real audio."""

import multiprocessing
import os
from pathlib import Path

# One thread: sums keep their order from run to run, and processes do not fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

os.environ["SPEECHLAB_OFFLINE"] = "1"  # no test fetches published weights

import pytest
import torch

from tests.support.warm import ROOT

torch.set_num_threads(1)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of `speechlab.parallel` are forks of this one, which import nothing again.

    Its own tests start them as users do.
    """
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: context)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Golden tensors, published weights and real audio; they are too large for git.

    The setting SPEECHLAB_SHARED names the folder, a relative one from the repository's root.
    """
    folder = (ROOT / (os.environ.get("SPEECHLAB_SHARED") or "../shared")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set SPEECHLAB_SHARED to the one with golden/ and audio/")
    return folder
