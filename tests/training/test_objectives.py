"""Objectives: training uses the best order of the sources, and no other."""

from itertools import permutations

import pytest
import torch
from torch import nn

from speechlab.data.loader import Batch
from speechlab.losses import waveform
from speechlab.training.objectives import PermutationInvariant
from tests.support.signals import arrays

LOSSES = {"si_sdr": waveform.si_sdr, "l1": waveform.l1}
WEIGHTS = {"si_sdr": 0.1, "l1": 3.0}


class Given(nn.Module):
    """A model whose estimate is a parameter, whatever it hears."""

    def __init__(self, estimate):
        super().__init__()
        self.estimate = nn.Parameter(estimate)

    def forward(self, noisy):
        return self.estimate


def drawn(n_examples, n_sources, seed=0, n_samples=200):
    generator = torch.Generator().manual_seed(seed)
    shape = n_examples, n_sources, n_samples
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def total(objective, clean):
    """The weighted sum of the terms, (B,)."""
    (phase,) = objective.phases()
    terms = phase.terms(Batch(clean.sum(1, keepdim=True), clean, len(clean), 1), {})
    return sum(phase.weights[name] * term for name, term in terms.items())


@pytest.mark.parametrize("n_sources", [1, 2, 3, 4, 5])
def test_it_is_brute_force_with_the_gradient_of_the_best_order(n_sources):
    estimate, clean = drawn(4, n_sources)
    objective = PermutationInvariant(Given(estimate), LOSSES, WEIGHTS)
    values = total(objective, clean)
    values.sum().backward()
    tried = estimate.clone().requires_grad_()
    orders = [tried[:, list(order)] for order in permutations(range(n_sources))]
    of_orders = [sum(WEIGHTS[k] * loss(x, clean) for k, loss in LOSSES.items()) for x in orders]
    best = torch.stack(of_orders).min(0).values
    (gradient,) = torch.autograd.grad(best.sum(), tried)
    assert torch.allclose(values, best, rtol=1e-12)
    assert torch.allclose(objective.model.estimate.grad, gradient, rtol=1e-9, atol=1e-15)


def test_a_loss_that_weighs_nothing_has_no_say():
    """Its value is in the order that the others chose."""
    estimate, clean = drawn(6, 3)
    weights = ({"si_sdr": 1.0, "l1": weight} for weight in (0.0, 100.0))
    both, one = (PermutationInvariant(Given(estimate), LOSSES, w) for w in weights)
    alone = PermutationInvariant(Given(estimate), {"si_sdr": waveform.si_sdr})
    assert torch.equal(total(both, clean), total(alone, clean))
    assert not torch.equal(both._permutation(estimate, clean), one._permutation(estimate, clean))


def test_the_loss_of_the_published_code(shared):
    """SepMamba: the mean over the sources of -SI-SDR, its order chosen for each example."""
    folder = shared / "golden/sepmamba/loss"
    clean, estimate, known = arrays(folder, "src", "gen", "loss")
    objective = PermutationInvariant(Given(estimate), {"si_sdr": waveform.si_sdr})
    assert total(objective, clean).mean().item() == pytest.approx(float(known), abs=1e-5)


def test_a_nan_stays_in_its_example():
    estimate, clean = drawn(2, 2)
    estimate[1, 0, 5] = torch.nan
    values = total(PermutationInvariant(Given(estimate), LOSSES, WEIGHTS), clean)
    assert values.isnan().tolist() == [False, True]


def test_a_batch_of_none():
    """What a process gets where there are fewer examples than processes."""
    empty = torch.zeros(0, 2, 0)
    values = total(PermutationInvariant(Given(empty), LOSSES, WEIGHTS), empty)
    assert values.shape == (0,)
    values.sum().backward()
