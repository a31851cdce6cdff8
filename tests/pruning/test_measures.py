"""Importance: the published numbers by every measure, and which channels a measure sees."""

import pytest
import torch

from speechlab.errors import UserError
from speechlab.pruning import importance, remove
from speechlab.pruning.measures import MEASURES, NAMES, PAIRINGS
from speechlab.weights.cleanumamba import cleanumamba
from tests.support.prunable import CONFIGS, built, some, zeroed

# of other models MACs are counted by a pass per group, half a second each
COUNTED = [(name, "parameter") for name in CONFIGS]
COUNTED += [(name, "mac") for name in CONFIGS if name.startswith("cleanumamba")]
PUBLISHED = {
    "weight": "weight",
    "gradient": "grad",
    "taylor": "taylor_individual",
    "taylor_squared": "taylor_squared_individual",
    "taylor_group": "taylor_group",
    "taylor_squared_per_parameter": "metric",
}


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("measure", PUBLISHED)
def test_every_group_has_the_published_importance(golden, measure, pairing):
    wanted = golden.read("importance")
    ours = importance(golden.model(), measure, pairing)
    assert list(ours) == [group["name"] for group in golden.manifest["groups"]]
    for group, values in ours.items():
        known = wanted[f"{pairing}.{group}.{PUBLISHED[measure]}"]
        torch.testing.assert_close(values, known, rtol=1e-9, atol=0)


def test_groups_have_the_published_members(golden):
    """Weights, with dimension, halves and offset."""
    groups = golden.model().channel_groups()
    for known in golden.manifest["groups"]:
        group, keys = groups[known["name"]], ("dim", "halves", "offset")
        ours = {(m.name, m.dim, m.halves, m.offset) for m in group.members if m.scored}
        members = (
            (cleanumamba.rename(m["tensor"]), *(m[k] for k in keys)) for m in known["members"]
        )
        assert ours == set(members) and group.n_channels == known["n_channels"]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_dead_channel_has_no_importance(name):
    """The channels that `importance` scores are those that `remove` removes, in every group."""
    model = built(name)
    for group, removed in some(model).items():
        dead = zeroed(model, {group: removed})
        for parameter in dead.parameters():
            parameter.grad = torch.ones_like(parameter)
        for measure in ("weight", "taylor", "taylor_squared", "taylor_group"):
            values = importance(dead, measure)[group]
            assert (values == 0).nonzero().flatten().tolist() == removed


@pytest.mark.parametrize(("name", "cost"), COUNTED)
def test_costs_are_what_a_removal_saves(name, cost):
    """Of one channel: weights without biases, MACs per second."""
    model = built(name).float()
    saved = {"parameter": n_weights, "mac": lambda m: m.macs(1)}[cost]
    sums, ratios = importance(model, "weight"), importance(model, f"weight_per_{cost}")
    for group in some(model):
        members = [m for m in model.channel_groups()[group].members if m.scored]
        expected = saved(model) - saved(remove(model, {group: [0]}))
        ratio = sums[group] * len(members) / ratios[group]
        torch.testing.assert_close(ratio, torch.full_like(ratio, expected))


def n_weights(model) -> int:
    """Parameters but the biases of channels."""
    groups = model.channel_groups().values()
    biases = {m.name for g in groups for m in g.members if not m.scored}
    return sum(p.numel() for name, p in model.named_parameters() if name not in biases)


def test_random_is_a_draw_of_the_seed():
    model = built("cleanumamba-mamba")
    first, again, other = (importance(model, "random", seed=seed) for seed in (1, 1, 2))
    for group in first:
        assert torch.equal(first[group], again[group])
    assert not all(torch.equal(first[group], other[group]) for group in first)


def test_missing_gradients_count_as_zero():
    assert all(
        not values.any() for values in importance(built("cleanumamba-lstm"), "taylor").values()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("taylor_square",), "no measure 'taylor_square' .did you mean 'taylor_squared'"),
        (("taylor", "paired"), "no pairing 'paired'"),
        (("weight_per_second",), "no measure 'weight_per_second'"),
    ],
)
def test_errors_name_what_there_is(arguments, message):
    with pytest.raises(UserError, match=message):
        importance(built("cleanumamba-mamba"), *arguments)


def test_every_measure_has_its_ratios():
    assert len(NAMES) == 3 * len(MEASURES)
