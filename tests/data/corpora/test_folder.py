"""A user's own recordings, in every layout that is understood."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from speechlab.audio import files
from speechlab.cli.main import main
from speechlab.data import manifest, test_sets
from speechlab.data.corpora.folder import CORPUS, FolderConfig
from speechlab.errors import UserError
from tests.support import tiny_corpora
from tests.support.tiny_corpora import items, pairs, utterances, waveforms

SPEAKERS = ("anna", "ben", "carla", "dan", "eva", "finn")


def prepare(target: Path, raw: Path, **changes) -> list[str]:
    """With the settings' own defaults."""
    told = []
    CORPUS.prepare(target, FolderConfig(raw=str(raw), jobs=1, **changes), told.append)
    return told


@pytest.fixture
def raw(tmp_path) -> Path:
    """Pairs of six speakers."""
    return pairs(tmp_path / "raw", utterances(SPEAKERS))


def speakers_of(target: Path) -> dict[str, set[str]]:
    return {s: {name for i in found for name in i.speakers} for s, found in items(target).items()}


def test_flat_pairs_are_split_by_speaker_always_the_same(raw, tmp_path):
    prepare(tmp_path / "one", raw, dev_percent=30)
    found, speakers = items(tmp_path / "one"), speakers_of(tmp_path / "one")
    assert speakers["train"] and speakers["dev"] and not speakers["test"]
    assert speakers["train"] | speakers["dev"] == set(SPEAKERS)
    pairs(raw, ["gina_001"])
    prepare(tmp_path / "more", raw, dev_percent=30)
    for split in ("train", "dev"):  # a new speaker moves no other one
        assert {i.name for i in found[split]} <= {i.name for i in items(tmp_path / "more")[split]}


def test_a_pair_tells_all(raw, tmp_path):
    prepare(tmp_path / "p", raw)
    for split, found in items(tmp_path / "p").items():
        for item in found:
            assert item.kind == "mixture"
            assert item.path == f"{item.name}.wav" and item.name.startswith(f"{split}/noisy/")
            assert item.sources == (item.path.replace("/noisy/", "/clean/"),)
            noisy, clean = waveforms(tmp_path / "p", item)
            np.testing.assert_allclose(clean, 0.5 * noisy, atol=2**-14)


def test_given_splits_are_kept_and_the_test_set_can_be_evaluated(tmp_path):
    given = {"train": set(SPEAKERS[:3]), "dev": set(SPEAKERS[3:5]), "test": {"finn"}}
    for split, speakers in given.items():
        pairs(tmp_path / "raw" / split, utterances(sorted(speakers)))
    prepare(tmp_path / "p", tmp_path / "raw")
    assert speakers_of(tmp_path / "p") == given
    names = [pair.name for pair in test_sets.find(tmp_path / "p" / "test")]
    assert names == ["finn_000", "finn_001", "finn_002"]


def test_a_speaker_or_a_recording_in_two_given_splits_is_refused(tmp_path):
    pairs(tmp_path / "raw" / "train", ["anna_001", "ben_001"])
    pairs(tmp_path / "raw" / "dev", ["anna_002"])
    with pytest.raises(UserError, match=r"speaker anna is in both train and dev.*speakers"):
        prepare(tmp_path / "p", tmp_path / "raw")
    assert not (tmp_path / "p").exists()  # refused before anything is converted
    told = prepare(tmp_path / "q", tmp_path / "raw", speakers="none")
    assert any("not known" in line for line in told)
    for kind in ("noisy", "clean"):
        copy = tmp_path / "raw" / "dev" / kind / "copied.wav"
        shutil.copy(tmp_path / "raw" / "train" / kind / "ben_001.wav", copy)
    with pytest.raises(UserError, match=r"recording [0-9a-f]+ is in both train and dev"):
        prepare(tmp_path / "r", tmp_path / "raw", speakers="none")


def test_without_speakers_what_is_one_recording_is_not_torn_apart(tmp_path):
    raw = tmp_path / "raw"
    for number in range(8):
        clean = tiny_corpora.noise(raw / "clean" / f"{number}_a.wav")
        shutil.copy(clean, raw / "clean" / f"{number}_b.wav")
        for letter in "ab":
            tiny_corpora.noise(raw / "noisy" / f"{number}_{letter}.wav")
    prepare(tmp_path / "p", raw, speakers="none", dev_percent=40)
    found = items(tmp_path / "p")
    assert found["train"] and found["dev"]
    assert not any(item.speakers for item in found["train"] + found["dev"])


