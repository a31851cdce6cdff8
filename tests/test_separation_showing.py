"""What the separation notebooks show: each talker's own estimate, means over mixtures."""

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from torch import nn

from speechlab import separation_showing as showing
from speechlab.corpora.manifest import Item
from speechlab.crops import Source
from speechlab.separation_metrics import SILENT

RATE = 8000  # Hz
N_FRAMES = 8000  # samples


def buzz(pitch, level):
    """A talker: a tone with overtones and a breath, (1, T)."""
    time, breath = np.arange(N_FRAMES) / RATE, np.random.default_rng(pitch).normal(size=N_FRAMES)
    tones = sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 8))
    return level * (tones + 0.1 * breath)[None]


TALKERS = np.concatenate([buzz(100, 0.05), buzz(200, 0.1)]).astype(np.float32)


@pytest.fixture
def mixtures(tmp_path):
    """Two, the talkers of the second one swapped."""
    made = []
    for index, sources in enumerate((TALKERS, TALKERS[::-1])):
        paths = [f"{kind}_{index}.wav" for kind in ("mix", "s1", "s2")]
        for path, signal in zip(paths, (sources.sum(0), *sources), strict=True):
            soundfile.write(tmp_path / path, signal, RATE, subtype="FLOAT")
        kind = ("mixture", paths[0], N_FRAMES, RATE, tuple(paths[1:]))
        made.append(Source(tmp_path, Item(f"mix_{index}", *kind)))
    return made


class Knows(nn.Module):
    """Gives the talkers of `mixtures`, always the soft one first, at levels of its own."""

    sample_rate, n_sources = RATE, 2

    def forward(self, mixture):
        noise = torch.randn(2, N_FRAMES, generator=torch.Generator().manual_seed(0))
        return torch.tensor([[2.0], [-3.0]]) * (torch.from_numpy(TALKERS) + 0.003 * noise)[None]


def test_rows_are_of_talkers_and_means_of_mixtures(mixtures):
    systems = {"mixture": showing.Unprocessed(RATE), "sepmamba": Knows()}
    rows = showing.dev_rows(systems, mixtures)
    assert len(rows) == 2 * 2 * 2 and (rows["failed"] == "").all()
    dev = showing.of_mixtures(rows)
    assert list(zip(dev["system"], dev["file"], strict=True)) == [
        (system, file) for system in systems for file in ("mix_0", "mix_1")
    ]
    of = dev.set_index("system")
    assert of.loc["mixture", ["si_snri", "si_sdri"]].abs().to_numpy().max() < 1e-6
    assert of.loc["sepmamba", "si_sdri"].min() > 15
    one = rows[(rows["system"] == "sepmamba") & (rows["file"] == "mix_0")]
    assert of.loc["sepmamba", "pesq_nb"].iloc[0] == pytest.approx(one["pesq_nb"].mean())
    orders = showing.orders(dev, "sepmamba")["mixtures"]
    assert orders.to_dict() == {"1 2": 1, "2 1": 1}


def test_a_silent_talker_is_in_no_mean(mixtures):
    silent = mixtures[0].folder / "s2_0.wav"
    soundfile.write(silent, np.zeros(N_FRAMES), RATE, subtype="FLOAT")
    rows = showing.dev_rows({"sepmamba": Knows()}, mixtures[:1])
    assert rows["failed"].tolist() == ["sir: no other source is heard", f"all: {SILENT}"]
    [dev] = showing.of_mixtures(rows).to_dict("records")
    assert dev["si_sdri"] == rows["si_sdri"].iloc[0] and dev["n_silent"] == 1


def test_how_far_apart_the_talkers_are(mixtures):
    apart = showing.likeness(mixtures, RATE)
    assert apart.index.tolist() == ["mix_0", "mix_1"]
    assert apart["pitch_apart"].to_numpy() == pytest.approx(12, abs=0.3)
    assert apart["level_apart_db"].to_numpy() == pytest.approx(20 * np.log10(2), abs=0.1)


def test_estimates_stand_before_their_talkers_at_their_level(mixtures):
    sources = torch.from_numpy(TALKERS[::-1].copy())
    heard = showing.listened(Knows(), sources.sum(0, keepdim=True), sources)
    assert list(heard) == ["estimate 1", "talker 1", "estimate 2", "talker 2", "mixture"]
    for number in (1, 2):
        estimate, talker = heard[f"estimate {number}"], heard[f"talker {number}"]
        assert talker.shape == (1, N_FRAMES)
        assert (estimate - talker).square().mean() < 1e-4 * max(1, talker.square().mean())
        assert (estimate * talker).sum() / talker.square().sum() == pytest.approx(1, abs=0.02)


def test_a_model_that_is_silent_is_heard(mixtures):
    silent = showing.Unprocessed(RATE)
    sources = torch.zeros(2, 100)
    heard = showing.listened(silent, sources.sum(0, keepdim=True), sources)
    assert all(torch.isfinite(signal).all() for signal in heard.values())
    assert pd.Series(list(heard)).is_unique
