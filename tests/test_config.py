"""Configurations refuse what they do not know."""

import json

import pytest

from speechlab.config import from_dict, override, replaced, to_dict
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
    ],
)
def test_dotted_names_are_checked_as_others(changes, said):
    with pytest.raises(UserError, match=said) as error:
        replaced(TINY, changes)
    assert "\n" not in str(error.value)
