"""Trainings of separation: as published, and on the talkers that ready mixtures hold."""

import numpy as np
import pytest
import soundfile

from speechlab import experiments, launch, splits
from speechlab.configuration import replaced
from speechlab.corpora import manifest
from speechlab.corpora.manifest import Item
from speechlab.errors import UserError
from speechlab.experiments import EXPERIMENTS
from speechlab.models.umambanet import CONFIGS

RATE, N_FRAMES = 8000, 4000  # Hz; samples of every file


def ready_mixtures(folder, **of_item):
    """Four mixtures of two of eight talkers, each a level of its own, in train; none elsewhere."""
    items = []
    for index in range(4):
        paths = [f"train/{kind}/{index}.wav" for kind in ("mix", "s1", "s2")]
        for number, path in enumerate(paths):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            tone = np.sin((2 * index + number + 1) / 20 * np.arange(N_FRAMES))
            soundfile.write(folder / path, 0.1 * tone, RATE)
        known = {"speakers": (f"a{index}", f"b{index}"), "recordings": (f"{index}",)} | of_item
        kind = ("mixture", paths[0], N_FRAMES, RATE, tuple(paths[1:]))
        items.append(Item(f"mix_{index}", *kind, **known))
    manifest.write(folder, {"train": items}, {"name": "ready"})
    return str(folder)


def dynamic(corpus):
    changes = {"corpora": (corpus,), "mixture.segment_s": 0.25, "n_per_epoch": 20}
    return replaced(EXPERIMENTS["sepmamba-s"], changes)


def test_ready_mixtures_are_mixed_anew(tmp_path):
    """Any talker with any other, in no more than the published peak."""
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


def test_the_ready_mixtures_stay_what_they_are(tmp_path):
    corpus = ready_mixtures(tmp_path)
    before = splits.read([corpus], "train")["mixture"]
    launch.training_examples(dynamic(corpus))
    assert splits.read([corpus], "train")["mixture"] == before


def test_every_size_and_ablation_has_a_training():
    of_system = {name: e.model for name, e in EXPERIMENTS.items() if e.system == "umambanet"}
    known = [config for name, config in CONFIGS.items() if name != "tiny"]
    assert all(config in of_system.values() for config in known)
    assert of_system["umambanet-without-mamba"] == CONFIGS["without_mamba"]
    for name in ("sepmamba-tiny", "umambanet-tiny", "dprnn", "conv-tasnet"):
        experiments.check(EXPERIMENTS[name])
