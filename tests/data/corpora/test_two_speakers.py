"""Two speakers from another corpus: its splits and speakers, in one room, reproducible."""

import numpy as np
import pytest

from speechlab.data.corpora import two_speakers
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.data.mixing import Mixtures
from speechlab.data.recordings import Source
from speechlab.data.synthesis import rooms
from speechlab.errors import UserError
from tests.support import tiny_corpora

SPEAKERS = tiny_corpora.SPEAKERS


@pytest.fixture
def toy(tmp_path):
    return tiny_corpora.speakers_and_noise(tmp_path / "toy")


def items(target, split, kind="mixture"):
    return tiny_corpora.items(target, kind)[split]


def test_a_mixture_is_the_sum_of_two_speakers_of_its_split(tmp_path, toy):
    tiny_corpora.prepare("two_speakers", tmp_path / "two", toy)
    assert not items(tmp_path / "two", "train")
    for split in ("dev", "test"):
        mixtures = items(tmp_path / "two", split)
        assert len(mixtures) == 3
        for item in mixtures:
            assert set(item.speakers) == set(SPEAKERS[split]) and len(item.sources) == 2
            mix, first, second = tiny_corpora.waveforms(tmp_path / "two", item)
            assert (*mix.shape, item.sample_rate) == (4000, 8000)
            np.testing.assert_array_equal(mix, first + second)
    speech = items(tmp_path / "two", "train", "speech")
    assert {item.speakers[0] for item in speech} == set(SPEAKERS["train"])
    assert {item.n_frames for item in speech} == {6400}
    assert not items(tmp_path / "two", "train", "noise")
    folder = tmp_path / "two" / "test"
    assert {path.name for path in folder.iterdir()} == {"speech", *two_speakers.FOLDERS}


def test_in_noise_both_are_in_one_room(tmp_path, toy):
    tiny_corpora.prepare("two_speakers_noisy", tmp_path / "two", toy)
    places = items(tmp_path / "two", "train", "room")
    assert len(places) == 4 and len({item.recordings for item in places}) == 2
    for item in items(tmp_path / "two", "dev"):
        mix, first, second = tiny_corpora.waveforms(tmp_path / "two", item)
        rest = mix - first - second  # noise and late reverberation
        assert np.abs(rest).max() > 1e-3 and item.snr_db is not None
        assert "rain_dev" in item.recordings
    speech, noise, room = (
        [Source(tmp_path / "two", item) for item in items(tmp_path / "two", "train", kind)]
        for kind in ("speech", "noise", "room")
    )
    config = two_speakers.recipe(CORPORA["two_speakers_noisy"].config(mixture_s=0.5))
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


def test_what_the_source_lacks_is_said(tmp_path, toy):
    alone = tiny_corpora.speakers_and_noise(tmp_path / "alone", SPEAKERS | {"dev": ("dan",)})
    with pytest.raises(UserError, match="two or more named speakers in dev"):
        tiny_corpora.prepare("two_speakers", tmp_path / "two", alone)
    quiet = tiny_corpora.speakers_and_noise(tmp_path / "quiet", noisy=())
    with pytest.raises(UserError, match="has no noise in train"):
        tiny_corpora.prepare("two_speakers_noisy", tmp_path / "two", quiet)
    few = tiny_corpora.speakers_and_noise(tmp_path / "few", SPEAKERS | {"test": ()})
    told = tiny_corpora.prepare("two_speakers", tmp_path / "two", few)
    assert any("test: no speech of two speakers" in line for line in told)
    with pytest.raises(UserError, match="made from another"):
        tiny_corpora.prepare("two_speakers", tmp_path / "two", toy)
