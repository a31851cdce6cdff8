"""Means, paired differences and seeds: their intervals, their tests, what is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from speechlab.evaluation.statistics import (
    Difference,
    differences,
    holm,
    judged,
    mean_interval,
    mean_intervals,
    paired_difference,
    seeds_interval,
)


def test_means_of_groups():
    """Those of each group alone; what failed and what belongs to none is left out."""
    rows = pd.DataFrame(
        {
            "snr_db": [5.0, 0.0, 5.0, 0.0, np.nan, 0.0],
            "system": ["b", "a", "b", "a", "a", "a"],
            "si_sdr": [1.0, 2.0, 4.0, 8.0, 16.0, np.nan],
        }
    )
    table = mean_intervals(rows, ["snr_db", "system"], ["si_sdr"])
    assert table[["snr_db", "system"]].values.tolist() == [[0.0, "a"], [5.0, "b"]]
    for values, (_, row) in zip(([2.0, 8.0], [1.0, 4.0]), table.iterrows(), strict=True):
        expected = mean_interval(np.array(values))[:3]
        assert tuple(row[["si_sdr", "si_sdr_low", "si_sdr_high"]]) == expected
    none = mean_intervals(rows.iloc[:0], ["snr_db", "system"], ["si_sdr"])
    assert none.columns.tolist() == ["snr_db", "system"] and none.empty


def test_interval_is_that_of_the_normal_mean():
    """Of 400 normal values: the mean's standard error is 1/20, so 1.96/20 on either side."""
    values = np.random.default_rng(1).standard_normal(400)
    mean, low, high, n = mean_interval(values)
    assert n == 400
    assert mean == values.mean()
    expected = 1.96 * values.std(ddof=1) / 20
    assert high - mean == pytest.approx(expected, rel=0.06)
    assert mean - low == pytest.approx(expected, rel=0.06)


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


def files(values, name="f"):
    """Values of named files, as a column of per-file metrics."""
    return pd.Series(values, [f"{name}{i}" for i in range(len(values))], dtype=float)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.exponential(1, 40)) for _ in range(100)]
    assert 0.87 <= np.mean([one.low <= 1 <= one.high for one in intervals]) <= 0.98


def test_pairs_are_made_by_name_not_by_place():
    first = pd.Series({"a": 3.0, "b": 5.0, "c": 1.0})
    second = pd.Series({"c": 0.5, "a": 1.0, "b": 2.0})
    made = differences(first, second)
    assert made.to_dict() == {"a": 2.0, "b": 3.0, "c": 0.5}
    assert list(made.index) == ["a", "b", "c"]
    assert paired_difference(first, second)[:3] == mean_interval(made)[:3]


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"a": 1.0}, "b is in one of the two only"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "c is in one of the two only"),
        ({"a": np.inf, "b": 1.0}, "infinite"),
    ],
)
def test_what_cannot_be_paired_is_refused(second, reason):
    first = pd.Series({"a": 3.0, "b": np.inf if "inf" in reason else 5.0})
    for pair in ((first, pd.Series(second)), (pd.Series(second), first)):
        with pytest.raises(ValueError, match=reason):
            paired_difference(*pair)


def test_a_name_that_comes_twice_is_refused():
    twice = pd.Series([1.0, 2.0], ["a", "a"])
    with pytest.raises(ValueError, match="a comes twice"):
        paired_difference(twice, twice)


def test_failures_of_either_are_left_out_and_counted():
    first, second = files([3.0, np.nan, 5.0, 4.0, 8.0]), files([1.0, 1.0, np.nan, 1.0, 3.0])
    found = paired_difference(first, second)
    assert (found.mean, found.n, found.n_failed) == (10 / 3, 3, 2)
    kept = ["f0", "f3", "f4"]
    assert found[:5] == paired_difference(first[kept], second[kept])[:5]
    nothing = paired_difference(first[:0], second[:0])
    assert nothing.n == 0 and np.isnan(nothing[:4]).all()


@given(seed=st.integers(0, 99), n=st.integers(2, 60))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_exchanging_the_two_turns_the_sign(seed, n):
    rng = np.random.default_rng(seed)
    first, second = files(rng.standard_normal(n)), files(rng.standard_normal(n))
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert np.allclose(there[:3], [-back.mean, -back.high, -back.low], rtol=0, atol=1e-12)
    assert there.p == pytest.approx(back.p)
    assert there.p == pytest.approx(wilcoxon(first, second).pvalue)


def test_wilcoxon_of_darwins_plants():
    """Cross- against self-fertilised, an eighth of an inch: the example of SciPy's pages."""
    plants = [6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75]
    found = paired_difference(files(plants), files([0.0] * 15))
    assert found.p == 0.041259765625
    assert found.mean == pytest.approx(np.mean(plants)) and found.low > 0


