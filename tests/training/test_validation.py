"""Dev scores: which model is the best, what a failed file counts, when a training ends early."""

import numpy as np
import pandas as pd
import pytest
import torch

import speechlab
from speechlab.errors import UserError
from speechlab.training.loop import resume
from speechlab.training.runs import Run
from tests.support.training_toys import tiny, train


def given(values, metric="mse"):
    """Dev scores: at each call the next values, one for each of the files a and b."""

    def scores(model):
        return pd.DataFrame({"file": ["a", "b"], metric: next(values)})

    return scores


def test_it_ends_early_and_keeps_the_best(tmp_path):
    values = iter([0.5, 0.3, 0.4, 0.3, 0.1])
    changes = {"n_steps": 50, "validate_every": 2, "patience": 2, "scores": given(values)}
    run = train(tmp_path / "run", **changes)
    assert run.step == 8 and run.best_known["score"] == 0.3 and run.best_known["step"] == 4
    assert train(tmp_path / "run", **changes).step == 8  # it has ended
    assert next(values) == 0.1


@pytest.mark.parametrize("direction", ["max", "min"])
def test_a_metric_that_fails_is_counted_and_never_the_best(tmp_path, direction):
    values = iter([(np.nan, np.nan), (1.0, 3.0), (np.nan, np.nan), (np.nan, 2.0)])
    changes = {"metric": "pesq_wb", "direction": direction, "n_steps": 4, "validate_every": 1}
    run = train(tmp_path / "run", scores=given(values, "pesq_wb"), **changes)
    assert run.validations["n_failed"].tolist() == [2, 0, 2, 1]
    assert run.best_known["step"] == 2 and run.best_known["score"] == 2.0


@pytest.mark.parametrize("direction", ["max", "min"])
def test_fewer_failed_files_are_better_than_any_mean(tmp_path, direction):
    """A model that fails on the hard files has a good mean over the others."""
    good, bad = (9.0, 1.0) if direction == "max" else (1.0, 9.0)
    values = iter([(np.nan, bad), (np.nan, good), (bad, bad), (np.nan, good), (bad, good)])
    changes = {"direction": direction, "validate_every": 1, "scores": given(values)}
    best = []
    for n_steps in range(1, 6):
        if n_steps > 1:
            resume(Run.open(tmp_path / "run"), {"n_steps": n_steps})
        run = train(tmp_path / "run", n_steps=n_steps, **changes)
        best.append(run.best_known["step"])
    assert best == [1, 2, 3, 3, 5]
    assert run.best_known["n_failed"] == 0 and run.best_known["score"] == (good + bad) / 2
    assert run.validations["n_failed"].tolist() == [1, 1, 0, 1, 0]


def test_what_it_begins_with_is_scored_where_that_is_asked(tmp_path):
    """So that no training on makes the best worse; a resumed run does not score it again."""
    values = [0.1, 0.5, 0.2, 0.3]
    changes = {"scores": given(iter(values)), "score_start": True, "validate_every": 2}
    run = train(tmp_path / "run", n_steps=4, **changes)
    resume(run, {"n_steps": 6})
    train(tmp_path / "run", n_steps=6, **changes)
    assert run.validations["step"].tolist() == [0, 2, 4, 6]
    assert run.validations["mse"].tolist() == values
    kept, begun = speechlab.load(run.folder).state_dict(), tiny().state_dict()
    assert run.best_known["step"] == 0
    assert all(torch.equal(kept[name], tensor) for name, tensor in begun.items())


def test_an_unknown_dev_metric_names_those_there_are(tmp_path):
    with pytest.raises(UserError, match="no metric 'stoi'; they have: mse"):
        train(tmp_path / "run", metric="stoi")
