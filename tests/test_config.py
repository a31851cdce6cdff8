"""Configurations refuse what they do not know."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import pytest

from speechlab.config import Range, check, from_dict, override, replaced, to_dict
from speechlab.errors import UserError
from speechlab.models.cleanumamba import CONFIGS, CleanUMambaConfig, ablation_config
from speechlab.study.experiments import EXPERIMENTS

TINY = EXPERIMENTS["cleanumamba-tiny"]


@pytest.mark.parametrize("config", [*CONFIGS.values(), ablation_config("mha")])
def test_json_and_back(config):
    assert from_dict(CleanUMambaConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_override_changes_a_copy():
    base = CONFIGS["e6"]
    changed = override(base, normalize="running", layers=[{"d_state": 8}])
    assert (changed.normalize, changed.layers) == ("running", ({"d_state": 8},))
    assert base.normalize == "utterance"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"normalise": "none"},
            r"'normalise' \(did you mean 'normalize'\?\); it has: down_chan",
        ),
        ({"normalize": "batch"}, "normalize must be one of utterance, running, none, not 'batch'"),
        ({"d_model": "64"}, "d_model must be int, not '64'"),
        ({"d_model": True}, "d_model must be int, not True"),
        ({"d_model": 64.0}, "d_model must be int"),
        ({"skip_channels": (64, "128")}, r"skip_channels must be \[int, ...\], not"),
        ({"layers": ("mamba",)}, r"layers must be \[{str: Any, ...}, ...\]"),
    ],
)
def test_unknown_names_and_wrong_types_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        override(CONFIGS["e8"], **changes)


def test_dotted_names_reach_into_configurations():
    changes = {"training.lr": 1, "mixture.snr_db": [0, 5], "losses.l1": 0.5, "losses.si_sdr": 2}
    changed = replaced(TINY, changes)
    assert (changed.training.lr, changed.mixture.snr_db) == (1, (0, 5))
    assert changed.losses == TINY.losses | {"l1": 0.5, "si_sdr": 2}
    back = {"mixture.snr_db": [-5, 15], "losses": TINY.losses, "training.lr": TINY.training.lr}
    assert replaced(changed, back) == TINY
    assert replaced(TINY, {}) is TINY and "l1" not in TINY.losses


def test_a_configuration_in_another_travels_with_it():
    values = json.loads(json.dumps(to_dict(TINY)))
    assert values["training"] == to_dict(TINY.training)
    assert override(TINY, training=values["training"]) == TINY
    with pytest.raises(UserError, match="TrainingConfig has no setting 'rate'"):
        override(TINY, training={"rate": 1})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"speed": 1}, r"setting 'speed' \(did you mean 'mixture.speeds'\?\); it has: name, sys"),
        (
            {"training.speed": 1},
            r"has no setting 'speed' \(did you mean 'seed'\?\); it has: n_steps",
        ),
        ({"speed.fast": 1}, r"Experiment has no setting 'speed' .*; it has: name"),
        ({"n_steps": 1}, "Experiment has no setting 'n_steps'; set training.n_steps$"),
        ({"segment_s": 1}, "no setting 'segment_s'; set mixture.segment_s or pair.segment_s$"),
        ({"name.first": "x"}, "Experiment.name has no settings inside; set all of it"),
        ({"model.layers.0": {}}, "CleanUMambaConfig.layers has no settings inside"),
        ({"training.lr": "1e-3"}, "TrainingConfig.lr must be float, not '1e-3'"),
        ({"training.n_steps": 1.5}, "TrainingConfig.n_steps must be int, not 1.5"),
        ({"training.n_steps": None}, "TrainingConfig.n_steps must be int, not None"),
        ({"training": 3}, "Experiment.training must be TrainingConfig, not 3"),
        ({"training.optimizer": "sgd"}, "optimizer must be one of adam, adamw, not 'sgd'"),
        ({"training.betas": [0.9]}, r"betas must be \[float, float\], not \(0.9,\)"),
        ({"losses.l1": "much"}, r"Experiment.losses must be {str: float, ...}, not"),
        ({"losses.l1": True}, "Experiment.losses must be {str: float, ...}, not"),
        ({"mixture.n_snr_levels": "x"}, "n_snr_levels must be int or None, not 'x'"),
        ({"corpora": "synthetic"}, r"Experiment.corpora must be \[str, ...\], not 'synthetic'"),
        ({"mixture.snr_db": [5, -5]}, "snr_db must be"),
        ({"model.d_model": 0}, "CleanUMambaConfig.d_model must be 1 to 65536, not 0"),
        ({"model.up_channels": [4, 2**70]}, "up_channels must be 1 to 65536, not 11805916"),
        ({"model.sample_rate": 10**6}, "sample_rate must be 1000 to 768000, not 1000000"),
        ({"mixture.sample_rate": 10**6}, "sample_rate must be 1000 to 768000, not 1000000"),
        ({"training.batch_size": 10**9}, "batch_size must be 1 to 65536, not 1000000000"),
    ],
)
def test_dotted_names_are_checked_as_others(changes, said):
    with pytest.raises(UserError, match=said) as error:
        replaced(TINY, changes)
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Ranged:
    """A field of each kind that can have a range."""

    kind: int = 1
    config: Annotated[float, Range(0, 1)] = 0.5
    self_: Annotated[int, Range(0, 9)] | None = None
    weights: Mapping[str, Annotated[float, Range(0, 2)]] = field(default_factory=dict)
    pair: tuple[int, Annotated[int, Range(1, 3)]] = (0, 1)
    names: Annotated[tuple[str, ...], Range(0, 2)] = ()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("config", 1.5, "0 to 1, not 1.5"),
        ("config", float("nan"), "0 to 1, not nan"),
        ("self_", 10, "0 to 9, not 10"),
        ("weights", {"a": 1, "b": -1}, "0 to 2, not -1 in 'b'"),
        ("pair", [9, 4], "1 to 3, not 4"),
        ("names", ["a", "b", "c"], "0 to 2 values, not 3"),
    ],
)
def test_a_range_is_declared_with_its_field(name, value, said):
    """It holds for `override`, and by `check` for a configuration made directly."""
    frozen = tuple(value) if isinstance(value, list) else value
    for made in (
        lambda: from_dict(Ranged, {name: value}),
        lambda: check(Ranged(**{name: frozen})),
    ):
        with pytest.raises(UserError, match=f"^Ranged.{name} must be {said}$"):
            made()


def test_a_setting_may_have_any_name():
    """Also that of an argument of `override`; an unknown one is refused in one line."""
    assert override(Ranged(), kind=2, config=1, self_=None).kind == 2
    for name in ("kind", "config", "changes", "self", "a" * 5000, "\x1b[2J", ""):
        with pytest.raises(UserError, match="CleanUMambaConfig has no setting") as error:
            from_dict(CleanUMambaConfig, {name: 1})
        assert str(error.value).isprintable() and len(str(error.value)) <= 2000