@pytest.mark.parametrize("n", [1, 2, 30])
def test_equal_systems_differ_by_nothing(n):
    values = files(np.arange(n))
    found = paired_difference(values, values)
    assert (found.mean, found.p, found.n) == (0, 1, n)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005, 0.2], [0.04, 0.09, 0.09, 0.025, 0.2]),
        ([0.01, np.nan, 0.02], [0.02, np.nan, 0.02]),  # NA is not counted
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holm_of_known_values(p_values, adjusted):
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005, 0.2), "holm"); statsmodels gives the same."""
    np.testing.assert_allclose(holm(p_values), adjusted, rtol=1e-12)


@given(st.lists(st.floats(0, 1), max_size=9))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_holm_lies_between_nothing_and_bonferroni(p_values):
    adjusted = holm(p_values)
    assert (adjusted >= p_values).all() and (adjusted <= 1).all()
    assert (adjusted <= np.minimum(1, len(p_values) * np.array(p_values)) + 1e-12).all()
    order = np.argsort(p_values)
    assert (np.diff(adjusted[order]) >= 0).all()
    assert np.array_equal(holm(p_values[::-1]), adjusted[::-1])


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.inf])
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, bad])


def test_a_verdict_needs_the_interval_and_the_test_corrected_for_its_table():
    """A few large losses move the mean below 0, and the ranks do not agree; and other cases."""
    mixed = files(np.concatenate([np.full(18, 0.1), np.full(18, -0.1), np.full(4, -2.0)]))
    small = files(np.random.default_rng(1).normal(0.35, 1, 40))
    rows = [paired_difference(one, 0 * one) for one in (mixed, small)]
    assert rows[0].high < 0 and rows[0].p > 0.13
    assert rows[1].low > 0 and 0.05 / 7 < rows[1].p < 0.05
    alone = [judged(pd.DataFrame([row]))["verdict"].iloc[0] for row in rows]
    assert alone == ["n.s.", "above 0"] and judged(pd.DataFrame(columns=Difference._fields)).empty
    seven = judged(pd.DataFrame([rows[1]] * 7))
    assert (seven["verdict"] == "n.s.").all() and np.allclose(seven["p_holm"], 7 * rows[1].p)
    assert (
        judged(pd.DataFrame([paired_difference(-small - 3, 0 * small)]))["verdict"][0] == "below 0"
    )


def runs(n_files, n_seeds, of_files=1.0, of_seeds=0.5, of_both=0.2, seed=0):
    """files x seeds, of mean 0, by the standard deviations of the three sources."""
    rng = np.random.default_rng(seed)
    values = of_files * rng.standard_normal((n_files, 1))
    values = values + of_seeds * rng.standard_normal((1, n_seeds))
    values = values + of_both * rng.standard_normal((n_files, n_seeds))
    return pd.DataFrame(values, [f"f{i}" for i in range(n_files)])


def test_seeds_and_files_both_widen_the_interval():
    """Of many of both: the normal interval with the variances of the two means added."""
    values = runs(80, 50)
    found = seeds_interval(values)
    assert (found.n_seeds, found.n, found.n_failed) == (50, 80, 0)
    assert found.mean == pytest.approx(values.to_numpy().mean())
    assert found.spread == pytest.approx(values.mean().std())
    error = np.sqrt(values.mean(axis=1).var() / 80 + found.spread**2 / 50)
    assert found.high - found.mean == pytest.approx(1.96 * error, rel=0.06)
    assert found.mean - found.low == pytest.approx(1.96 * error, rel=0.06)


def test_equal_seeds_are_one_and_one_seed_has_the_interval_of_its_files():
    one = runs(60, 1)
    plain = mean_interval(one[0])
    for n_seeds in (1, 4):
        found = seeds_interval(pd.concat([one[0]] * n_seeds, axis=1))
        assert found[:3] == pytest.approx(plain[:3], abs=0.01)
        assert found.spread == 0 if n_seeds > 1 else np.isnan(found.spread)


def test_a_file_that_failed_once_is_left_out_of_all_seeds():
    values = runs(20, 3)
    values.loc["f4", 1] = np.nan
    found = seeds_interval(values)
    assert (found.n, found.n_failed) == (19, 1)
    assert found[:4] == seeds_interval(values.drop("f4"))[:4]


def test_one_file_has_no_interval_and_none_no_mean():
    one, none = seeds_interval(runs(1, 3)), seeds_interval(runs(0, 3))
    assert np.isfinite(one.mean) and np.isnan([one.low, one.high]).all()
    assert none.n == 0 and np.isnan(none[:4]).all()
    with pytest.raises(ValueError, match="no seed"):
        seeds_interval(runs(5, 0))


def test_seeds_of_two_systems_are_compared_by_file_and_seed():
    first, second = runs(30, 3), runs(30, 3, seed=1)
    expected = seeds_interval(first - second)
    shuffled = second.sample(frac=1, random_state=0)[[2, 0, 1]]
    assert seeds_interval(differences(first, shuffled)) == expected
    with pytest.raises(ValueError, match="2 is in one of the two only"):
        differences(first, second[[0, 1]])


def test_the_interval_of_seeds_holds_the_mean_as_often_as_it_says():
    """Of ten seeds; of few it is too short, and the docstring says by how much."""
    made = [runs(10, 10, of_files=0.5, of_seeds=1.0, seed=seed) for seed in range(80)]
    intervals = [seeds_interval(values) for values in made]
    assert 0.83 <= np.mean([one.low <= 0 <= one.high for one in intervals]) <= 0.99


@pytest.mark.parametrize(
    ("interval", "values"), [(mean_interval, runs(30, 1)[0]), (seeds_interval, runs(12, 3))]
)
def test_same_seed_same_numbers_and_more_confidence_is_wider(interval, values):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert interval(values) == interval(values) != interval(values, seed=1)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    narrow, wide = (interval(values, confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
