"""Progress reporting of a training: lines in a log."""

import math
import re

import pandas as pd
import pytest

from speechlab import progress
from tests.support.training_toys import Sines, gan, train


def numbers(line, name):
    return float(re.search(rf"[:,] {re.escape(name)} (\S+?)(,|$)", line)[1])


SUMMARY = 3  # lines at the end


@pytest.fixture
def talkative(monkeypatch):
    """A line at every step and every validation."""
    monkeypatch.setattr(progress, "EVERY_S", 0.0)


def test_a_line_at_the_beginning_and_three_at_the_end(tmp_path, monkeypatch):
    """Whatever the time that a busy machine takes."""
    monkeypatch.setattr(progress, "EVERY_S", 1e9)
    lines = []
    run = train(tmp_path / "run", tell=lines.append, log_every=5)
    assert lines[0] == "run: step 0 of 12" and len(lines) == 1 + SUMMARY
    assert lines[-2].startswith("run: took ")
    best = run.best_known
    assert lines[-1] == f"run: best on dev: mse {best['score']:.4g} at step {best['step']}"


def test_a_line_says_what_the_history_has(tmp_path, talkative):
    lines = []
    run = train(tmp_path / "run", tell=lines.append, log_every=5)
    assert all("\n" not in line and "grad_norm" not in line for line in lines)
    rows = run.history.to_dict("records")
    for row, scores in zip(rows, run.validations["mse"], strict=True):
        line = [line for line in lines if line.startswith(f"run: step {row['step']} of 12,")][1]
        for name in ("loss", "loss.mae", "loss.mse"):
            assert numbers(line, name) == pytest.approx(row[name], rel=1e-3)
        assert numbers(line, "dev mse") == pytest.approx(scores, rel=1e-3)
        assert numbers(line, "samples/s") == pytest.approx(row["samples_per_s"], rel=1e-2)
        assert re.search(r", \d\d:\d\d left$", line)


def test_a_line_once_a_minute(tmp_path, talkative):
    """Also before the first row of the history."""
    lines = []
    train(tmp_path / "run", gan(), tell=lines.append, n_steps=4, log_every=3)
    lines = lines[:-SUMMARY]
    assert [int(line.split()[2]) for line in lines] == [0, 1, 2, 3, 4, 4]  # the last validates
    assert all(numbers(line, "generator") > 0 < numbers(line, "samples/s") for line in lines[1:])


def test_a_resumed_run_reports_where_it_starts(tmp_path, talkative):
    train(tmp_path / "run", n_steps=12)
    lines = []
    train(tmp_path / "run", tell=lines.append, n_steps=12)
    assert lines == []  # it has ended
    (tmp_path / "run/last.safetensors").unlink()
    train(tmp_path / "run", tell=lines.append, score_start=True, n_steps=12)
    steps = [int(line.split()[2]) for line in lines[:-SUMMARY]]
    assert steps[:2] == [0, 0] and sorted(set(steps)) == list(range(13))


def test_failures_are_reported(tmp_path):
    """Steps that were skipped, and dev files without a score."""
    lines = []
    frame = pd.DataFrame({"file": ["a", "b"], "mse": [math.nan, 2.0]})
    bad = Sines(bad={(1, 3)})
    train(tmp_path / "run", examples=bad, scores=lambda model: frame, tell=lines.append)
    line = lines[-SUMMARY]
    assert "dev mse 2 (1 of 2 files failed)" in line and numbers(line, "skipped") == 1


def test_the_time_left_is_that_of_the_steps_to_come(tmp_path, monkeypatch, talkative):
    """By a clock that ticks a second for every example, of which a step has three on average."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    class Slow(Sines):
        def example(self, *key):
            now[0] += 1
            return super().example(*key)

    lines = []
    train(tmp_path / "run", examples=Slow(), tell=lines.append, n_steps=60, validate_every=15)
    left = {line.split()[2]: line.split(", ")[-1] for line in lines[1:-SUMMARY]}
    wanted = {"15": "02:15 left", "45": "00:45 left", "60": "00:00 left"}
    assert wanted.items() <= left.items()
