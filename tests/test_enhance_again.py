"""A second run knows what the first one left behind."""

import numpy as np
import pytest
import torch

from speechlab import audio
from speechlab.enhance import enhance_all
from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig


@pytest.fixture
def models():
    """Two networks of one shape with other weights."""
    sizes = {"down_channels": (4,), "skip_channels": (4,), "up_channels": (4,), "d_model": 8}
    config = CleanUMambaConfig(**sizes, layers=({"d_state": 4},))
    torch.manual_seed(0)
    return [CleanUMamba(config).eval() for _ in range(2)]


def test_an_output_that_failed_to_be_replaced_is_made_again(models, tmp_path):
    """It is the first model's; the second must not take it for its own."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 4000)).astype(np.float32)
    source, output = tmp_path / "a.wav", tmp_path / "out"
    audio.save(source, torch.from_numpy(noise), 16000)
    whole = source.read_bytes()
    first, second = models
    enhance_all(first, [source], output, progress=False)
    firsts = (output / "a.wav").read_bytes()

    source.write_bytes(whole[:2000])
    [failed] = enhance_all(second, [source], output, overwrite=True, progress=False)
    assert failed.status == "failed"
    source.write_bytes(whole)
    [again] = enhance_all(second, [source], output, progress=False)
    assert again.status == "ok"
    assert (output / "a.wav").read_bytes() != firsts
    [skipped] = enhance_all(second, [source], output, progress=False)
    assert skipped.status == "skipped"
