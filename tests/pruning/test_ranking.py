"""Ranking: the least important channels of all groups, within the limits of each group."""

import math

import pytest
import torch

from speechlab.config import from_dict, to_dict
from speechlab.errors import UserError
from speechlab.pruning.ranking import RankingConfig, least_important, together

FREE = RankingConfig(share=0, at_least=1, n_least=1, multiples={})
SCORES = {
    "encode_down_0": torch.tensor([5.0, 0.1, 4.0, 3.0]),
    "d_inner0": torch.tensor([0.3, 9.0, 0.2, 0.4, 8.0, 7.0, 6.0, 0.25]),
    "dt_rank0": torch.tensor([0.0]),
}


def chosen(**settings):
    return together(least_important(SCORES, from_dict(RankingConfig, to_dict(FREE) | settings)))


@pytest.mark.parametrize("n", range(1, 11))
def test_the_least_important_of_all(n):
    """One by one, but the last channels of groups; an only channel is never chosen."""
    ranked = sorted(
        (value, name, c)
        for name, values in SCORES.items()
        for c, value in enumerate(values.tolist())
        if value < values.max()
    )
    picked = {(name, c) for name, channels in chosen(at_least=n).items() for c in channels}
    assert picked == {(name, c) for _, name, c in ranked[:n]}


def test_a_share_of_all_channels():
    assert sum(map(len, chosen(share=0.3).values())) == math.ceil(0.3 * 13)


@pytest.mark.parametrize("n_least", [2, 3, 4, 8, 9])
def test_groups_keep_their_least(n_least):
    left = {
        name: len(SCORES[name]) - len(c) for name, c in chosen(share=1, n_least=n_least).items()
    }
    assert left == {name: n_least for name, values in SCORES.items() if len(values) > n_least}


@pytest.mark.parametrize("settings", [{"multiple": 2}, {"multiples": {"d_inner": 4}}])
def test_widths_are_multiples(settings):
    for n in range(1, 11):
        picked = chosen(at_least=n, **settings)
        assert sum(map(len, picked.values())) >= min(n, 6)
        assert (8 - len(picked.get("d_inner0", []))) % 2 == 0


def test_a_bundle_counts_by_its_mean():
    """Together, the four cheap channels of d_inner0 are dearer than one of encode_down_0."""
    assert chosen(multiples={"d_inner": 4}) == {"encode_down_0": [1]}
    assert chosen(multiples={"d_inner": 4}, at_least=2)["d_inner0"] == [0, 2, 3, 7]


def test_a_budget_ends_the_step():
    """But not before it has removed `at_least` channels."""
    assert chosen(share=1, budget=0.31) == {"encode_down_0": [1], "d_inner0": [2]}
    for n in (1, 2, 3):
        assert chosen(share=1, budget=0.0, at_least=n) == chosen(at_least=n)


def test_equal_channels_are_taken_in_their_order():
    scores = {"a": torch.zeros(4), "b": torch.zeros(4)}
    assert least_important(scores, FREE) == [("a", [0])]


def test_an_importance_that_is_not_finite_is_an_error():
    with pytest.raises(UserError, match="importance of a is not finite"):
        least_important({"a": torch.tensor([1.0, math.nan])}, FREE)
