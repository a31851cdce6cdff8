"""Permutation-invariant losses: the order of the estimates whose mean loss is lowest.

Yu et al. 2017, arXiv 1607.00325. A loss of every pair -> matrix (B, S, S) -> permutation (B, S) ->
estimates in the order of their references.
"""

from collections.abc import Callable
from itertools import permutations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]

EXHAUSTIVE_MAX = 4  # sources: up to 24 permutations are tried, beyond it an assignment is solved


def pairwise(loss: Loss) -> Loss:
    """A loss -> the matrix (B, S, S) of it: [b, i, j] is estimate i against reference j."""

    def matrix(estimate: Tensor, reference: Tensor) -> Tensor:
        if estimate.shape != reference.shape:
            raise ValueError(f"{tuple(estimate.shape)} and {tuple(reference.shape)} are not equal")
        B, S, T = estimate.shape
        pairs = estimate[:, :, None].expand(B, S, S, T), reference[:, None].expand(B, S, S, T)
        return loss(*(x.reshape(B * S * S, 1, T) for x in pairs)).reshape(B, S, S)

    return matrix


def best_permutation(loss_matrix: Tensor) -> Tensor:
    """(B, S): the estimate that belongs to each reference, by a matrix of `pairwise`.

    The mean loss in this order is the lowest, of each example. A NaN is never preferred.
    """
    if loss_matrix.ndim != 3 or loss_matrix.shape[1] != loss_matrix.shape[2]:
        raise ValueError(f"{tuple(loss_matrix.shape)}: losses of pairs are square, (B, S, S)")
    find = _exhaustive if loss_matrix.shape[-1] <= EXHAUSTIVE_MAX else _assigned
    return find(loss_matrix.detach())


def _exhaustive(loss_matrix: Tensor) -> Tensor:
    n_sources, device = loss_matrix.shape[-1], loss_matrix.device
    orders = torch.tensor(list(permutations(range(n_sources))), device=device)  # (S!, S)
    totals = loss_matrix[:, orders, torch.arange(n_sources, device=device)].sum(-1)  # (B, S!)
    return orders[totals.argmin(-1)]


def _assigned(loss_matrix: Tensor) -> Tensor:
    """By the Hungarian method, which needs finite numbers."""
    costs = loss_matrix.double().nan_to_num(posinf=1e100, neginf=-1e100).cpu().numpy()
    orders = [linear_sum_assignment(cost.T)[1].tolist() for cost in costs]
    return torch.tensor(orders, dtype=torch.long, device=loss_matrix.device).reshape(
        loss_matrix.shape[:2]
    )


def reordered(estimate: Tensor, permutation: Tensor) -> Tensor:
    """Estimates (B, S, T) in the order of their references; permutation (B, S)."""
    return estimate.gather(1, permutation[..., None].expand_as(estimate))
