"""The embedded corpus: the same bytes however it is made, splits apart, mixtures as asked."""

import os
import signal
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from speechlab.data import manifest
from speechlab.data.corpora import prepare as preparing
from speechlab.data.corpora import synthetic
from speechlab.data.corpora.synthetic import SyntheticConfig
from speechlab.data.test_sets import find
from speechlab.errors import UserError
from speechlab.storage.atomic import sha256
from tests.support import tiny_corpora
from tests.support.tiny_corpora import content, waveforms
from tests.support.training_toys import ended, forked

pytest.importorskip("espeakng_loader")
pytest.importorskip("pyroomacoustics")

TINY: SyntheticConfig = tiny_corpora.config("synthetic", Path())
# The first 16 digits of some files' SHA-256, with the versions in constraints.txt.
FROZEN = {
    "train/speech/train_speech_0000.wav": "2384372bd21ac444",
    "train/rooms/train_room_0000.wav": "d3e6e6245918b098",
    "dev/noise/dev_noise_coloured_0000.wav": "0ae00ef3f8df381f",
    "dev/noise/dev_noise_modulated_0000.wav": "e42522286c0bdc77",
    "test/noise/test_noise_impulsive_0000.wav": "a27f1a48fb66cee2",
    "test/noise/test_noise_hum_0000.wav": "85af5af9a15fb2dc",
    "test/noise/test_noise_babble_0000.wav": "496e38975a9c1782",
    "test/noisy/test_0003_impulsive.wav": "fea75759f9d7b9b4",
}
DONE = os.WEXITED | os.WNOHANG | os.WNOWAIT  # of a process: asked, not waited for
FROZEN_WITH = {
    "espeakng-loader": "0.2.4",
    "numpy": "2.4.6",
    "pyroomacoustics": "0.10.1",
    "soxr": "1.1.0",
}


def items(folder, *kinds):
    return [item for found in tiny_corpora.items(folder, *kinds).values() for item in found]


def level_db(wave):
    return 10 * np.log10(np.mean(wave**2))


@pytest.fixture
def corpus(small):
    return small("synthetic").folder


@pytest.mark.usefixtures("forks")
def test_killed_and_resumed_the_bytes_are_the_same(corpus, tmp_path):
    """Other processes, another order, kill -9 in the middle, a torn file: nothing shows."""
    other = tmp_path / "corpus"

    def prepare():
        os.setsid()
        preparing.Preparation.finish = lambda *_, **__: time.sleep(3600)  # until it is killed
        synthetic.prepare(other, replace(TINY, jobs=2), str)

    child = forked(prepare)
    while os.waitid(os.P_PID, child, DONE) is None and len(list(other.rglob("*.wav"))) < 6:
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert not (other / manifest.ABOUT).exists()
    with pytest.raises(UserError, match="no prepared corpus"):
        manifest.read(other, "train")
    (other / "train" / "speech" / "train_speech_0003.wav").unlink(missing_ok=True)
    (other / "train" / "speech" / "train_speech_0003.wav.part").write_bytes(b"RIFF half of it")
    synthetic.prepare(other, TINY, str)
    assert content(other) == content(corpus)


def test_frozen_bytes(corpus):
    found = {path: sha256(corpus / path)[:16] for path in FROZEN}
    if {name: metadata.version(name) for name in FROZEN_WITH} != FROZEN_WITH:
        pytest.skip("frozen with other versions")
    assert found == FROZEN


def test_default_splits_share_nothing():
    """Of the plan alone, with every voice and sentence in it."""
    config = SyntheticConfig()
    splits = {
        split: [
            recipe.item
            for of in (synthetic._recordings, synthetic._babbles, synthetic._mixtures)
            for recipe in of(config, split, "")
        ]
        for split in manifest.SPLITS
    }
    manifest.check_disjoint(splits)
    said = [item for item in splits["train"] if item.kind == "speech"]
    assert len({item.speakers for item in said}) == 28
    assert len({r for item in said for r in item.recordings}) > 230


def test_speech_has_its_text_and_the_corpus_its_key(corpus):
    for item in items(corpus):
        assert (item.kind in ("speech", "mixture")) == bool(item.text)
    assert manifest.about(corpus)["key"] == synthetic.key(TINY)


