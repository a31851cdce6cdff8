"""Scales that make the importance of different groups comparable.

Of each group alone, the least important channels are removed from a copy of the model. Its scale is
the change of the loss over the summed importance of these channels, which is not divided by a cost.
So a scaled importance is an expected change of the loss: by a channel, or per parameter or MAC.

That ratio is no scale where the summed importance is 0 (dead channels), where the loss does not
rise, or where a value is not finite. The published code divides by 0 in the first case. In the
second it takes 1e-7, with which the group looks almost free and is emptied. Here such a group gets
the median scale of the groups that have one: it is ranked by its importance alone, and its dead
channels, of importance 0, still go first. If no group has a scale, all of them are 1.
"""

import math
from collections.abc import Callable, Mapping
from statistics import median
from types import MappingProxyType
from typing import NamedTuple

from speechlab.models.base import Model
from speechlab.pruning.ranking import RankingConfig, Scores, bundles
from speechlab.pruning.removal import remove

SHARE = 0.2  # of a group's channels
KEEP = 0.5  # of the former scale


class Trial(NamedTuple):
    """The removal of the least important channels of one group."""

    channels: list[int]
    importance: float  # sum over them
    change: float  # of the loss

    @property
    def scale(self) -> float | None:
        """Change of loss per importance; None where it is no scale."""
        usable = self.importance > 0 and self.change > 0
        scale = self.change / self.importance if usable else math.nan
        return scale if math.isfinite(scale) else None


def trials(
    model: Model,
    scores: Scores,
    loss: Callable[[Model], float],
    config: RankingConfig,
    costs: Mapping[str, float] = MappingProxyType({}),
    share: float = SHARE,
) -> dict[str, Trial]:
    """Of each group that can lose channels: what happens without a `share` of them, or a bundle.

    loss: of a model, on the same examples each time.
    costs: by which the scores were divided (`measures.divisors`).
    """
    before, result = loss(model), {}
    for name, values in scores.items():
        channels: list[int] = []
        for bundle in bundles(name, values, config):
            if channels and len(channels) + len(bundle) > math.ceil(share * len(values)):
                break
            channels += bundle
        if channels:
            change = loss(remove(model, {name: channels})) - before
            importance = costs.get(name, 1.0) * float(values[channels].sum())
            result[name] = Trial(sorted(channels), importance, change)
    return result


def scales(
    results: Mapping[str, Trial], groups: Scores, former: Mapping[str, float] | None = None
) -> dict[str, float]:
    """A scale for every group: the mean of the former one and that of its trial."""
    known = {name: trial.scale for name, trial in results.items() if trial.scale is not None}
    usual = median(known.values()) if known else 1.0
    now = {name: known.get(name, usual) for name in groups}
    if former is None:
        return now
    return {name: KEEP * former[name] + (1 - KEEP) * scale for name, scale in now.items()}
