"""VoiceBank-DEMAND from archives or folders laid out as the published ones."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from speechlab.audio import files
from speechlab.data import manifest, test_sets
from speechlab.data.corpora import voicebank_demand
from speechlab.data.corpora.voicebank_demand import CORPUS, VoiceBankDemandConfig
from speechlab.errors import UserError
from speechlab.storage import download
from tests.support import tiny_corpora
from tests.support.bad_server import serving

TRAIN = ("p226_001", "p227_001", "p227_002", "p287_005", "p286_404")
SNRS = dict(zip(TRAIN, (15, 0, 5, 10, 2.5), strict=True))
TEST = ("p232_001", "p257_003")


def lay_out(raw: Path) -> Path:
    """The seven unpacked archives; 48 kHz, as published."""
    for part, names in (("trainset_28spk", TRAIN), ("testset", TEST)):
        for kind in ("noisy", "clean"):
            folder = raw / f"{kind}_{part}_wav"
            for name in names:
                tiny_corpora.noise(folder / f"{name}.wav", seconds=0.1, sample_rate=48000)
        for name in names:
            text = raw / f"{part}_txt" / f"{name}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(f"Please call {name}.\n")
    (raw / "logfiles").mkdir()
    lines = "".join(f"{name} cafeteria {snr}\n" for name, snr in SNRS.items())
    (raw / "logfiles" / "log_trainset_28spk.txt").write_text(lines)
    (raw / "logfiles" / "log_testset.txt").write_text("p232_001 bus 2.5\np257_003 bus 17.5\n")
    (raw / "logfiles" / "log_readme.txt").write_text("columns: name, noise, SNR")
    return raw


@pytest.fixture
def raw(tmp_path) -> Path:
    return lay_out(tmp_path / "raw")


def config(raw: Path, **changes) -> VoiceBankDemandConfig:
    return VoiceBankDemandConfig(raw=str(raw), download=False, jobs=1, **changes)


def prepare(target: Path, config: VoiceBankDemandConfig) -> list[str]:
    told = []
    CORPUS.prepare(target, config, told.append)
    return told


def test_two_speakers_are_held_out_and_the_test_set_stays(raw, tmp_path):
    target = tmp_path / "prepared"
    told = prepare(target, config(raw))
    names = {
        split: [item.name for item in manifest.read(target, split)] for split in ("train", "dev")
    }
    assert names == {
        "train": ["p227_001", "p227_002", "p286_404"],
        "dev": ["p226_001", "p287_005"],
    }
    assert [pair.name for pair in test_sets.find(target / "test")] == list(TEST)
    assert test_sets.recognise(test_sets.find(target / "test")).title == "VoiceBank-DEMAND test"
    assert any("incomplete" in line for line in told)
    assert not manifest.about(target)["complete"]


def test_a_line_tells_all_of_a_pair(raw, tmp_path):
    target = tmp_path / "prepared"
    prepare(target, config(raw))
    item = manifest.read(target, "dev")[0]
    assert (item.kind, item.path) == ("mixture", "dev/noisy/p226_001.wav")
    assert item.sources == ("dev/clean/p226_001.wav",)
    assert (item.speakers, item.recordings) == (("p226",), ("p226_001",))
    assert (item.n_frames, item.sample_rate, item.snr_db) == (1600, 16000, 15.0)
    assert item.text == "Please call p226_001."
    assert item.sha256 == hashlib.sha256((target / item.path).read_bytes()).hexdigest()
    assert soundfile.info(target / item.path).frames == item.n_frames


def test_the_samples_are_those_of_our_resampler_and_it_is_named(raw, tmp_path):
    target = tmp_path / "prepared"
    prepare(target, config(raw))
    wanted, _ = files.load(raw / "noisy_trainset_28spk_wav" / "p227_001.wav", 16000)
    found, rate = files.load(target / "train/noisy/p227_001.wav")
    assert rate == 16000
    assert (found - wanted).abs().max() <= 2**-16
    assert manifest.about(target)["resampler"]["name"] == "soxr"
    assert manifest.about(target)["resampler"]["quality"] == "HQ"


def test_again_is_nothing_and_another_order_of_processes_the_same_bytes(raw, tmp_path):
    prepare(tmp_path / "one", config(raw))
    before = tiny_corpora.content(tmp_path / "one")
    assert prepare(tmp_path / "one", config(raw)) == [f"{tmp_path / 'one'} is prepared already"]
    assert tiny_corpora.content(tmp_path / "one") == before
    prepare(tmp_path / "two", config(raw))
    assert tiny_corpora.content(tmp_path / "two") == before


def test_a_killed_preparation_goes_on_and_gives_the_same(raw, tmp_path, monkeypatch):
    prepare(tmp_path / "whole", config(raw))
    real, calls = voicebank_demand.preparing.convert, []

    def killed_at_the_seventh(*arguments):
        calls.append(arguments)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(voicebank_demand.preparing, "convert", killed_at_the_seventh)
    monkeypatch.setattr(voicebank_demand.preparing, "SHARD", 1)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "killed", config(raw))
    with pytest.raises(UserError, match=r"no corpus\.json"):
        manifest.read(tmp_path / "killed", "train")
    told = prepare(tmp_path / "killed", config(raw))
    assert told[0] == "3 of 7 recordings are there already"
    assert len(calls) == 7 + 2 * 4
    assert tiny_corpora.content(tmp_path / "killed") == tiny_corpora.content(tmp_path / "whole")


def test_other_options_in_the_same_folder_are_refused(raw, tmp_path, monkeypatch):
    prepare(tmp_path / "one", config(raw))
    with pytest.raises(UserError, match="sample_rate 16000 there, 8000 asked"):
        prepare(tmp_path / "one", config(raw, sample_rate=8000))
    monkeypatch.setattr(voicebank_demand.preparing, "convert", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(tmp_path / "half", config(raw))
    with pytest.raises(UserError, match="sample_rate 16000 there, 8000 asked"):
        prepare(tmp_path / "half", config(raw, sample_rate=8000))


def test_one_message_says_what_is_missing(tmp_path):
    with pytest.raises(UserError) as caught:
        prepare(tmp_path / "prepared", config(tmp_path / "nowhere"))
    message = str(caught.value)
    assert "\n" not in message
    for wanted in ("clean_testset_wav", "noisy_trainset_28spk_wav", "10.7488/ds/2117", "CC BY"):
        assert wanted in message
    assert "logfiles" not in message


def test_a_file_without_its_partner_and_a_strange_name_are_told(raw, tmp_path):
    stray = raw / "noisy_testset_wav" / "p232_001.wav"
    stray.unlink()
    with pytest.raises(UserError, match=r"testset without a partner: p232_001"):
        prepare(tmp_path / "prepared", config(raw))
    tiny_corpora.noise(raw / "noisy_testset_wav" / "mine.wav")
    with pytest.raises(UserError, match="mine is no utterance"):
        prepare(tmp_path / "prepared", config(raw))


def test_pairs_of_different_length_are_refused(raw, tmp_path):
    tiny_corpora.noise(raw / "noisy_testset_wav" / "p232_001.wav", seconds=0.2, sample_rate=48000)
    with pytest.raises(UserError, match="different length"):
        prepare(tmp_path / "prepared", config(raw))


def pack(raw: Path, server, monkeypatch) -> None:
    """The folders as archives on a server; the digests are known as those of the real ones are."""
    known = []
    for archive in voicebank_demand.ARCHIVES:
        path = raw.parent / f"{archive.name}.zip"
        with zipfile.ZipFile(path, "w") as packed:
            for file in sorted((raw / archive.name).iterdir()):
                packed.write(file, f"{archive.name}/{file.name}")
        server.files[path.name] = path.read_bytes()
        path.unlink()
        md5 = archive.md5 and hashlib.md5(server.files[f"{archive.name}.zip"]).hexdigest()
        known.append(replace(archive, md5=md5))
    monkeypatch.setattr(voicebank_demand, "ARCHIVES", tuple(known))
    monkeypatch.setattr(voicebank_demand, "ADDRESS", f"{server.address}/official")
    monkeypatch.setattr(download, "BACK_OFF_S", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_downloaded_is_the_same_as_unpacked_by_hand(raw, tmp_path, monkeypatch):
    prepare(tmp_path / "by hand", config(raw))
    with serving() as server:
        pack(raw, server, monkeypatch)
        # the mirror lacks the first one, two addresses give other bytes, the last one breaks off
        server.behaviour = ("missing", "plain", "plain", "cut", "plain")
        fetched = VoiceBankDemandConfig(mirror=f"{server.address}/mirror", jobs=1)
        prepare(tmp_path / "fetched", fetched)
        asked = len(server.paths)
        prepare(tmp_path / "fetched", fetched)
    assert len(server.paths) == asked == 7 + 4
    assert (tmp_path / "fetched" / "raw" / "trainset_28spk_txt.zip.sha256").exists()
    found = tiny_corpora.content(tmp_path / "fetched")
    kept = {name: found[name] for name in found if not name.startswith("raw/")}
    assert kept == tiny_corpora.content(tmp_path / "by hand")


def test_a_changed_archive_is_refused(raw, tmp_path, monkeypatch):
    with serving() as server:
        pack(raw, server, monkeypatch)
        server.files["clean_testset_wav.zip"] += b"more"
        mirror = VoiceBankDemandConfig(mirror=server.address, jobs=1)
        with pytest.raises(UserError, match=r"clean_testset_wav\.zip \(MD5 differs\): refused"):
            prepare(tmp_path / "fetched", mirror)
    assert not (tmp_path / "fetched" / "raw" / "clean_testset_wav.zip").exists()
    assert not (tmp_path / "fetched" / "corpus.json").exists()


def test_a_trusted_download_that_is_no_archive_is_not_trusted_again(raw, tmp_path, monkeypatch):
    with serving() as server:
        pack(raw, server, monkeypatch)
        good = server.files["testset_txt.zip"]
        server.files["testset_txt.zip"] = b"<html>sorry</html>"
        mirror = VoiceBankDemandConfig(mirror=server.address, jobs=1)
        told = prepare(tmp_path / "fetched", mirror)
        assert any("going on without" in line and "damaged" in line for line in told)
        assert not list((tmp_path / "fetched" / "raw").glob("testset_txt*"))
        server.files["testset_txt.zip"] = good
        told = prepare(tmp_path / "again", mirror)
        assert not any("going on without" in line for line in told)


def test_what_is_not_needed_may_be_missing(raw, tmp_path):
    for name in ("logfiles", "trainset_28spk_txt", "testset_txt"):
        for file in (raw / name).iterdir():
            file.unlink()
        (raw / name).rmdir()
    prepare(tmp_path / "prepared", replace(config(raw), download=True))  # asks no network
    item = manifest.read(tmp_path / "prepared", "train")[0]
    assert (item.snr_db, item.text) == (None, "")


def test_the_disk_is_measured_before_the_first_download(tmp_path, monkeypatch):
    usage = download.shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"voicebank_demand needs 15\.0 GB.* 1\.0 GB free"):
        prepare(tmp_path / "prepared", VoiceBankDemandConfig())