@pytest.mark.parametrize("speakers", ["prefix", "folder"])
def test_speech_and_noise_are_held_out_each_by_its_own(tmp_path, speakers):
    for name in utterances(SPEAKERS):
        inner = f"{name.partition('_')[0]}/take-{name}.flac"
        tiny_corpora.noise(
            tmp_path / "raw" / "speech" / (inner if speakers == "folder" else f"{name}.wav")
        )
    for name in ("street", "kitchen", "rain", "deep/wind"):
        tiny_corpora.noise(
            tmp_path / "raw" / "noise" / f"{name}.wav", n_channels=2, sample_rate=44100
        )
    prepare(tmp_path / "p", tmp_path / "raw", speakers=speakers)
    found = items(tmp_path / "p")
    for split in ("train", "dev"):
        kinds = {item.kind for item in found[split]}
        assert kinds == {"speech", "noise"} | ({"mixture"} if split == "dev" else set())
        for item in found[split]:
            if item.kind == "mixture":
                continue
            assert item.path.startswith(f"{split}/{item.kind}/")
            assert bool(item.speakers) == (item.kind == "speech")
    assert set.union(*speakers_of(tmp_path / "p").values()) == set(SPEAKERS)


def test_speech_and_noise_of_dev_are_mixed(tmp_path):
    for name in utterances(SPEAKERS):
        tiny_corpora.noise(tmp_path / "raw" / "speech" / f"{name}.wav", seconds=0.6)
    for name in ("street", "kitchen", "rain"):
        tiny_corpora.noise(tmp_path / "raw" / "noise" / f"{name}.wav")
    mixing = {"n_mixtures": 7, "mixture_s": 0.5, "snr_db": (0.0, 10.0)}
    prepare(tmp_path / "one", tmp_path / "raw", **mixing)
    found = items(tmp_path / "one")
    of_kind = {kind: [i for i in found["dev"] if i.kind == kind] for kind in manifest.KINDS}
    heard = {key for kind in ("speech", "noise") for i in of_kind[kind] for key in i.recordings}
    assert len(of_kind["mixture"]) == 7
    for item in of_kind["mixture"]:
        assert set(item.recordings) <= heard and len(item.speakers) == 1
        noisy, clean = waveforms(tmp_path / "one", item)
        assert noisy.shape == clean.shape == (item.n_frames,) == (8000,)
        snr_db = 10 * np.log10(np.square(clean).mean() / np.square(noisy - clean).mean())
        assert 0 <= item.snr_db <= 10 and abs(snr_db - item.snr_db) < 0.1
    assert test_sets.find(tmp_path / "one" / "dev")
    prepare(tmp_path / "none", tmp_path / "raw", n_mixtures=0)
    assert {i.kind for i in items(tmp_path / "none")["dev"]} == {"speech", "noise"}


def test_what_cannot_be_mixed_is_told(tmp_path):
    for split, speaker in (("train", "anna"), ("dev", "ben")):
        tiny_corpora.noise(tmp_path / "raw" / split / "speech" / f"{speaker}_1.wav")
    told = prepare(tmp_path / "p", tmp_path / "raw")
    assert any("dev: no noise" in line for line in told)
    tiny_corpora.noise(tmp_path / "raw" / "dev" / "noise" / "rain.wav")
    silent = tmp_path / "raw" / "dev" / "speech" / "carla_1.wav"
    soundfile.write(silent, np.zeros(1600), 16000)
    with pytest.raises(UserError, match=r"carla_1\.wav: silent.*take it out of raw"):
        prepare(tmp_path / "q", tmp_path / "raw")


def test_a_float_file_beyond_full_scale_loses_nothing(raw, tmp_path):
    loud = 0.3 * np.random.default_rng(0).standard_normal(1600).astype(np.float32)
    loud[500] = -1.9
    for kind in ("noisy", "clean"):
        soundfile.write(raw / kind / "anna_000.wav", loud, 16000, subtype="FLOAT")
    told = prepare(tmp_path / "p", raw)
    n_beyond = np.count_nonzero(np.abs(loud) > 1)
    named = f"2 file(s) have samples beyond full scale: noisy/anna_000.wav (peak 1.90, {n_beyond})"
    assert any(named in line for line in told)
    path = next((tmp_path / "p").rglob("noisy/anna_000.wav"))
    np.testing.assert_array_equal(files.load(path)[0][0], loud)
    assert soundfile.info(path.with_name("anna_001.wav")).subtype == "PCM_16"


def test_one_speaker_alone_cannot_be_split(tmp_path):
    raw = pairs(tmp_path / "raw", ["rec_001", "rec_002", "rec_003"])
    with pytest.raises(UserError, match=r"only one speaker.*speakers=none"):
        prepare(tmp_path / "p", raw)
    prepare(tmp_path / "p", raw, speakers="none")
    assert all(items(tmp_path / "p")[split] for split in ("train", "dev"))


