"""The list of experiments. `speechlab train NAME --set training.lr=1e-3` trains one of them.

An experiment is built when it is looked up; its name and the table import no model.
"""

import csv
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from speechlab.errors import unknown
from speechlab.study import enhancement, separation

if TYPE_CHECKING:
    from speechlab.study.experiment import Experiment

TRAININGS = enhancement.TRAININGS | separation.TRAININGS
FORMER = {"umambanet-two-talkers": "umambanet-two-speakers"}  # names in version 0.1
SIZES = "model_sizes.csv"  # n_params by experiment; `python -m speechlab.study.experiments` counts


class _Experiments(Mapping[str, "Experiment"]):
    """By name, in the order of the table."""

    def __getitem__(self, name: str) -> "Experiment":
        return _built(name)

    def __contains__(self, name: object) -> bool:
        return name in TRAININGS

    def __iter__(self) -> Iterator[str]:
        return iter(TRAININGS)

    def __len__(self) -> int:
        return len(TRAININGS)


EXPERIMENTS = _Experiments()


@cache
def _built(name: str) -> "Experiment":
    from speechlab.study.experiment import Experiment, derived

    delta = dict(TRAININGS[name])
    base = delta.pop("base", None)
    return derived(EXPERIMENTS[base] if base else Experiment(""), {"name": name} | delta)


def check_name(name: str) -> None:
    """UserError for an unknown experiment."""
    if name not in TRAININGS and name not in FORMER:
        raise unknown("experiment", name, TRAININGS)


def lookup(name: str) -> "Experiment":
    """An experiment of the study. UserError for an unknown name.

    Under a former name it keeps that name, so that the command of version 0.1 resumes its run.
    """
    from dataclasses import replace

    check_name(name)
    return replace(EXPERIMENTS[FORMER.get(name, name)], name=name)


def table() -> list[dict[str, Any]]:
    """A row per experiment: system, number of parameters, corpora, steps."""
    sizes = committed_sizes()
    return [
        {
            "experiment": name,
            "system": setting(name, "system"),
            "n_params": sizes.get(name, ""),
            "corpora": ", ".join(setting(name, "corpora")),
            "n_steps": setting(name, "training.n_steps"),
        }
        for name in TRAININGS
    ]


def setting(name: str, key: str) -> Any:
    """The value of a setting that the experiment or one of its bases gives."""
    delta = TRAININGS[FORMER.get(name, name)]
    whole, _, inner = key.partition(".")
    if key in delta:
        return delta[key]
    return delta[whole][inner] if whole in delta else setting(delta["base"], key)


def committed_sizes() -> dict[str, int]:
    """n_params of each experiment's model, from SIZES."""
    text = files("speechlab.study").joinpath(SIZES).read_text(encoding="utf-8")
    return {row["experiment"]: int(row["n_params"]) for row in csv.DictReader(text.splitlines())}


def counted_sizes() -> dict[str, int]:
    """n_params of each experiment's model, counted."""
    import torch

    from speechlab.models import SYSTEMS
    from speechlab.models.macs import n_params

    sizes = {}
    for name, experiment in EXPERIMENTS.items():
        with torch.device("meta"):  # no memory, no random draws
            sizes[name] = n_params(SYSTEMS[experiment.system][1](experiment.model))
    return sizes


if __name__ == "__main__":
    lines = [f"{name},{size}\n" for name, size in counted_sizes().items()]
    with files("speechlab.study").joinpath(SIZES).open("w", encoding="utf-8") as file:
        file.write("experiment,n_params\n" + "".join(lines))
