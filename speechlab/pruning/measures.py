"""Importance of channels, from weights and gradients: the lower, the earlier a channel is removed.

Of a channel, w and g are its weights and their gradients in one member of its group; biases do not
count. The importance is the mean over the members of:

| measure        | of a member | source                                   |
|----------------|-------------|------------------------------------------|
| weight         | Σ w²        | magnitude                                |
| gradient       | Σ g²        |                                          |
| taylor         | Σ abs(w g)  |                                          |
| taylor_squared | Σ (w g)²    | arXiv 1906.10771, CleanUMamba's choice   |
| taylor_group   | abs(Σ w g)  | arXiv 1611.06440                         |
| random         | a draw      | control: no information                  |

`<measure>_per_parameter` and `<measure>_per_mac` divide the sum over the members by what the
removal of one channel saves: weights without biases, or multiply-accumulates per second.
CleanUMamba ranks by taylor_squared_per_parameter (arXiv 2410.11062).
"""

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from speechlab.errors import unknown
from speechlab.layers.channels import Group, Member, positions
from speechlab.models.base import Model
from speechlab.pruning.removal import sketch

Measure = Callable[[Tensor, Tensor, torch.Generator], Tensor]  # w, g (n, P) -> (n,)
MEASURES: dict[str, Measure] = {
    "weight": lambda w, g, draws: w.square().sum(1),
    "gradient": lambda w, g, draws: g.square().sum(1),
    "taylor": lambda w, g, draws: (w * g).abs().sum(1),
    "taylor_squared": lambda w, g, draws: (w * g).square().sum(1),
    "taylor_group": lambda w, g, draws: (w * g).sum(1).abs(),
    "random": lambda w, g, draws: torch.rand(len(w), generator=draws).to(w),
}


def weights_per_channel(model: Model) -> dict[str, float]:
    """Of each group, the weights that the removal of one channel saves; biases are not counted."""
    return {name: _n_weights(model, group) for name, group in model.channel_groups().items()}


def macs_per_channel(model: Model) -> dict[str, float]:
    """The same for multiply-accumulates per second; of an only channel, what a second one costs."""
    now, saved = sketch(model, {}).macs(1), {}
    for name, group in model.channel_groups().items():
        n_channels = group.n_channels
        neighbour = sketch(model, {name: n_channels - 1 or 2})
        saved[name] = abs(now - neighbour.macs(1))
    return saved


COSTS = {"parameter": weights_per_channel, "mac": macs_per_channel}
NAMES = (*MEASURES, *(f"{measure}_per_{cost}" for measure in MEASURES for cost in COSTS))


def as_published(n_channels: int, member: Member) -> list[list[int]]:
    """Of a member with two halves, positions 2 c and 2 c + 1, as the published code has it.

    That is a slip: it scores other channels than those removed. For comparison only.
    """
    n, first = member.halves * member.block, member.offset
    return [[first + c * n + i for i in range(n)] for c in range(n_channels)]


PAIRINGS = {"repaired": positions, "as_published": as_published}  # repaired: what `remove` removes


@torch.no_grad()
def importance(
    model: Model, measure: str, pairing: str = "repaired", seed: int = 0
) -> dict[str, Tensor]:
    """Of each group, the importance of its channels, (n,); gradients are the parameters' `.grad`.

    measure: one of NAMES.
    pairing: which positions of a member with two halves are one channel, a name in PAIRINGS.
    seed: of the measure `random`.
    A parameter without `.grad` has gradient 0. UserError for an unknown name.
    """
    if measure not in NAMES:
        raise unknown("measure", measure, NAMES)
    if pairing not in PAIRINGS:
        raise unknown("pairing", pairing, PAIRINGS)
    base, costs = measure.partition("_per_")[0], divisors(model, measure)
    draws = torch.Generator().manual_seed(seed)
    result = {}
    for name, group in model.channel_groups().items():
        members = [member for member in group.members if member.scored]
        of_members = [
            MEASURES[base](*_rows(model, group.n_channels, member, pairing), draws)
            for member in members
        ]
        result[name] = torch.stack(of_members).sum(0) / costs.get(name, len(members))
    return result


def divisors(model: Model, measure: str) -> dict[str, float]:
    """Of each group, the cost by which the measure divides; {} for one without a cost."""
    _, _, cost = measure.partition("_per_")
    return COSTS[cost](model) if cost else {}


def _rows(model: Model, n_channels: int, member: Member, pairing: str) -> tuple[Tensor, Tensor]:
    """Weights and gradients of each channel in a member, (n, P)."""
    weight = model.get_parameter(member.name)
    gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
    index = torch.tensor(PAIRINGS[pairing](n_channels, member), device=weight.device)  # (n, p)
    parts = (tensor.movedim(member.dim, 0)[index] for tensor in (weight, gradient))
    weight, gradient = (part.flatten(1) for part in parts)
    return weight, gradient


def _n_weights(model: Model, group: Group) -> int:
    """Weights of one channel; a parameter along two of its dimensions counts its corner once."""
    rows = defaultdict(dict)
    for member in group.members:
        if member.scored:
            dims = rows[member.name]
            dims[member.dim] = dims.get(member.dim, 0) + member.halves * member.block
    total = 0
    for name, dims in rows.items():
        shape = model.get_parameter(name).shape
        total += shape.numel() - math.prod(n - dims.get(i, 0) for i, n in enumerate(shape))
    return total
