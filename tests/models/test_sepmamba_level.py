"""SepMamba's level: inside the model where it is asked for, and by default none, as published."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import speechlab
from speechlab.audio.level import LEVELS
from speechlab.config import override
from speechlab.weights.checkpoints import save
from tests.models.test_sepmamba import CAUSAL, GOLDEN, TINY, array, loaded, noise, tiny


@pytest.mark.parametrize("config", [TINY, CAUSAL], ids=["both", "forward"])
@pytest.mark.parametrize("normalize", ["utterance", "running"])
def test_the_level_is_taken_out_and_put_back(config, normalize):
    """About the network as published, at every length about a frame."""
    plain, model = tiny(config), tiny(override(config, normalize=normalize))
    for length in (1, plain.frame_length, 131):
        mixture = 1e-3 * noise(2, 1, length)
        level = LEVELS[normalize].of(mixture, model.sample_rate)
        wanted = plain(mixture / level) * level
        torch.testing.assert_close(model(mixture), wanted, rtol=0, atol=1e-15)


def test_only_the_running_level_keeps_it_causal():
    for normalize, look_ahead in (("none", 19), ("running", 19), ("utterance", None)):
        model = tiny(override(CAUSAL, normalize=normalize))
        assert (model.look_ahead, model.needs_whole) == (look_ahead, None)
        both = tiny(override(TINY, normalize=normalize))
        assert both.look_ahead is None and both.needs_whole


@pytest.mark.parametrize("name", GOLDEN)
def test_published_weights_have_no_level_and_may_be_given_one(shared, tmp_path, name):
    folder = shared / "golden/sepmamba" / name
    file, mixture = folder / "state.safetensors", array(folder / "x.npy")
    published = loaded(folder)
    assert published.config.normalize == "none"
    model = speechlab.load(file, system=GOLDEN[name], normalize="utterance")
    level = mixture.std(-1, keepdim=True) + 1e-3
    with torch.inference_mode():
        wanted = published(mixture / level) * level
        torch.testing.assert_close(model(mixture), wanted, rtol=0, atol=1e-6)
    again = speechlab.load(save(tmp_path / "ours.safetensors", model))
    assert again.config.normalize == "utterance"


def test_a_checkpoint_from_before_there_were_levels_has_none(tmp_path):
    file = save(tmp_path / "old.safetensors", tiny().float())
    with safe_open(file, "pt") as held:
        header = json.loads(held.metadata()["speechlab"])
    del header["config"]["normalize"]
    save_file(load_file(file), file, {"speechlab": json.dumps(header)})
    assert speechlab.load(file).config == CAUSAL
    assert speechlab.load(file, normalize="running").config.normalize == "running"
