"""What version 0.1 wrote before the package was laid out anew still opens: runs, weights, corpora.

The fixtures were written by that version: a toy corpus of white noise, the two corpora of two
speakers made from it (under their old names), a run on each kind, and an imported checkpoint.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import speechlab
from speechlab.cli.main import main
from speechlab.data import manifest
from speechlab.errors import UserError
from speechlab.study import launch
from speechlab.study.experiment import from_settings
from speechlab.study.experiments import lookup
from speechlab.training.runs import Run

FIXTURES = Path(__file__).with_name("fixtures") / "version_0_1"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of the fixtures as the current folder, as if it were the user's checkout."""
    folder = shutil.copytree(FIXTURES, tmp_path / "old")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("path", "n_sources"),
    [("results/runs/enhance", 1), ("results/runs/separate", 2), ("checkpoint.safetensors", 1)],
)
def test_checkpoints_load(old, path, n_sources):
    model = speechlab.load(path)
    with torch.inference_mode():
        estimate = model(0.1 * torch.randn(2, 1, 4000, generator=torch.manual_seed(0)))
    assert estimate.shape == (2, n_sources, 4000) and estimate.isfinite().all()


@pytest.mark.parametrize("corpus", ["toy", "two_talkers", "two_talkers_noisy"])
def test_corpora_are_read(old, corpus):
    """By folder; the corpora of the study also by the old name and by today's."""
    read = launch.corpora([f"data/{corpus}"])
    assert read.data_hash and read.read("dev")["mixture"]
    if corpus != "toy":
        names = corpus, corpus.replace("two_talkers", "two_speakers")
        under_old, under_new = (launch.corpora([name]).read("train") for name in names)
        assert under_old["speech"] and under_old == under_new
    for split in manifest.SPLITS:
        for item in manifest.read(old / "data" / corpus, split) if split != "test" else ():
            assert (old / "data" / corpus / item.path).is_file()


@pytest.mark.parametrize(("run", "n_steps"), [("enhance", 8), ("separate", 3)])
def test_runs_resume(old, run, n_steps):
    """The run goes to its new end from where it stopped, with its corpus under the old name."""
    before = Run.open(f"results/runs/{run}").step
    assert main(["resume", f"results/runs/{run}", "--set", f"n_steps={n_steps}"]) == 0
    assert Run.open(f"results/runs/{run}").step == n_steps > before


def test_runs_are_listed(old, capsys):
    assert main(["runs"]) == 0
    printed = capsys.readouterr().out
    assert "enhance" in printed and "separate" in printed


def test_a_corpus_under_its_old_name_is_ready(old, capsys):
    """Preparing it again finds it and makes nothing, under either name."""
    settings = ["source=data/toy", "n_mixtures=1", "mixture_s=0.2", "jobs=1"]
    words = [f"--set={setting}" for setting in settings]
    for name in ("two_talkers", "two_speakers"):
        assert main(["data", "prepare", name, *words]) == 0
        assert "data/two_talkers is prepared already" in capsys.readouterr().out


def test_the_command_that_began_a_run_resumes_it(old, capsys):
    """With the corpora under their names of today; experiments under their old names too."""
    begun = Run.open("results/runs/separate")
    known = from_settings(begun.settings["config"] | {"training": begun.settings["training"]})
    assert known.corpora == ("two_talkers",)
    launch.train(replace(known, corpora=("two_speakers",)), progress=False)
    with pytest.raises(UserError, match="other settings"):
        launch.train(replace(known, n_per_epoch=7), progress=False)
    lacking = begun.settings
    del lacking["config"]["pair"]["short"], lacking["config"]["objective"]  # of a version before
    (begun.folder / "config.json").write_text(json.dumps(lacking))
    with pytest.raises(UserError, match=r"settings: objective was 'supervised', is '\w+'; name"):
        launch.train(replace(known, corpora=("two_speakers",)), progress=False)
    old_name = lookup("umambanet-two-talkers")
    assert replace(old_name, name="umambanet-two-speakers") == lookup("umambanet-two-speakers")
