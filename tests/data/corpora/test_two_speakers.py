"""Two speakers from another corpus: its splits and speakers, in one room, reproducible."""

import dataclasses

import numpy as np
import pytest

from speechlab.audio import files as audio
from speechlab.data import manifest
from speechlab.data.corpora import two_speakers
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.manifest import Item
from speechlab.data.mixing import Mixtures
from speechlab.data.recordings import Source
from speechlab.data.synthesis import rooms
from speechlab.errors import UserError
from speechlab.storage.atomic import sha256
from tests.support import tiny_corpora

SPEAKERS = {"train": ("anna", "ben", "carla"), "dev": ("dan", "eva"), "test": ("finn", "gina")}
SMALL = {"n_mixtures": 3, "mixture_s": 0.5, "jobs": 1}
ROOMS = {"n_rooms": 2, "n_rooms_held_out": 1, "rt60_s": (0.15, 0.2)}


def source(folder, speakers=SPEAKERS, noise=("train", "dev", "test")):
    """A prepared corpus at 16 kHz with two recordings of each speaker and a noise in each split."""
    splits = {}
    for split, names in speakers.items():
        planned = [("speech", f"{name}_{i}", (name,)) for name in names for i in range(2)]
        planned += [("noise", f"rain_{split}", ())] if split in noise else []
        splits[split] = []
        for kind, name, speakers in planned:
            path = tiny_corpora.noise(folder / split / f"{name}.wav", seconds=0.8)
            item = Item(name, kind, f"{split}/{name}.wav", 12800, 16000, speakers=speakers)
            item = dataclasses.replace(item, recordings=(name,), sha256=sha256(path))
            splits[split].append(item)
    manifest.write(folder, splits, {"corpus": "toy", "options": {}})
    return folder


def prepare(name, target, folder, **changes):
    told, corpus = [], CORPORA[name]
    rooms_too = ROOMS if corpus is two_speakers.NOISY else {}
    config = corpus.config(source=str(folder), **SMALL | rooms_too | changes)
    corpus.prepare(target, config, told.append)
    return told


def items(target, split, kind="mixture"):
    found = manifest.parse(target / f"{split}.csv")
    return [item for item in found if item.kind == kind]


def test_a_mixture_is_the_sum_of_two_speakers_of_its_split(tmp_path):
    prepare("two_speakers", tmp_path / "two", source(tmp_path / "toy"))
    assert not items(tmp_path / "two", "train")
    for split in ("dev", "test"):
        mixtures = items(tmp_path / "two", split)
        assert len(mixtures) == 3
        for item in mixtures:
            assert set(item.speakers) == set(SPEAKERS[split]) and len(item.sources) == 2
            files = [audio.load(tmp_path / "two" / path) for path in (item.path, *item.sources)]
            assert {rate for _, rate in files} == {8000}
            mix, first, second = (samples for samples, _ in files)
            assert mix.shape == (1, 4000)
            np.testing.assert_array_equal(mix, first + second)
    speech = items(tmp_path / "two", "train", "speech")
    assert {item.speakers[0] for item in speech} == set(SPEAKERS["train"])
    assert {item.n_frames for item in speech} == {6400}
    assert not items(tmp_path / "two", "train", "noise")
    folder = tmp_path / "two" / "test"
    assert {path.name for path in folder.iterdir()} == {"speech", *two_speakers.FOLDERS}


def test_in_noise_both_are_in_one_room(tmp_path):
    prepare("two_speakers_noisy", tmp_path / "two", source(tmp_path / "toy"))
    places = items(tmp_path / "two", "train", "room")
    assert len(places) == 4 and len({item.recordings for item in places}) == 2
    for item in items(tmp_path / "two", "dev"):
        files = [audio.load(tmp_path / "two" / p)[0] for p in (item.path, *item.sources)]
        rest = files[0] - files[1] - files[2]  # noise and late reverberation
        assert rest.abs().max() > 1e-3 and item.snr_db is not None
        assert "rain_dev" in item.recordings
    speech, noise, room = (
        [Source(tmp_path / "two", item) for item in items(tmp_path / "two", "train", kind)]
        for kind in ("speech", "noise", "room")
    )
    config = two_speakers.recipe(CORPORA["two_speakers_noisy"].config(**SMALL))
    examples = Mixtures(speech, noise, room, config, 9)
    for index in range(5):
        pair = np.random.default_rng(index)
        chosen = examples._rooms(pair)
        assert len(chosen) == 2 and not np.array_equal(*chosen)
        assert abs(len(chosen[0]) - len(chosen[1])) <= 1  # as long as the room reverberates


def test_two_places_of_a_room_are_two_responses():
    pytest.importorskip("pyroomacoustics")
    first, second = rooms.drawn_pair(np.random.default_rng(0), (0.2, 0.3), 8000)
    assert len(first) == len(second) and not np.allclose(first, second)
    for samples in (first, second):
        assert np.abs(samples).argmax() == rooms.direct_at(8000)


def test_the_same_bytes_however_it_is_made(tmp_path):
    toy = source(tmp_path / "toy")
    for target, jobs in (("one", 1), ("two", 2)):
        prepare("two_speakers_noisy", tmp_path / target, toy, jobs=jobs)
    assert tiny_corpora.content(tmp_path / "one") == tiny_corpora.content(tmp_path / "two")
    told = [f"{tmp_path / 'one'} is prepared already"]
    assert prepare("two_speakers_noisy", tmp_path / "one", toy) == told
    toy.rename(tmp_path / "elsewhere")  # what is made needs its source no more
    assert prepare("two_speakers_noisy", tmp_path / "one", toy) == told


def test_what_the_source_lacks_is_said(tmp_path):
    with pytest.raises(UserError, match="no prepared corpus"):
        prepare("two_speakers", tmp_path / "two", tmp_path / "nowhere")
    alone = source(tmp_path / "alone", SPEAKERS | {"dev": ("dan",)})
    with pytest.raises(UserError, match="two known speakers or more in dev"):
        prepare("two_speakers", tmp_path / "two", alone)
    quiet = source(tmp_path / "quiet", noise=())
    with pytest.raises(UserError, match="has no noise in train"):
        prepare("two_speakers_noisy", tmp_path / "two", quiet)
    told = prepare(
        "two_speakers", tmp_path / "two", source(tmp_path / "few", SPEAKERS | {"test": ()})
    )
    assert any("test: no speech of two speakers" in line for line in told)
    with pytest.raises(UserError, match="made from another"):
        prepare("two_speakers", tmp_path / "two", source(tmp_path / "toy"))
    with pytest.raises(UserError, match="two speakers: n_mixtures must be"):
        two_speakers.TwoSpeakersConfig(n_mixtures=0)
    with pytest.raises(UserError, match="mixture_s must be"):
        two_speakers.TwoSpeakersConfig(mixture_s=0)
    with pytest.raises(UserError, match="jobs is -1"):
        prepare("two_speakers", tmp_path / "none", tmp_path / "toy", jobs=-1)
