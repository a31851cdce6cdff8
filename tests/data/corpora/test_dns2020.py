"""DNS-2020 from folders laid out as the branch interspeech2020/master."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from speechlab.audio import files
from speechlab.data import manifest, test_sets
from speechlab.data.corpora import dns2020
from speechlab.data.corpora.dns2020 import Dns2020Config
from speechlab.errors import UserError
from tests.support import tiny_corpora

NAME = "dns2020"
SHORT: Dns2020Config = tiny_corpora.config(NAME, Path())


@pytest.fixture
def raw(small) -> Path:
    return small(NAME).raw


@pytest.fixture
def prepared(small) -> Path:
    return small(NAME).folder


def materials(raw: Path, config: Dns2020Config = SHORT) -> dict[str, dns2020.Material]:
    return dns2020.split_material(raw / "datasets", config)


def rms_db(signal: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(signal**2)))


def test_clips_are_as_long_as_asked_and_as_many(prepared):
    for split, n in (("train", 12), ("dev", 4)):
        assert [item.n_frames for item in manifest.read(prepared, split)] == n * [16000]


def test_snr_asked_is_snr_measured_and_the_level_is_in_its_range(prepared):
    items = manifest.read(prepared, "train") + manifest.read(prepared, "dev")
    levels = set(np.linspace(-5, 25, 31))
    for item in items:
        noisy, clean = tiny_corpora.waveforms(prepared, item).astype(float)
        assert rms_db(clean) - rms_db(noisy - clean) == pytest.approx(item.snr_db, abs=0.1)
        assert -35.1 < rms_db(noisy) < -14.9
        assert np.abs(noisy).max() <= 0.9901
        assert item.snr_db in levels
    assert len({item.snr_db for item in items}) > 8


def test_splits_share_no_reader_no_book_and_no_noise(raw):
    found = materials(raw)
    for kind, group in (
        ("clean", lambda path: dns2020.READER.search(path)[2]),
        ("noise", dns2020.noise_recording),
    ):
        groups = {split: {group(p) for p in getattr(found[split], kind)} for split in found}
        assert groups["train"] and groups["dev"]
        assert not groups["train"] & groups["dev"]


def test_the_parts_of_one_freesound_recording_stay_together():
    assert dns2020.noise_recording("noise/door_Freesound_validated_470344_10.wav") == (
        "door_Freesound_validated_470344"
    )
    assert dns2020.noise_recording("noise/abcdefghi_1.wav") == "abcdefghi_1"  # an AudioSet id


def test_a_clip_is_a_function_of_seed_split_and_index(raw):
    train = materials(raw)["train"]
    clip = dns2020.make_clip(SHORT, train, "train", 3)
    np.testing.assert_array_equal(clip.noisy, dns2020.make_clip(SHORT, train, "train", 3).noisy)
    longer = replace(SHORT, hours=500, jobs=7)  # more clips and processes: the first are the same
    np.testing.assert_array_equal(clip.noisy, dns2020.make_clip(longer, train, "train", 3).noisy)
    others = (
        dns2020.make_clip(SHORT, train, "train", 4),
        dns2020.make_clip(SHORT, train, "dev", 3),
        dns2020.make_clip(replace(SHORT, seed=1), train, "train", 3),
    )
    for other in others:
        assert not np.array_equal(clip.noisy, other.noisy)


def test_joined_files_have_a_pause_between_them(raw):
    train = materials(raw)["train"]
    short = tuple(path for path in train.clean if path.endswith("_0.wav"))  # 0.4 s each
    quiet = replace(SHORT, min_activity=0.0)
    clip = dns2020.make_clip(quiet, replace(train, clean=short), "train", 0)
    assert len(clip.clean_files) == 2
    pause = clip.clean[round(0.4 * 16000) : round(0.6 * 16000)]
    assert not pause.any()
    assert clip.clean[round(0.4 * 16000) - 1] != 0 != clip.clean[round(0.6 * 16000)]


def test_what_would_clip_is_scaled_down_together():
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 16000))
    clean[5] = 100.0  # a peak that no level of -15 dBFS can hold
    noisy, scaled = dns2020.mixed(clean, noise, snr_db=3.0, level_db=-15.0)
    assert np.abs(noisy).max() == pytest.approx(0.99)
    assert rms_db(scaled) - rms_db(noisy - scaled) == pytest.approx(3.0)


def test_activity_tells_speech_from_silence():
    rng = np.random.default_rng(0)
    speech = rng.standard_normal(16000)
    assert dns2020.activity(speech, 16000) == 1.0
    assert dns2020.activity(np.zeros(16000), 16000) == 0.0
    half = np.concatenate([speech[:8000], 1e-5 * speech[8000:]])
    assert 0.4 < dns2020.activity(half, 16000) < 0.6


def test_clipped_files_and_clips_without_speech_are_drawn_again(raw, tmp_path):
    root = tmp_path / "datasets"
    good = tiny_corpora.noise(root / "clean" / "book_00001_chp_0001_reader_00001_0.wav", 1.5)
    loud = tiny_corpora.noise(good.with_name(good.name.replace("_0.", "_1.")), 1.5, level=9)
    samples, rate = files.load(loud)
    files.save(loud, samples * 1.11, rate)
    click = torch.zeros(1, 16000)  # as long as a clip: no silent part of it can be cut out
    click[0, 100:200] = 0.5
    files.save(good.with_name(good.name.replace("_0.", "_2.")), click, 16000)
    tiny_corpora.noise(root / "noise" / "a.wav", 1.5)
    names = tuple(sorted(f"clean/{path.name}" for path in (root / "clean").iterdir()))
    material = dns2020.Material(root, names, ("noise/a.wav",))
    for index in range(5):
        clip = dns2020.make_clip(SHORT, material, "train", index)
        assert clip.clean_files == (f"clean/{good.name}",)
    with pytest.raises(UserError, match="in a row are clipped or silent"):
        dns2020.make_clip(SHORT, replace(material, clean=(f"clean/{loud.name}",)), "train", 0)
    with pytest.raises(UserError, match="in a row have little speech"):
        dns2020.make_clip(SHORT, replace(material, clean=names[2:]), "train", 0)


def test_the_test_set_is_copied_byte_for_byte(prepared, raw):
    test = raw / "datasets" / "test_set" / "synthetic" / "no_reverb"
    assert tiny_corpora.content(prepared / "test") == tiny_corpora.content(test)
    names = [pair.name for pair in test_sets.find(prepared / "test")]
    assert names == ["fileid_0", "fileid_9", "fileid_12"]
    assert manifest.about(prepared)["complete_test"] is False
    items = manifest.parse(prepared / "test.csv")
    assert [item.snr_db for item in items] == [15.0] * 3


def test_plain_names_of_the_test_set_are_understood(raw, tmp_path):
    other = tmp_path / "raw"
    for folder in ("clean", "noise"):
        (other / folder).parent.mkdir(exist_ok=True)
        (other / folder).symlink_to(raw / "datasets" / folder)
    for number in (0, 2):
        for kind in ("noisy", "clean"):
            path = other / "test_set" / "synthetic" / "no_reverb" / kind / f"fileid_{number}.wav"
            tiny_corpora.noise(path)
    tiny_corpora.prepare(NAME, tmp_path / "prepared", other, hours=0.0, dev_hours=0.0)
    pairs = test_sets.find(tmp_path / "prepared" / "test")
    assert [pair.name for pair in pairs] == ["fileid_0", "fileid_2"]
    assert test_sets.recognise(pairs) is None  # of these names, and of other contents


def test_clips_of_other_files_are_not_reused(raw, tmp_path, monkeypatch):
    target = tmp_path / "prepared"
    with monkeypatch.context() as broken:
        broken.setattr(dns2020.preparing.manifest, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny_corpora.prepare(NAME, target, raw)
    extra = tiny_corpora.noise(raw / "datasets" / "noise" / "-9zc369s0Xs.wav", 0.7)
    try:
        tiny_corpora.prepare(NAME, target, raw)
        tiny_corpora.prepare(NAME, tmp_path / "fresh", raw)
    finally:
        extra.unlink()
    assert tiny_corpora.content(target) == tiny_corpora.content(tmp_path / "fresh")


def test_broken_files_are_as_if_they_were_not_there(tmp_path):
    raw, without = (tiny_corpora.lay_out(NAME, tmp_path / name) for name in ("raw", "without"))
    pair = "test_set/synthetic/no_reverb/noisy/clnsp1_train_69005_1_snr15_tl-21_fileid_9.wav"
    voice = "clean/book_00003_chp_0009_reader_06703_7.wav"
    for name in (voice, "noise/--9VR_F7CtY.wav", pair):
        (raw / "datasets" / name).write_text("no sound")
        (without / "datasets" / name).unlink()
    (without / "datasets" / pair).parent.with_name("clean").joinpath("clean_fileid_9.wav").unlink()
    few = {"hours": 4 / 3600, "dev_hours": 2 / 3600}
    with pytest.raises(UserError, match=r"2 of 23 files .* or leave them out with --skip-broken"):
        tiny_corpora.prepare(NAME, tmp_path / "a", raw, **few)
    tiny_corpora.prepare(NAME, tmp_path / "a", raw, **few, skip_broken=True)
    tiny_corpora.prepare(NAME, tmp_path / "b", without, **few)
    found, wanted = (tiny_corpora.content(tmp_path / name) for name in "ab")
    assert len(found.pop("left_out.txt").splitlines()) == 3
    for content in (found, wanted):
        del content["corpus.json"], content["sources.csv"]
    assert found == wanted


def test_a_name_without_a_reader_is_told(tmp_path):
    tiny_corpora.noise(tmp_path / "clean" / "mine.wav")
    tiny_corpora.noise(tmp_path / "noise" / "a.wav")
    with pytest.raises(UserError, match=r"clean/mine\.wav names no reader"):
        dns2020.split_material(tmp_path, SHORT)


def test_the_disk_is_measured_before_the_start(raw, tmp_path):
    with pytest.raises(UserError, match=r"dns2020 needs 2304000000\.2 GB"):
        tiny_corpora.prepare(NAME, tmp_path / "x", raw, hours=1e10, clip_s=30.0, dev_hours=1.0)