def test_one_message_says_what_a_folder_must_hold(tmp_path):
    with pytest.raises(UserError, match=r"noisy/ and clean/.*speech/ and noise/"):
        prepare(tmp_path / "p", tmp_path)
    with pytest.raises(UserError, match="holds no recordings"):
        prepare(tmp_path / "p", FolderConfig())
    (tmp_path / "train" / "speech").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    with pytest.raises(UserError, match=r"train: no sound files in speech"):
        prepare(tmp_path / "p", tmp_path)
    tiny_corpora.noise(tmp_path / "train" / "speech" / "anna_1.wav")
    with pytest.raises(UserError, match=r"dev has none of noisy/ and clean/"):
        prepare(tmp_path / "p", tmp_path)


def test_faults_of_single_files_are_named(raw, tmp_path):
    tiny_corpora.noise(raw / "noisy" / "alone_1.wav")
    with pytest.raises(UserError, match=r"one of noisy/ and clean/ only: alone_1; add"):
        prepare(tmp_path / "p", raw)
    (raw / "noisy" / "alone_1.wav").unlink()
    with pytest.raises(UserError, match=r"anna_000\.wav is not in a speaker's folder"):
        prepare(tmp_path / "p", raw, speakers="folder")
    for name, fault in (("a;b_1", "semicolon: a;b_1"), ("anna_\r", "control characters")):
        pairs(raw, [name])
        with pytest.raises(UserError, match=fault):
            prepare(tmp_path / "p", raw)
        for kind in ("noisy", "clean"):
            (raw / kind / f"{name}.wav").unlink()
    tiny_corpora.noise(raw / "noisy" / "ben_001.wav", seconds=0.2)
    with pytest.raises(UserError, match=r"ben_001\.wav are of different length \(3200 and 1600"):
        prepare(tmp_path / "p", raw)


def test_all_faults_are_one_list_before_the_conversion(tmp_path):
    """Damaged, empty, not finite, of another scale, length or layout, without partner."""
    raw = pairs(tmp_path / "raw", utterances(SPEAKERS))
    for number, kind in enumerate(("noisy", "clean")):
        (raw / kind / f"anna_00{number}.wav").write_bytes(b"")
        whole = raw / kind / f"ben_00{number}.wav"
        whole.write_bytes(whole.read_bytes()[:-99])
        scaled = np.linspace(-9000, 9000, 1600)
        soundfile.write(raw / kind / f"dan_00{number}.wav", scaled, 16000, subtype="FLOAT")
    broken = np.full(1600, np.nan)
    soundfile.write(raw / "noisy" / "eva_000.wav", broken, 16000, subtype="FLOAT")
    tiny_corpora.noise(raw / "noisy" / "eva_001.wav", n_channels=2)
    tiny_corpora.noise(raw / "noisy" / "eva_002.wav", seconds=0.2)
    tiny_corpora.noise(raw / "noisy" / "gina_000.wav")
    with pytest.raises(UserError, match=r"10 of 36 files cannot be used.*and 7 more") as error:
        prepare(tmp_path / "p", raw)
    assert "\n" not in str(error.value) and not (tmp_path / "p").exists()
    listed = tmp_path / "p.faults.txt"
    assert str(listed) in str(error.value)
    faults = listed.read_text().splitlines()[1:]
    assert len(faults) == 10 and sum("times full scale" in fault for fault in faults) == 2
    assert sum("1 and 2" in f or "2 and 1 channels" in f for f in faults) == 1
    told = prepare(tmp_path / "p", raw, skip_broken=True)
    assert any("10 of 36 files are left out" in line for line in told)
    assert sum(map(len, items(tmp_path / "p").values())) == 9
    left_out = (tmp_path / "p" / "left_out.txt").read_text()
    assert left_out.count("\n") == 10 and str(raw) not in left_out
    assert manifest.about(tmp_path / "p")["n_broken"] == 10 and not listed.exists()


