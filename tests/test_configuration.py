"""Configurations refuse what they do not know."""

import json

import pytest

from speechlab.configuration import from_dict, override, to_dict
from speechlab.errors import UserError
from speechlab.models.cleanumamba import CONFIGS, CleanUMambaConfig, ablation_config


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
        ({"normalise": "none"}, "no setting 'normalise'; it has: down_channels"),
        ({"normalize": "batch"}, "normalize must be one of utterance, running, none, not 'batch'"),
        ({"d_model": "64"}, "d_model must be int, not '64'"),
        ({"d_model": True}, "d_model must be int, not True"),
        ({"d_model": 64.0}, "d_model must be int"),
        ({"skip_channels": (64, "128")}, "skip_channels must be"),
        ({"layers": ("mamba",)}, "layers must be"),
    ],
)
def test_unknown_names_and_wrong_types_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        override(CONFIGS["e8"], **changes)
