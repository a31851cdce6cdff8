"""A run directory records its training; two trainings never mix in one."""

import json
import os
import re
import signal
import subprocess

import pandas as pd
import pytest

import speechlab
from speechlab.errors import UserError
from speechlab.training import loop, runs
from speechlab.training.runs import Run, compare, listing
from tests.support.training_toys import ended, forked, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs: two ended, one of another seed, and one only begun."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "first", n_steps=4)
    train(folder / "second", n_steps=4, seed=1)
    Run.start(folder / "begun", {"model": "tiny"}, "hash of toys")
    return folder


def test_a_run_records_its_settings(folder):
    """By JSON alone."""
    known = json.loads((folder / "first/config.json").read_text())
    assert known["config"] == {"model": "tiny"} and known["data_hash"] == "hash of toys"
    assert known["training"]["seed"] == 0 and known["training"]["n_steps"] == 4
    assert known["versions"]["speechlab"] == speechlab.__version__
    assert {"torch", "numpy", "python"} <= known["versions"].keys()
    assert known["n_threads"] >= 1 and len(known["git_commit"]) >= 40
    best = json.loads((folder / "first/best.json").read_text())
    assert best["metric"] == "mse" and best["means"]["mse"] == best["score"]
    assert best["data_hash"] == "hash of toys" and best["seed"] == 0
    assert best["n_params"] == 605 and best["n_files"] == 4


def test_tables_are_read_by_pandas_alone(folder):
    history = pd.read_csv(folder / "first/history.csv")
    assert history.columns[0] == "step" and history["step"].tolist() == [3, 4]
    assert pd.read_csv(folder / "first/dev.csv")["file"].tolist() == [f"dev_{i}" for i in range(4)]
    run = Run.open(folder / "first")
    pd.testing.assert_frame_equal(run.history, history)
    assert run.validations["step"].tolist() == [4]
    begun = Run.open(folder / "begun")
    assert begun.history.empty and begun.dev.empty and begun.best_known == {} and begun.step == 0


def test_a_table_that_is_just_being_begun_is_empty(tmp_path):
    """A reader may come between the making of the file and its first row."""
    run = Run.create(tmp_path / "run", {})
    (run.folder / "history.csv").touch()
    assert run.history.empty


def test_the_listing_has_a_row_per_run(folder):
    table = pd.DataFrame(listing(folder)).set_index("run")
    assert list(table.index) == ["first", "second", "begun"]  # by age
    assert table["state"].tolist() == ["finished", "finished", "unfinished"]
    assert table.loc["first", "step"] == 4 and table.loc["second", "seed"] == 1
    assert table.loc["first", "best"] == Run.open(folder / "first").best_known["score"]
    assert not listing(folder / "none")


def test_a_damaged_run_does_not_hide_the_others(folder, tmp_path):
    for name in ("config.json", "last.safetensors"):
        train(tmp_path / name, n_steps=1)
        (tmp_path / name / name).write_bytes(b"{")
    Run.create(tmp_path / "whole", {})
    states = {row["run"]: row["state"] for row in listing(tmp_path)}
    assert states["whole"] == "unfinished"
    assert states["config.json"].startswith("damaged: ") and "config.json" in states["config.json"]
    assert states["last.safetensors"].startswith("damaged: ")


def test_runs_are_compared_by_what_differs(folder):
    table = compare(["first", "second"], folder)
    assert table.loc["training.seed"].tolist() == [0, 1]
    assert "training.n_steps" not in table.index and "config.model" not in table.index
    assert table.loc["best.mse", "first"] == Run.open(folder / "first").best_known["score"]
    with pytest.raises(UserError, match="third: holds no run"):
        compare(["first", "third"], folder)


def test_a_run_begun_otherwise_is_refused(folder):
    Run.start(folder / "first", {"model": "tiny"}, "hash of toys")
    with pytest.raises(UserError, match="other settings: model was 'tiny', is 'large'; "):
        Run.start(folder / "first", {"model": "large"}, "hash of toys")
    many = r"other settings: .*; 4 more; name the run anew \(--name\)"
    with pytest.raises(UserError, match=many):
        Run.start(folder / "first", {f"key {i}": i for i in range(8)}, "hash of toys")
    with pytest.raises(UserError, match="other data"):
        Run.start(folder / "first", {"model": "tiny"}, "another hash")
    with pytest.raises(UserError, match="holds a run already"):
        Run.create(folder / "first", {"model": "tiny"})
    with pytest.raises(UserError, match="holds no run"):
        Run.open(folder / "nowhere")