def _speech(n: int = 16000) -> np.ndarray:
    """Noise with pauses, as speech has."""
    random = np.random.default_rng(0)
    return 0.2 * random.standard_normal(n) * np.repeat(random.random(n // 1000) ** 3, 1000)


def test_pairs_are_compared_and_outliers_named(tmp_path):
    random, raw = np.random.default_rng(1), tmp_path / "raw"
    for index, name in enumerate(utterances(SPEAKERS)):
        clean = np.roll(_speech(), 900 * index)
        noisy = clean + 0.02 * random.standard_normal(16000)
        noisy = {"anna_000": np.roll(noisy, 80), "ben_000": -noisy}.get(name, noisy)
        noisy = np.append(noisy, noisy[:100]) if name == "dan_000" else noisy
        for kind, signal in (("noisy", noisy), ("clean", clean)):
            (raw / kind).mkdir(parents=True, exist_ok=True)
            soundfile.write(raw / kind / f"{name}.wav", signal, 16000)
    told = prepare(tmp_path / "p", raw)
    [line] = [line for line in told if "look wrong" in line]
    assert "2 of 18 pairs" in line and "5.00 ms behind" in line and "inverted" in line
    assert "1 pair(s) were cut to the shorter file, by up to 6.25 ms" in told
    table = pd.read_csv(tmp_path / "p" / "pairs.csv", index_col="name")
    assert len(table) == 18 and table["remark"].count() == 2
    at = {name.rpartition("/")[2]: row for name, row in table.iterrows()}
    assert at["anna_000"]["lag_ms"] == 5 and at["ben_000"]["correlation"] < -0.9
    assert at["dan_000"]["cut_ms"] == 6.25
    [of_dan] = [i for found in items(tmp_path / "p").values() for i in found if "dan_000" in i.path]
    assert of_dan.n_frames == 16000 == waveforms(tmp_path / "p", of_dan).shape[1]


def test_channels_that_spoil_the_mean_are_named(raw, tmp_path):
    signal = _speech()
    for kind in ("noisy", "clean"):
        for name, other in (("anna_000", -signal), ("ben_000", 0 * signal)):
            soundfile.write(raw / kind / f"{name}.wav", np.stack([signal, other], 1), 16000)
    told = prepare(tmp_path / "p", raw)
    [line] = [line for line in told if "channels that spoil" in line]
    assert (
        "4 file(s)" in line and "cancel each other" in line and "channel 2 of 2 is silent" in line
    )


def test_what_a_folder_leaves_out_is_named(raw, tmp_path):
    for name in ("noisy/talk.m4a", "clean/talk.webm", "notes.txt"):
        (raw / name).write_text("x")
    tiny_corpora.noise(raw / "mixed" / "extra.wav")
    told = "\n".join(prepare(tmp_path / "p", raw))
    assert "1 sound file(s) in no folder of the layout: mixed/extra.wav" in told
    assert "1 .m4a" in told and "1 .webm" in told and "1 .txt" in told


def test_new_recordings_are_told_and_not_used_and_changed_ones_are_refused(raw, tmp_path, capsys):
    """By a second `prepare`, and by `verify` of those in raw/; what was left out is not new."""
    target = tmp_path / "p"
    (raw / "noisy" / os.fsdecode(b"\xff_1.wav")).write_bytes(b"no sound")
    prepare(target, raw, skip_broken=True)
    before = tiny_corpora.content(target)
    assert len(prepare(target, raw)) == 1
    pairs(raw, ["gina_001"])
    _, line = prepare(target, raw)
    named = "are new and not in {}: clean/gina_001.wav, noisy/gina_001.wav; to use them, prepare"
    assert line.startswith(f"2 sound file(s) of {raw} {named.format(target)}")
    assert tiny_corpora.content(target) == before
    tiny_corpora.noise(raw / "noisy" / "anna_000.wav", level=0.05)
    with pytest.raises(UserError, match=r"1 file\(s\) of .* have changed since: noisy/anna_000"):
        prepare(target, raw)
    raw.rename(target / "raw")
    assert main(["data", "verify", str(target)]) == 0
    assert named.format(target) in capsys.readouterr().err


def test_names_that_are_no_speakers_are_told(tmp_path):
    raw = pairs(tmp_path / "raw", [f"{number:04d}" for number in range(6)])
    [line] = [line for line in prepare(tmp_path / "p", raw) if "has one recording" in line]
    assert "6 speakers" in line and "'0000'" in line and "speakers=none" in line


def test_pairs_of_the_dns_challenge_have_one_number(tmp_path):
    raw = tmp_path / "raw"
    for number in range(6):
        reader = f"book_00000_chp_0009_reader_0670{number % 3}_0_door_snr15_tl-21"
        for name in (f"noisy/{reader}_fileid_{number}", f"clean/clean_fileid_{number}"):
            tiny_corpora.noise(raw / f"{name}.wav")
    prepare(tmp_path / "p", raw)
    assert set.union(*speakers_of(tmp_path / "p").values()) == {"06700", "06701", "06702"}
    for path in (raw / "noisy").iterdir():
        path.rename(path.with_name(f"noisy_{path.name[path.name.index('fileid') :]}"))
    with pytest.raises(UserError, match=r"only one speaker.*speakers=none"):
        prepare(tmp_path / "q", raw)
    prepare(tmp_path / "q", raw, speakers="none")
    assert sum(map(len, items(tmp_path / "q").values())) == 6
