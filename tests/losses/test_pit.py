"""The best order of estimates: brute force, every permutation, safe where a loss is NaN."""

from itertools import permutations

import fast_bss_eval
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.losses.pit import EXHAUSTIVE_MAX, best_permutation, pairwise, reordered
from speechlab.losses.waveform import si_sdr
from tests.losses.test_waveform import every_loss, signals


@given(n_sources=st.integers(1, EXHAUSTIVE_MAX + 2), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_it_is_brute_force(n_sources, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(3, n_sources, n_sources, generator=generator, dtype=torch.float64)
    best = best_permutation(matrix)
    assert best.shape == (3, n_sources)
    for found, example in zip(best, matrix, strict=True):
        orders = permutations(range(n_sources))
        order = min(orders, key=lambda o: sum(float(example[e, r]) for r, e in enumerate(o)))
        assert tuple(found.tolist()) == order


@pytest.mark.parametrize("n_sources", [2, 3, 4, EXHAUSTIVE_MAX + 1])
def test_it_undoes_every_permutation(n_sources):
    estimate, reference = signals(1, n_sources, 400, snr_db=12)
    orders = list(permutations(range(n_sources)))[::5]
    shuffled = torch.cat([estimate[:, list(order)] for order in orders])
    permutation = best_permutation(pairwise(si_sdr)(shuffled, reference.expand_as(shuffled)))
    assert torch.equal(reordered(shuffled, permutation), estimate.expand_as(shuffled))


@every_loss
def test_a_pairwise_entry_is_the_loss_of_its_pair(loss):
    """[b, i, j]: estimate i against reference j."""
    estimate, reference = signals(2, 3, 700)
    matrix = pairwise(loss)(estimate, reference)
    assert matrix.shape == (2, 3, 3)
    for i in range(3):
        for j in range(3):
            pair = loss(estimate[:, i : i + 1], reference[:, j : j + 1])
            assert torch.allclose(matrix[:, i, j], pair, rtol=1e-12)


def test_it_agrees_with_fast_bss_eval():
    estimate, reference = signals(4, 3, 900, snr_db=3)
    estimate = estimate[:, [2, 0, 1]]
    values, order = fast_bss_eval.si_sdr(reference, estimate, return_perm=True)
    best = best_permutation(pairwise(si_sdr)(estimate, reference))
    assert torch.allclose(si_sdr(reordered(estimate, best), reference), -values.mean(-1), atol=1e-5)
    assert torch.equal(best, order)


@pytest.mark.parametrize("n_sources", [2, EXHAUSTIVE_MAX + 1])
def test_of_nan_and_of_a_batch_of_none_it_is_an_order(n_sources):
    matrix = torch.ones(2, n_sources, n_sources)
    matrix[1, 0, 0] = torch.nan
    assert (best_permutation(matrix).sort(-1).values == torch.arange(n_sources)).all()
    assert best_permutation(matrix[:0]).shape == (0, n_sources)


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="square"):
        best_permutation(torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match="are not equal"):
        pairwise(si_sdr)(torch.zeros(2, 2, 9), torch.zeros(2, 1, 9))
