"""Means and their bootstrap intervals."""

import numpy as np
import pytest

from speechlab.statistics import mean_interval


def test_interval_is_that_of_the_normal_mean():
    """Of 400 normal values: the mean's standard error is 1/20, so 1.96/20 on either side."""
    values = np.random.default_rng(1).standard_normal(400)
    mean, low, high, n = mean_interval(values)
    assert n == 400
    assert mean == values.mean()
    expected = 1.96 * values.std(ddof=1) / 20
    assert high - mean == pytest.approx(expected, rel=0.06)
    assert mean - low == pytest.approx(expected, rel=0.06)


def test_same_seed_same_numbers_and_the_global_generator_is_left_alone():
    values = np.arange(50.0)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_more_confidence_is_wider():
    values = np.random.default_rng(0).standard_normal(30)
    narrow, wide = (mean_interval(values, confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_equal_values_have_no_width():
    assert mean_interval(np.full(9, 2.5)) == (2.5, 2.5, 2.5, 9)


def test_one_value_has_no_interval_and_none_no_mean():
    one = mean_interval([3.0])
    assert (one.mean, one.n) == (3.0, 1)
    assert np.isnan([one.low, one.high]).all()
    none = mean_interval([])
    assert none.n == 0
    assert np.isnan(none[:3]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_is_refused(bad):
    with pytest.raises(ValueError, match="drop them"):
        mean_interval([1.0, bad])
