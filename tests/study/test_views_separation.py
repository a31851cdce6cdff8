"""What the separation notebooks show: the estimate of each speaker, means over mixtures."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from speechlab.config import replaced
from speechlab.data import manifest
from speechlab.data.manifest import Item
from speechlab.data.recordings import Source
from speechlab.errors import UserError
from speechlab.models.base import Model
from speechlab.report import figures
from speechlab.study import views
from speechlab.study.experiments import EXPERIMENTS

RATE = 8000  # Hz
N_FRAMES = 8000  # samples


def buzz(pitch, level):
    """A speaker: a tone with overtones and a breath, (1, T)."""
    time, breath = np.arange(N_FRAMES) / RATE, np.random.default_rng(pitch).normal(size=N_FRAMES)
    tones = sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 8))
    return level * (tones + 0.1 * breath)[None]


SPEAKERS = np.concatenate([buzz(100, 0.05), buzz(200, 0.1)]).astype(np.float32)


@pytest.fixture
def mixtures(tmp_path):
    """Two, the speakers of the second one swapped."""
    made = []
    for index, sources in enumerate((SPEAKERS, SPEAKERS[::-1])):
        paths = [f"{kind}_{index}.wav" for kind in ("mix", "s1", "s2")]
        for path, signal in zip(paths, (sources.sum(0), *sources), strict=True):
            soundfile.write(tmp_path / path, signal, RATE, subtype="FLOAT")
        kind = ("mixture", paths[0], N_FRAMES, RATE, tuple(paths[1:]))
        made.append(Source(tmp_path, Item(f"mix_{index}", *kind)))
    return made


class Knows(Model):
    """Gives the speakers of `mixtures`, always the soft one first, at levels of its own."""

    sample_rate, n_sources = RATE, 2

    def __init__(self):
        super().__init__(None)

    def forward(self, mixture):
        noise = torch.randn(2, N_FRAMES, generator=torch.Generator().manual_seed(0))
        return torch.tensor([[2.0], [-3.0]]) * (torch.from_numpy(SPEAKERS) + 0.003 * noise)[None]


def test_rows_are_of_speakers_and_means_of_mixtures(mixtures):
    systems = {"mixture": views.Untouched(RATE, 2), "sepmamba": Knows()}
    rows = views.dev_rows(systems, mixtures)
    assert len(rows) == 2 * 2 * 2 and (rows["failed"] == "").all()
    dev = views.by_file(rows)
    assert list(zip(dev["system"], dev["file"], strict=True)) == [
        (system, file) for system in systems for file in ("mix_0", "mix_1")
    ]
    of = dev.set_index("system")
    assert of.loc["mixture", ["si_snri", "si_sdri"]].abs().to_numpy().max() < 1e-6
    assert of.loc["sepmamba", "si_sdri"].min() > 15
    one = rows[(rows["system"] == "sepmamba") & (rows["file"] == "mix_0")]
    assert of.loc["sepmamba", "pesq_nb"].iloc[0] == pytest.approx(one["pesq_nb"].mean())
    orders = views.orders(dev, "sepmamba")["mixtures"]
    assert orders.to_dict() == {"1 2": 1, "2 1": 1}


def test_how_far_apart_the_speakers_are(mixtures):
    apart = views.likeness(mixtures, RATE)
    assert apart.index.tolist() == ["mix_0", "mix_1"]
    assert apart["pitch_apart"].to_numpy() == pytest.approx(12, abs=0.3)
    assert apart["level_apart_db"].to_numpy() == pytest.approx(20 * np.log10(2), abs=0.1)


def test_dev_mixtures_are_of_as_many_speakers_as_the_model_gives(mixtures, tmp_path):
    items = [source.item for source in mixtures]
    manifest.write(tmp_path, {"dev": items}, {"name": "two"})
    experiment = replaced(EXPERIMENTS["sepmamba-tiny"], {"corpora": (str(tmp_path),)})
    names = [source.item.name for source in views.dev_mixtures(experiment, 2)]
    assert names == ["mix_0", "mix_1"]
    first = replaced(experiment, {"n_dev": 1})
    assert [source.item.name for source in views.dev_mixtures(first, 2)] == ["mix_0"]
    with pytest.raises(UserError, match=rf"^{tmp_path}: no dev mixture has 3 source\(s\), as"):
        views.dev_mixtures(experiment, 3)


def test_no_mixtures_are_an_error(mixtures):
    with pytest.raises(UserError, match="no mixtures to score"):
        views.dev_rows({"sepmamba": Knows()}, [])


def test_three_speakers_are_not_compared(mixtures):
    source = mixtures[0]
    paths = ("s1_0.wav", "s2_0.wav", "s1_0.wav")
    three = Item("three", "mixture", "mix_0.wav", N_FRAMES, RATE, paths)
    with pytest.raises(UserError, match=r"^three: has 3 speakers; .* for two"):
        views.likeness([source, Source(source.folder, three)], RATE)


def test_rank_correlations_with_the_likeness_of_the_speakers():
    columns = {"pitch_apart": [1.0, 2.0], "level_apart_db": [4.0, 3.0], "si_sdri": [5.0, 6.0]}
    ranks = views.rank_correlations(pd.DataFrame(columns)).iloc[:, 0]
    labels = [figures.LABELS[name] for name in ("pitch_apart", "level_apart_db")]
    assert ranks[labels].tolist() == [1, -1] and len(ranks) == 2


@pytest.mark.parametrize("metric", ["si_sdri", "si_sdr"])
def test_the_mixture_is_a_level_of_what_is_gained_over_it(metric):
    table = pd.DataFrame({"step": [1, 2], "loss": [3.0, 1.0], metric: [2.0, 3.0]})
    tables = {"history": table, "validations": table}
    run = SimpleNamespace(settings={"training": {"metric": metric}}, **tables)
    dev = pd.DataFrame({"system": ["mixture", "sepmamba"], "si_sdri": [0.0, 9.0]})
    scores = views.curves(run, dev, "sepmamba").axes[1]
    assert len(scores.lines) == 1 + (metric == "si_sdri")
    assert scores.lines[0].get_ydata().tolist() == [2, 3]


def test_the_median_and_the_least_gain_are_heard(mixtures, monkeypatch):
    gains = pd.Series({"mix_0": 5.0, "mix_1": -1.25}, name="si_sdri")
    heard = views.examples({"sepmamba": Knows()}, mixtures, gains)
    titles = ["mix_0, gain of 5.0 dB: median", "mix_1, gain of -1.2 dB: least"]
    assert list(heard) == titles
    loud = heard[titles[1]]["speaker 1"]
    torch.testing.assert_close(loud, torch.from_numpy(SPEAKERS[1:]))
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda what, **_: shown.append(what))
    first = views.show_examples(heard, RATE)
    assert shown[1] is first and len(shown) == 2 * (2 + 2 * 5)  # each signal: a title, a player
    assert [what["text/markdown"] for what in shown[::12]] == list(heard)


def test_estimates_stand_before_their_speakers_at_their_level(mixtures):
    sources = torch.from_numpy(SPEAKERS[::-1].copy())
    heard = views.signals({"sepmamba": Knows()}, sources.sum(0, keepdim=True), sources)
    assert list(heard) == ["estimate 1", "speaker 1", "estimate 2", "speaker 2", "mixture"]
    for number in (1, 2):
        estimate, speaker = heard[f"estimate {number}"], heard[f"speaker {number}"]
        assert speaker.shape == (1, N_FRAMES)
        assert (estimate - speaker).square().mean() < 1e-4 * max(1, speaker.square().mean())
        assert (estimate * speaker).sum() / speaker.square().sum() == pytest.approx(1, abs=0.02)


def test_a_model_that_is_silent_is_heard(mixtures):
    sources = torch.zeros(2, 100)
    systems = {"mixture": views.Untouched(RATE, 2)}
    heard = views.signals(systems, sources.sum(0, keepdim=True), sources)
    assert all(torch.isfinite(signal).all() for signal in heard.values())
    assert pd.Series(list(heard)).is_unique
