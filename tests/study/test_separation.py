"""Trainings of separation: as published, and on the speakers that ready mixtures hold."""

from itertools import product

import numpy as np
import pytest
import soundfile

from speechlab.config import replaced
from speechlab.data import manifest
from speechlab.data.manifest import Item
from speechlab.errors import UserError
from speechlab.models.baselines import conv_tasnet, dprnn, sepformer, sudormrf
from speechlab.models.umambanet import CONFIGS
from speechlab.study import launch
from speechlab.study.experiments import EXPERIMENTS
from speechlab.training import schedule

PEERS = {"conv-tasnet": conv_tasnet, "dprnn": dprnn, "sepformer": sepformer, "sudormrf": sudormrf}
RATE, N_FRAMES = 8000, 4000  # Hz; samples of every file


def ready_mixtures(folder, splits=("train",), **of_item):
    """Four mixtures of two of eight speakers, each a level of its own, in each split named."""
    items = {split: [] for split in splits}
    for split, index in product(splits, range(4)):
        paths = [f"{split}/{kind}/{index}.wav" for kind in ("mix", "s1", "s2")]
        for number, path in enumerate(paths):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            tone = np.sin((2 * index + number + 1) / 20 * np.arange(N_FRAMES))
            soundfile.write(folder / path, 0.1 * tone, RATE)
        who = tuple(f"{split} {side}{index}" for side in "ab")
        known = {"speakers": who, "recordings": (f"{split} {index}",)} | of_item
        kind = ("mixture", paths[0], N_FRAMES, RATE, tuple(paths[1:]))
        items[split].append(Item(f"{split}_{index}", *kind, **known))
    manifest.write(folder, items, {"name": "ready"})
    return str(folder)


def dynamic(corpus):
    changes = {"corpora": (corpus,), "mixture.segment_s": 0.25, "n_per_epoch": 20}
    return replaced(EXPERIMENTS["sepmamba-s"], changes)


def test_ready_mixtures_are_mixed_anew(tmp_path):
    """Any speaker with any other, in no more than the published peak."""
    examples = launch.training_examples(dynamic(ready_mixtures(tmp_path)))
    drawn = [examples.mixture(0, 0, index) for index in range(20)]
    together = {frozenset(name[-5] for name in mixture.recordings) for mixture in drawn}
    assert len(together) > 2 and {len(mixture.recordings) for mixture in drawn} == {2}
    for mixture in drawn:
        assert max(mixture.noisy.abs().max(), mixture.clean.abs().max()) == pytest.approx(0.9)
        assert len(set(mixture.recordings)) == 2
        low, high = (10 * part.square().mean().log10() for part in mixture.clean)
        assert -0.01 < high - low < 5.01


@pytest.mark.parametrize("of_item", [{"snr_db": 5.0}, {"speakers": ()}])
def test_what_has_noise_or_no_names_is_not_mixed_anew(of_item, tmp_path):
    with pytest.raises(UserError, match="ready mixtures and no speech to mix; set examples=pairs"):
        launch.training_examples(dynamic(ready_mixtures(tmp_path, **of_item)))


def test_every_size_and_ablation_has_a_training():
    of_system = {name: e.model for name, e in EXPERIMENTS.items() if e.system == "umambanet"}
    known = [config for name, config in CONFIGS.items() if name != "tiny"]
    assert all(config in of_system.values() for config in known)
    assert of_system["umambanet-without-mamba"] == CONFIGS["without_mamba"]
    assert of_system["umambanet-one-block"] == CONFIGS["one_block"]


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_trained_on_ready_mixtures(name, tmp_path):
    """At its published size by name; here a tiny one takes two steps with these settings."""
    published, tiny = (PEERS[name].CONFIGS[size] for size in ("published", "tiny"))
    assert EXPERIMENTS[name].model == published
    corpus = ready_mixtures(tmp_path / "ready", ("train", "dev"))
    few = {"n_steps": 2, "validate_every": 2, "log_every": 1, "n_workers": 0}
    changes = {"model": tiny, "corpora": (corpus,), "pair.segment_s": 0.25}
    changes |= {f"training.{setting}": value for setting, value in few.items()}
    run = launch.train(replaced(EXPERIMENTS[name], changes), tmp_path / "runs", progress=False)
    assert run.step == 2 and np.isfinite(run.history["loss"]).all() and len(run.history) == 2
    assert run.dev["file"].tolist() == [f"dev_{index}" for index in range(4)]


def test_peers_differ_where_their_papers_do():
    """SepFormer: one example a step; SuDoRM-RF: a third of the rate after 49 epochs."""
    rates = {name: EXPERIMENTS[name].training for name in PEERS}
    assert [rates[name].batch_size for name in PEERS] == [4, 4, 1, 4]
    assert rates["sepformer"].lr == 1.5e-4 and rates["sepformer"].schedule == "constant"
    assert schedule.factor(rates["sudormrf"], 10_000, 49) == pytest.approx(1 / 3, rel=1e-3)