@pytest.mark.parametrize("name", ["history.csv", "best.safetensors", ".gitkeep"])
def test_a_folder_with_other_files_becomes_no_run(tmp_path, name):
    (tmp_path / "lock").touch()  # of a killed start
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="is in the folder of the new run; choose another name"):
        Run.start(tmp_path, {})
    (tmp_path / name).unlink()
    Run.start(tmp_path, {})


def test_another_environment_is_noted(tmp_path, monkeypatch):
    run = train(tmp_path / "run", n_steps=2)
    now = runs.environment() | {"n_threads": 64}
    monkeypatch.setattr(runs, "environment", lambda: now)
    for _ in range(2):  # once
        train(tmp_path / "run", n_steps=2)
    assert run.settings["n_threads"] == 1
    assert [entry["n_threads"] for entry in run.settings["continued"]] == [64]
    assert run.settings["continued"][0]["step"] == 2


def test_a_commit_is_dirty_only_where_code_changed(tmp_path, monkeypatch):
    """Results, data, documents and notebooks change in every study: they are no other code."""
    code = ("speechlab/training/runs.py", "benchmarks/scan.py", "pyproject.toml")
    other = ("results/dev/rows.csv", "data/README.md", "notebooks/01_one.ipynb", "README.md")
    for path in (*code, *other):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("before")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y.z", "-C", str(tmp_path)]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "x"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "speechlab/training/runs.py"))
    clean = runs.environment()["git_commit"]
    assert re.fullmatch("[0-9a-f]{40}", clean)
    for path in other:
        (tmp_path / path).write_text("after")
    (tmp_path / "results/local").mkdir()
    (tmp_path / "results/local/rows.csv").write_text("new")
    assert runs.environment()["git_commit"] == clean
    for path in (*code, "speechlab/new.py"):  # a module that is not in git yet is code as well
        (tmp_path / path).write_text("after")
        for words in (["add", "."], ["commit", "--quiet", "--message", "x"]):
            assert runs.environment()["git_commit"] == f"{clean}-dirty", path
            subprocess.run([*git, *words], check=True)
        clean = runs.environment()["git_commit"]
        assert not clean.endswith("-dirty")
    monkeypatch.setattr(runs, "__file__", str(tmp_path.parent / "speechlab/training/runs.py"))
    assert runs.environment()["git_commit"] == ""  # no checkout


def test_a_run_without_later_settings_resumes_and_notes_them(tmp_path):
    """It was begun by a version that had no thread count among its settings."""
    run = train(tmp_path / "run", n_steps=2)
    known = run.settings
    del known["training"]["n_threads"]
    (run.folder / "config.json").write_text(json.dumps(known | {"n_threads": 2}))
    assert train(tmp_path / "run", n_steps=2).step == 2
    assert run.settings["training"]["n_threads"] == 1
    assert [entry["n_threads"] for entry in run.settings["continued"]] == [1]
    assert loop.resume(run, {"n_steps": 3}).n_threads == 1
    with pytest.raises(UserError, match="seed was 0, is 1"):
        train(tmp_path / "run", n_steps=2, seed=1)


def test_two_processes_do_not_train_in_one_run(tmp_path):
    """The lock ends with its process, however that ends."""
    run = Run.create(tmp_path / "run", {})
    reader, writer = os.pipe()

    def holds():
        with run.locked():
            os.write(writer, b"!")
            signal.pause()

    child = forked(holds)
    assert os.read(reader, 1) == b"!"
    try:
        assert run.is_running and [row["state"] for row in listing(tmp_path)] == ["running"]
        with pytest.raises(UserError, match="another process trains in this run"), run.locked():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        ended(child)
    with run.locked():
        assert run.is_running
        with pytest.raises(UserError, match="another process"), run.locked():  # of our own
            pass
    assert not run.is_running


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"config\.json: cannot be written"):
        Run.create(tmp_path / "file/run", {})
