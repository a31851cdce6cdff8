"""The plan of a pruning: cycles of removals and training, until the model is small enough.

    gradients of `n_scored` examples ─ importance x scale ─► remove the least important channels
          ▲ `n_removals` times                                        │
          └────────── train on `n_trained` examples ◄────── small enough? ─► train on `n_recover`

| schedule | for                                                                               |
|----------|-----------------------------------------------------------------------------------|
| paper    | CleanUMamba's (arXiv 2410.11062): days on a GPU                                   |
| short    | a tenth of the channels in a cycle, a hundredth of its examples: hours on a CPU   |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from speechlab.config import Range
from speechlab.config import check as check_fields
from speechlab.errors import UserError, unknown
from speechlab.evaluation.cost import real_time_factor
from speechlab.models.base import Model
from speechlab.models.macs import n_params
from speechlab.pruning.measures import NAMES
from speechlab.pruning.ranking import Bundle, RankingConfig, together
from speechlab.pruning.removal import sketch

SIZES: dict[str, Callable[[Model], float]] = {
    "parameters": n_params,
    "macs": lambda model: model.macs(1),  # a second of input
    "time": real_time_factor,  # of a processor core, a second of input: measured
}
Number = Annotated[int, Range(1, 10**9)]


@dataclass(frozen=True)
class PruningConfig:
    """All settings of a pruning but those of its training."""

    # where it ends
    to: Annotated[float, Range(0, 1e15)] = 0.0
    by: Literal["parameters", "macs", "time"] = "parameters"  # a name in SIZES
    most_removals: Number = 2840
    # which channels
    measure: str = "taylor_squared_per_parameter"  # a name in measures.NAMES
    pairing: Literal["repaired", "as_published"] = "repaired"
    ranking: RankingConfig = field(default_factory=RankingConfig)
    n_scored: Number = 128  # examples
    calibrate_every: Annotated[int, Range(0, 10**9)] = 20  # removals; 0: never
    n_calibrated: Number = 128  # of the scored examples; each group is tried on them
    # a cycle
    n_removals: Number = 5
    n_trained: Annotated[int, Range(0, 10**9)] = 5 * 8192  # examples
    n_recover: Annotated[int, Range(0, 10**9)] = 100_000  # examples, after the last removal

    def size(self, model: Model) -> float:
        """What `to` is compared with."""
        return SIZES[self.by](model)


SCHEDULES = {
    "paper": PruningConfig(ranking=RankingConfig(budget=3e-13)),
    "short": PruningConfig(
        ranking=RankingConfig(share=0.05),
        n_scored=32,
        calibrate_every=4,
        n_calibrated=8,
        n_removals=2,
        n_trained=400,
        n_recover=4000,
    ),
}


def check(config: PruningConfig, model: Model) -> None:
    """UserError for invalid settings, a model that lists no groups, and a target reached now."""
    check_fields(config)
    model.channel_groups()
    if config.measure not in NAMES:
        raise unknown("measure", config.measure, NAMES)
    size = config.size(model)
    if not 0 < config.to < size:
        raise UserError(
            f"the model has {size:.6g} {config.by}; prune to less than that, not {config.to:.6g}"
        )


def enough(model: Model, chosen: Sequence[Bundle], config: PruningConfig) -> list[Bundle]:
    """The first bundles without which the model is small enough, or all of them.

    A measured time is known only after the removal, so then all are taken.
    """
    if config.by == "time" or config.size(_without(model, chosen)) > config.to:
        return list(chosen)
    few, many = 0, len(chosen)
    while few < many:  # the fewest
        middle = (few + many) // 2
        if config.size(_without(model, chosen[:middle])) > config.to:
            few = middle + 1
        else:
            many = middle
    return list(chosen[:few])


def _without(model: Model, chosen: Sequence[Bundle]) -> Model:
    """Its sizes after the removal."""
    groups = model.channel_groups()
    gone = together(chosen)
    return sketch(model, {name: groups[name].n_channels - len(c) for name, c in gone.items()})
