"""Laws of perceptual contrast stretching: the published samples, silence, levels, every length."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from speechlab.audio import pcs as module
from speechlab.audio.pcs import VERSIONS, _gains, pcs, pcs_blocks
from speechlab.errors import UserError
from speechlab.inference import enhance
from tests.support import signals
from tests.support.commands import enhancer
from tests.support.signals import array

every_version = pytest.mark.parametrize("version", VERSIONS)


noise = partial(signals.noise, level=0.1)


def test_published_samples(shared):
    folder = shared / "golden/semamba/pcs400"
    waveform, expected = (array(folder / f"{n}.npy") for n in ("wav", "pcs"))
    found = pcs(waveform, "pcs400", "peak")
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-6


@every_version
@pytest.mark.parametrize("n_samples", [1, 7, 200, 399, 400, 1601, 16000])
@pytest.mark.parametrize("level", ["peak", "input"])
def test_silence_stays_silent_at_every_length(version, n_samples, level):
    found = pcs(torch.zeros(2, n_samples), version, level)
    assert found.shape == (2, n_samples) and found.abs().max() == 0
    found = pcs(noise(2, n_samples), version, level)
    assert found.shape == (2, n_samples) and found.isfinite().all()


@every_version
def test_a_batch_is_its_signals(version):
    waveform = noise(3, 1, 3000)
    waveform[1] = 0
    together = pcs(waveform, version)
    for one, found in zip(waveform, together, strict=True):
        assert torch.equal(pcs(one, version), found)
    assert pcs(torch.zeros(0, 1, 100)).shape == (0, 1, 100)


def test_levels():
    waveform = noise(2, 8000)
    assert pcs(waveform, level="peak").abs().amax(-1).tolist() == [1, 1]
    found = pcs(waveform, level="input")
    assert torch.allclose(found.square().mean(-1), waveform.square().mean(-1))
    ratio = found / pcs(waveform, level="peak")
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3)


def test_contrast_grows():
    """A tone in the stretched bands rises against one below them; what is soft falls behind."""
    time = torch.arange(16000) / 16000
    low, mid = (torch.sin(2 * torch.pi * hz * time) for hz in (80, 1000))
    spectrum = torch.fft.rfft(pcs(0.1 * (low + mid))).abs()
    assert spectrum[1000] > 2 * spectrum[80]
    both = torch.cat([0.1 * mid, 0.001 * mid])
    loud, soft = pcs(both).split(16000)
    assert loud[2000:14000].std() / soft[2000:14000].std() > 150  # it was 100


@every_version
def test_gains_cover_every_bin(version):
    gains = _gains(VERSIONS[version])
    assert len(gains) == VERSIONS[version].n_fft // 2 + 1
    assert gains.max() == 1.4 and gains.min() == 1
    assert gains[-1] == (1 if version == "pcs512" else 1.077192982)


@every_version
@pytest.mark.parametrize("n_samples", [1, 799, 800, 801, 1600, 1700, 5000])
def test_blocks_give_the_samples_of_the_whole(version, n_samples, monkeypatch):
    """Each channel has its level; a silent one stays silent."""
    monkeypatch.setattr(module, "BLOCK_S", 0.05)
    waveform = noise(3, n_samples) * torch.tensor([[1.0], [0.1], [0.0]])
    for sizes in ([n_samples], [n_samples // 3, n_samples - n_samples // 3], [n_samples, 0]):
        found = list(pcs_blocks(waveform.split(sizes, -1), 16000, version))
        whole = pcs(waveform, version)
        assert (torch.cat(found, -1) - whole).abs().max() < 1e-6 and found[0].dtype == torch.float32


def test_no_block_and_another_rate():
    assert list(pcs_blocks([], 16000)) == [] == list(pcs_blocks([torch.zeros(2, 0)], 16000))
    with pytest.raises(UserError, match="defined at 16000 Hz"):
        list(pcs_blocks([torch.zeros(1, 9)], 8000))


def test_enhance_stretches_where_it_is_asked_to(tmp_path, monkeypatch):
    """The estimate's samples through PCS, at their level; off unless given; other settings."""
    monkeypatch.setattr(module, "BLOCK_S", 0.05)
    model, path = enhancer(), tmp_path / "in.wav"
    soundfile.write(path, noise(4001).numpy(), 16000, "FLOAT")
    for post in ("none", "pcs400"):
        enhance.enhance_all(model, [path], tmp_path / post, progress=False, post=post)
    enhance.enhance_all(model, [path], tmp_path / "plain", progress=False)
    names = ("none", "pcs400", "plain")
    read = {name: soundfile.read(tmp_path / name / "in.wav")[0] for name in names}
    assert np.array_equal(read["none"], read["plain"])
    expected = pcs(torch.from_numpy(read["none"])).numpy()
    assert np.abs(read["pcs400"] - expected).max() < 1e-5
    made = {name: pd.read_csv(tmp_path / name / "enhance.csv")["made_with"][0] for name in read}
    assert made["none"] == made["plain"] != made["pcs400"]
    with pytest.raises(UserError, match="no post-processing 'more'"):
        enhance.enhance_file(model, path, tmp_path / "out.wav", post="more")
