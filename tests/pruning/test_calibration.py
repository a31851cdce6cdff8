"""Calibration: the published changes of loss; groups whose ratio is no scale."""

import json
import math

import pytest
import torch

from speechlab.losses.waveform import LOSSES
from speechlab.pruning import importance
from speechlab.pruning.calibration import Trial, scales, trials
from speechlab.pruning.measures import divisors
from speechlab.pruning.ranking import RankingConfig, least_important, together
from tests.support.prunable import built, noisy, zeroed

MEASURE = "taylor_squared_per_parameter"
GROUPS = {name: torch.ones(4) for name in ("a", "b", "c", "d")}


def test_published_changes_of_loss(golden):
    """Of each group alone: as many channels as the published code removes, the same change.

    Of the published loss 7 digits are known, since its windows are float32.
    """
    signals, spectral = golden.read("signals"), LOSSES["stft_high_as_published"]

    @torch.no_grad()
    def loss(model):
        estimate, clean = model(signals["noisy"]), signals["clean"]
        return float((LOSSES["l1"](estimate, clean) + spectral(estimate, clean)).mean())

    selection = json.loads((golden.folder / "selection.json").read_text())
    rows = selection["repaired.calibration"]["rows"]
    model = golden.model()
    scores, costs = importance(model, MEASURE), divisors(model, MEASURE)
    ours = trials(model, scores, loss, RankingConfig(), costs)
    assert ours.keys() == {row["group"] for row in rows}
    for row in rows:
        trial = ours[row["group"]]
        assert len(trial.channels) == row["prune_groups"]
        assert trial.importance == pytest.approx(row["total_importance"], rel=1e-9)
        assert trial.change == pytest.approx(row["loss_change"], rel=1e-3, abs=0)


def test_a_scale_is_change_over_importance():
    trial = Trial([1, 2], 0.5, 2.0)
    assert trial.scale == 4
    assert scales({"a": trial}, GROUPS) == dict.fromkeys(GROUPS, 4)


@pytest.mark.parametrize(
    "trial",
    [
        Trial([0], 0.0, 0.0),  # dead channels: the published code divides by zero
        Trial([0], 0.0, 1.0),
        Trial([0], 1.0, -1.0),  # the loss falls: there the group would look free
        Trial([0], 1.0, 0.0),
        Trial([0], 1.0, math.nan),
        Trial([0], 1e-300, 1e300),
    ],
)
def test_a_ratio_that_is_no_scale_becomes_the_median(trial):
    known = {"b": Trial([0], 1.0, 1.0), "c": Trial([0], 1.0, 2.0), "d": Trial([0], 1.0, 30.0)}
    assert trial.scale is None
    assert scales({"a": trial, **known}, GROUPS) == {"a": 2, "b": 1, "c": 2, "d": 30}
    assert scales({"a": trial}, GROUPS) == dict.fromkeys(GROUPS, 1.0)


def test_scales_move_half_the_way():
    former = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    now = scales({"a": Trial([0], 1.0, 3.0)}, GROUPS, former)
    assert now == {"a": 2.0, "b": 2.5, "c": 3.0, "d": 3.5}


def test_dead_channels_go_first_and_no_group_is_emptied():
    """A model with a dead channel in every group: these are the first that a step removes."""
    dead = {"encode_down_0": [2], "skip_conn_1": [0], "d_inner0": [5], "d_state1": [1]}
    model = zeroed(built("cleanumamba-mamba"), dead)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    x, config = noisy(model), RankingConfig(at_least=4, n_least=2, multiples={})

    @torch.no_grad()
    def loss(narrower):
        return float(narrower(x).square().mean())

    scores, costs = importance(model, MEASURE), divisors(model, MEASURE)
    results = trials(model, scores, loss, config, costs)
    scale = scales(results, scores)
    assert all(0 < value < math.inf for value in scale.values())
    scaled = {name: scale[name] * values for name, values in scores.items()}
    assert together(least_important(scaled, config)) == dead
