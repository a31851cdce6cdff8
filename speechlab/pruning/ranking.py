"""Which channels to remove next: the least important of all groups together.

A group loses channels in bundles: one by one, or as many as bring it to the next lower multiple of
a number. Bundles of all groups are ranked by their mean importance, and are taken until there are
enough channels. The published code merges candidates of groups in another way; its picks differ.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from speechlab.config import Range
from speechlab.errors import UserError

Bundle = tuple[str, list[int]]  # group, channels
Scores = Mapping[str, Tensor]  # of each group, the importance of its channels (n,)
Width = Annotated[int, Range(1, 2**16)]


@dataclass(frozen=True)
class RankingConfig:
    """How many channels a step removes, and what it leaves."""

    share: Annotated[float, Range(0, 1)] = 0.005  # of all channels; the paper's
    at_least: Width = 4  # channels, if the share or the budget gives fewer
    budget: Annotated[float, Range(0, math.inf)] = math.inf  # most importance removed in a step
    n_least: Width = 8  # channels that a group keeps
    multiple: Width = 1  # widths are multiples of it: 8 suits vector units and GPUs
    multiples: Mapping[str, Width] = field(  # of some kinds of groups ("d_inner" of d_inner0, …)
        default_factory=lambda: {"d_inner": 8}
    )

    def step_of(self, group: str) -> int:
        """The multiple that the widths of this group are."""
        return math.lcm(self.multiple, self.multiples.get(re.sub(r"_?\d+$", "", group), 1))


def least_important(scores: Scores, config: RankingConfig) -> list[Bundle]:
    """What the next step removes, the least important first; [] if all groups are at their least.

    UserError for an importance that is not finite.
    """
    wanted = max(config.at_least, math.ceil(config.share * sum(map(len, scores.values()))))
    ranked = sorted(
        (float(values[bundle].mean()), i, name, bundle)
        for i, (name, values) in enumerate(scores.items())
        for bundle in bundles(name, values, config)
    )
    chosen: list[Bundle] = []
    n_chosen, spent = 0, 0.0
    for mean, _, name, bundle in ranked:
        spent += mean * len(bundle)
        if n_chosen >= (config.at_least if spent > config.budget else wanted):
            break
        chosen.append((name, bundle))
        n_chosen += len(bundle)
    return chosen


def together(chosen: Sequence[Bundle]) -> dict[str, list[int]]:
    """The channels of all bundles by group, as `remove` takes them."""
    channels: dict[str, list[int]] = {}
    for name, bundle in chosen:
        channels[name] = sorted([*channels.get(name, []), *bundle])
    return channels


def bundles(name: str, values: Tensor, config: RankingConfig) -> Iterator[list[int]]:
    """Channels of a group that are removed together, the least important first."""
    if not values.isfinite().all():
        raise UserError(f"the importance of {name} is not finite; lower lr or set a clip_norm")
    order, step = torch.argsort(values, stable=True).tolist(), config.step_of(name)
    width = len(order)
    while (smaller := (width - 1) // step * step) >= config.n_least:
        first = len(order) - width
        yield order[first : first + width - smaller]
        width = smaller