def test_mixtures_are_speech_plus_noise_at_the_snr(corpus):
    mixtures = items(corpus, "mixture")
    assert len(mixtures) == 2 * TINY.n_held_out
    for item in mixtures:
        noisy, clean = waveforms(corpus, item).astype(float)
        measured = level_db(clean) - level_db(noisy - clean)
        assert measured == pytest.approx(item.snr_db, abs=0.1)
        assert TINY.snr_db[0] <= item.snr_db <= TINY.snr_db[1]
    kinds = {(item.name[: item.name.index("_")], item.name.split("_")[2]) for item in mixtures}
    assert kinds == {(split, kind) for split in ("dev", "test") for kind in synthetic.NOISES}


def test_snrs_of_each_kind_cover_the_range():
    """8 mixtures of a kind: one in each eighth of -5 to 15 dB."""
    recipes = synthetic._mixtures(SyntheticConfig(), "test", "")
    for kind in synthetic.NOISES:
        snrs = [r.item.snr_db for r in recipes if r.item.name.endswith(kind)]
        assert sorted((np.array(snrs) + 5) // 2.5) == list(range(8))


def test_no_babble_holds_the_sentences_that_it_is_mixed_with():
    for split in ("dev", "test"):
        recipes = synthetic._mixtures(SyntheticConfig(), split, "")
        talks = [item for item, _ in synthetic._talks(SyntheticConfig(), split)]
        babble = {r.item.path: r.item for r in synthetic._babbles(SyntheticConfig(), split, "")}
        for recipe, talk in zip(recipes, talks, strict=True):
            noise = babble.get(recipe.arguments[4])
            assert noise is None or not set(noise.recordings) & set(talk.recordings)


def test_nothing_is_clipped_and_levels_are_sane(corpus):
    for item in items(corpus):
        for wave in waveforms(corpus, item).astype(float):
            assert np.abs(wave).max() <= synthetic.PEAK + 2**-15
            assert abs(wave.mean()) < 0.01
            assert -50 < level_db(wave) < -15
    for item in items(corpus, "speech"):
        assert level_db(waveforms(corpus, item).astype(float)) == pytest.approx(-26, abs=0.01)
        assert 2.5 < item.seconds < 12


def test_ready_pairs_are_found(corpus):
    for split in ("dev", "test"):
        pairs = find(corpus / split)
        assert len(pairs) == TINY.n_held_out
        assert all(pair.mixture.name == pair.sources[0].name for pair in pairs)


def test_a_room_with_its_gain_has_a_direct_sound_of_level_1(corpus):
    for item in items(corpus, "room"):
        wave = waveforms(corpus, item)[0] * 10 ** (item.gain_db / 20)
        assert wave.max() == pytest.approx(0.91, abs=0.05) and np.abs(wave).argmax() == 64


def test_another_seed_is_another_corpus():
    first, second = (
        synthetic._by_rule(Path(), replace(TINY, seed=seed), "train", "hum", 0)[0]
        for seed in (0, 1)
    )
    assert not np.allclose(first, second)
    assert synthetic.key(TINY) != synthetic.key(replace(TINY, seed=1))
    assert synthetic.key(TINY) == synthetic.key(replace(TINY, jobs=3))


def test_a_file_does_not_depend_on_how_many_there_are():
    """A smaller corpus is the beginning of a larger one."""
    few, many = (
        {r.item.name: replace(r, arguments=r.arguments[1:]) for r in recipes}
        for recipes in (
            synthetic._recordings(config, "train", "")
            for config in (synthetic.SMOKE, SyntheticConfig())
        )
    )
    assert few and all(many[name] == recipe for name, recipe in few.items())


def test_other_versions_are_refused(corpus, monkeypatch):
    monkeypatch.setattr(synthetic, "GENERATOR", 2)
    with pytest.raises(UserError, match="generator 1 there, 2 here"):
        synthetic.prepare(corpus, TINY, str)


def test_without_the_extra_the_fix_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[synth\]'"):
        synthetic.prepare(tmp_path / "corpus", TINY, str)
    assert not (tmp_path / "corpus").exists()


def test_the_rooms_leave_torch_as_it_is():
    """pyroomacoustics beside PyTorch: neither its threads nor its default type change."""
    threads, kind = torch.get_num_threads(), torch.get_default_dtype()
    synthetic._response(Path(), TINY, "train", 0)
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, kind)
