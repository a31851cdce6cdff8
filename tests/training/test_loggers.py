"""Loggers: rows that survive a kill, and two services that are there or say what to install."""

import sys
import time
import warnings

import pandas as pd
import pytest

from speechlab.errors import UserError
from speechlab.training import loggers
from speechlab.training.loggers import CsvLogger, started
from tests.support.training_toys import train

SETTINGS = {"created": "2026-01-01", "config": {"model": "tiny"}}


def csv_with(folder, steps, begun=0):
    log = CsvLogger(folder, SETTINGS, begun)
    for step in steps:
        log.log("history", {"step": step, "loss": step / 3, "gap": float("nan")})
    log.close()
    return folder / "history.csv"


def test_rows_are_read_back_to_the_last_digit(tmp_path):
    frame = pd.read_csv(csv_with(tmp_path, [1, 2]))
    assert frame["loss"].tolist() == [1 / 3, 2 / 3] and frame["gap"].isna().all()
    assert not (tmp_path / "validations.csv").exists()


@pytest.mark.parametrize("torn", [b"", b"5,1.66", b"5,1.6666,\n6,"])
def test_rows_after_the_checkpoint_come_again(tmp_path, torn):
    path = csv_with(tmp_path, [1, 2, 3, 4])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert csv_with(tmp_path, [3, 4], begun=2).read_bytes() == whole
    assert csv_with(tmp_path, [1, 2, 3, 4], begun=0).read_bytes() == whole


def test_other_columns_are_refused(tmp_path):
    csv_with(tmp_path, [1])
    log = CsvLogger(tmp_path, SETTINGS, 1)
    with pytest.raises(UserError, match=r"history\.csv: has other columns.*gap, lr"):
        log.log("history", {"step": 2, "loss": 0.1, "lr": 0.1})
    log.close()


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "history.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"history\.csv: damaged"):
        CsvLogger(tmp_path, SETTINGS, 5)


def test_unknown_and_missing_loggers_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no logger 'mlflow'; there are: csv, tensorboard, wandb"):
        started(["mlflow"], tmp_path, SETTINGS, 0)
    for name, module in (("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"logger {name} needs .* -e '\.\[loggers\]'"):
            started([name], tmp_path, SETTINGS, 0)


def test_csv_is_always_there(tmp_path):
    assert [type(log) for log in started([], tmp_path, SETTINGS, 0)] == [CsvLogger]
    assert [type(log) for log in started(["csv", "csv"], tmp_path, SETTINGS, 0)] == [CsvLogger]


@pytest.mark.filterwarnings("default")  # what the package itself warns of is not ours
def test_tensorboard_shows_the_rows(tmp_path):
    pytest.importorskip("tensorboard")
    run = train(tmp_path / "run", n_steps=4, loggers=("tensorboard",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("history/loss")]
    wanted = list(zip(run.history["step"], run.history["loss"], strict=True))
    assert losses == [pytest.approx(row, rel=1e-6) for row in wanted]
    assert "validations/mse" in events.Tags()["scalars"]


@pytest.mark.filterwarnings("default")
def test_wandb_offline_keeps_the_rows_in_the_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(tmp_path / "run", n_steps=4, loggers=("wandb",))
    [kept] = (run.folder / "wandb").glob("offline-run-*/*.wandb")
    late = time.monotonic() + 300
    while len(content := kept.read_bytes()) < 100 and time.monotonic() < late:
        time.sleep(0.05)  # wandb's own process writes the file a moment after it says so
    assert b"history/loss" in content and b"validations/mse" in content
    assert len(run.history) == 2 and "csv" in loggers.LOGGERS
