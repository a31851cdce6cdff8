"""Distillation: what each term compares, what states pass on, exact resuming."""

import dataclasses

import pytest
import torch

from speechlab.data.loader import Batch
from speechlab.errors import UserError
from speechlab.inference.stream import Stream
from speechlab.models.cleanumamba import CleanUMamba
from speechlab.training.distillation import Distillation, DistillationConfig
from tests.support.training_toys import distilled, mae, mse, tiny

LENGTH = 500  # samples


def batch(seed=0, n=2, length=LENGTH):
    noisy, clean = torch.randn(2, n, 1, length, generator=torch.Generator().manual_seed(seed))
    return Batch(noisy, clean, n, 1)


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn():
    objective = distilled(passed=1.0)
    objective._teacher = (objective.model,)
    (phase,) = objective.phases()
    terms = phase.terms(batch(), {})
    assert terms.keys() == phase.weights.keys()
    assert all(terms[f"rest.taught.{name}"].eq(0).all() for name in ("mae", "mse"))
    assert (terms["passed.taught.mae"] < 1e-7).all()  # the first batch begins from rest


def test_targets_and_weights():
    """Each loss, from each start to each target; only what weighs something is computed."""
    objective = distilled(taught=2.0, clean=3.0, rest=1.0)
    (phase,) = objective.phases()
    names = ("rest.taught.mae", "rest.taught.mse", "rest.clean.mae", "rest.clean.mse")
    assert phase.weights == dict(zip(names, (2.0, 1.0, 3.0, 1.5), strict=True))
    given = batch()
    terms = phase.terms(given, {})
    estimate, taught = objective.model(given.noisy), objective._teacher[0](given.noisy)
    assert torch.equal(terms["rest.taught.mse"], mse(estimate, taught))
    assert torch.equal(terms["rest.clean.mae"], mae(estimate, given.clean))


def test_the_clean_signal_counts_after_so_many_batches():
    objective = distilled(clean=1.0, clean_after=3)
    (phase,) = objective.phases()
    heard = [bool(phase.terms(batch(i), {})["rest.clean.mae"].any()) for i in range(4)]
    assert heard == [False, False, False, True]


def test_passed_states_are_those_of_a_stream():
    """Three batches: the same samples as one stream of the three recordings, one after another."""
    objective = distilled(rest=0.0, passed=1.0)
    given = [batch(i, n=1).noisy for i in range(3)]
    stream = Stream(objective.model, path="modules", level="published")
    whole = torch.cat([stream.feed(torch.cat(given, -1)), stream.flush()], -1)
    for i, noisy in enumerate(given):
        estimate = objective._from_passed(noisy)
        assert 0 < LENGTH - estimate.shape[-1] < objective.model.frame_length
        there = whole[..., i * LENGTH :][..., : estimate.shape[-1]]
        torch.testing.assert_close(estimate, there, rtol=1e-4, atol=1e-5)
    from_rest = objective.model(given[-1])[..., : estimate.shape[-1]]
    assert (from_rest - estimate).abs().max() > 1e-3  # the state was heard
    objective._from_passed(batch(n=2).noisy)  # of another size: from rest
    alone = Stream(objective.model, path="modules", level="published").feed(batch(n=2).noisy)
    n_examples, n_pending, *_ = objective._passed
    assert (n_examples, alone.shape[-1]) == (2, LENGTH - n_pending)


def test_a_batch_that_is_not_finite_leaves_the_states():
    objective = distilled(passed=1.0)
    (phase,) = objective.phases()
    phase.terms(batch(), {})
    before = objective._passed
    bad = batch(1)
    bad.noisy[0, 0, 50] = torch.nan
    phase.terms(bad, {})
    assert objective._passed is before


def test_no_gradient_passes_and_none_reaches_the_teacher():
    objective = distilled(passed=1.0, clean=1.0)
    (phase,) = objective.phases()
    for i in range(2):
        terms = phase.terms(batch(i), {})
        sum(term.sum() for term in terms.values()).backward()  # twice: no graph is left
    assert all(p.grad is None for p in objective._teacher[0].parameters())
    assert not any(name.startswith("_teacher") for name in objective.state_dict())
    assert len(phase.parameters) == len([*objective.model.parameters()])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"taught": 0.0}, "needs a target and a start"),
        ({"rest": 0.0}, "needs a target and a start"),
        ({"clean": -1.0}, "DistillationConfig.clean must be 0 to 1e"),
        ({"passed": float("nan")}, "DistillationConfig.passed must be 0 to 1e"),
    ],
)
def test_impossible_settings_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        DistillationConfig(**settings)


def test_models_that_do_not_fit_are_refused():
    losses, weights = {"mae": mae}, {}
    other = CleanUMamba(dataclasses.replace(tiny().config, sample_rate=8000))
    with pytest.raises(UserError, match="at 8000 Hz, the model 1 at 16000"):
        Distillation(tiny(), losses, weights, DistillationConfig(), other)
    utterance = CleanUMamba(dataclasses.replace(tiny().config, normalize="utterance"))
    with pytest.raises(UserError, match="passes no state on"):
        Distillation(utterance, losses, weights, DistillationConfig(passed=1.0), tiny())
    objective = distilled(passed=1.0)
    with pytest.raises(UserError, match="needs a segment_s of"):
        objective._from_passed(torch.zeros(1, 1, 3))
