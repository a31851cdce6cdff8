"""VoiceBank-DEMAND from archives or folders laid out as the published ones."""

import hashlib
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from speechlab.audio import files
from speechlab.data import manifest, test_sets
from speechlab.data.corpora import voicebank_demand
from speechlab.data.corpora.voicebank_demand import CORPUS, VoiceBankDemandConfig
from speechlab.errors import UserError
from speechlab.storage import download
from tests.support import tiny_corpora
from tests.support.bad_server import serving

NAME = "voicebank_demand"


@pytest.fixture
def raw(tmp_path) -> Path:
    return tiny_corpora.lay_out(NAME, tmp_path / "raw")


def test_two_speakers_are_held_out_and_the_test_set_stays(raw, tmp_path):
    """A line tells all of a pair, and the samples are those of our resampler."""
    target = tmp_path / "prepared"
    told = tiny_corpora.prepare(NAME, target, raw)
    train, dev = (manifest.read(target, split) for split in ("train", "dev"))
    assert [item.name for item in train] == ["p227_001", "p227_002", "p286_404"]
    assert [item.name for item in dev] == ["p226_001", "p287_005"]
    assert [pair.name for pair in test_sets.find(target / "test")] == ["p232_001", "p257_003"]
    assert test_sets.recognise(test_sets.find(target / "test")).title == "VoiceBank-DEMAND test"
    assert any("incomplete" in line for line in told)
    assert not manifest.about(target)["complete"]
    item = dev[0]
    assert (item.kind, item.path) == ("mixture", "dev/noisy/p226_001.wav")
    assert item.sources == ("dev/clean/p226_001.wav",)
    assert (item.speakers, item.recordings) == (("p226",), ("p226_001",))
    assert (item.n_frames, item.sample_rate, item.snr_db) == (1600, 16000, 15.0)
    assert item.text == "Please call p226_001."
    wanted, _ = files.load(raw / "noisy_trainset_28spk_wav" / "p227_001.wav", 16000)
    found, _ = files.load(target / "train/noisy/p227_001.wav")
    assert (found - wanted).abs().max() <= 2**-16
    assert manifest.about(target)["resampler"]["quality"] == "HQ"


def test_a_file_without_its_partner_and_a_strange_name_are_told(raw, tmp_path):
    (raw / "noisy_testset_wav" / "p232_001.wav").unlink()
    with pytest.raises(UserError, match=r"testset without a partner: p232_001"):
        tiny_corpora.prepare(NAME, tmp_path / "prepared", raw)
    tiny_corpora.noise(raw / "noisy_testset_wav" / "mine.wav")
    with pytest.raises(UserError, match="mine is no utterance"):
        tiny_corpora.prepare(NAME, tmp_path / "prepared", raw)


def test_pairs_of_different_length_are_in_the_list_of_faults(raw, tmp_path):
    for folder, name in (("testset", "p232_001"), ("trainset_28spk", "p227_001")):
        path = raw / f"noisy_{folder}_wav" / f"{name}.wav"
        tiny_corpora.noise(path, seconds=0.2, sample_rate=48000)
    (raw / "clean_trainset_28spk_wav" / "p286_404.wav").write_text("no sound")
    target = tmp_path / "prepared"
    with pytest.raises(UserError, match="3 of 14 files cannot be used"):
        tiny_corpora.prepare(NAME, target, raw)
    faults = target.with_name("prepared.faults.txt").read_text()
    assert faults.count("are of different length (3200 and 1600 samples at 16000 Hz)") == 2
    assert "p286_404" in faults and not target.exists()
    tiny_corpora.prepare(NAME, target, raw, skip_broken=True)
    names = [item.name for of in tiny_corpora.items(target).values() for item in of]
    assert names == ["p227_002", "p226_001", "p287_005", "p257_003"]
    assert len((target / "left_out.txt").read_text().splitlines()) == 3


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


def fetch(target: Path, server) -> list[str]:
    """Prepares with the server as the mirror; the raw files go into the target."""
    options = {"raw": "", "download": True, "mirror": server.address}
    return tiny_corpora.prepare(NAME, target, target, **options)


def test_downloaded_is_the_same_as_unpacked_by_hand(raw, tmp_path, monkeypatch):
    tiny_corpora.prepare(NAME, tmp_path / "by hand", raw)
    with serving() as server:
        pack(raw, server, monkeypatch)
        # the mirror lacks the first one, two addresses give other bytes, the last one breaks off
        server.behaviour = ("missing", "plain", "plain", "cut", "plain")
        fetched = VoiceBankDemandConfig(mirror=f"{server.address}/mirror", jobs=1)
        CORPUS.prepare(tmp_path / "fetched", fetched, str)
        asked = len(server.paths)
        CORPUS.prepare(tmp_path / "fetched", fetched, str)
    assert len(server.paths) == asked == 7 + 4
    assert (tmp_path / "fetched" / "raw" / "trainset_28spk_txt.zip.sha256").exists()
    found = tiny_corpora.content(tmp_path / "fetched")
    wanted = tiny_corpora.content(tmp_path / "by hand")
    for of in (found, wanted):
        del of["sources.csv"]  # where the raw files are
    assert {name: found[name] for name in found if not name.startswith("raw/")} == wanted


def test_a_changed_archive_is_refused(raw, tmp_path, monkeypatch):
    with serving() as server:
        pack(raw, server, monkeypatch)
        server.files["clean_testset_wav.zip"] += b"more"
        with pytest.raises(UserError, match=r"clean_testset_wav\.zip \(MD5 differs\): refused"):
            fetch(tmp_path / "fetched", server)
    assert not (tmp_path / "fetched" / "raw" / "clean_testset_wav.zip").exists()
    assert not (tmp_path / "fetched" / "corpus.json").exists()


def test_a_trusted_download_that_is_no_archive_is_not_trusted_again(raw, tmp_path, monkeypatch):
    with serving() as server:
        pack(raw, server, monkeypatch)
        good = server.files["testset_txt.zip"]
        server.files["testset_txt.zip"] = b"<html>sorry</html>"
        told = fetch(tmp_path / "fetched", server)
        assert any("continuing without" in line and "damaged" in line for line in told)
        assert not list((tmp_path / "fetched" / "raw").glob("testset_txt*"))
        server.files["testset_txt.zip"] = good
        told = fetch(tmp_path / "again", server)
        assert not any("continuing without" in line for line in told)


def test_what_is_not_needed_may_be_missing(raw, tmp_path):
    for name in ("logfiles", "trainset_28spk_txt", "testset_txt"):
        shutil.rmtree(raw / name)
    tiny_corpora.prepare(NAME, tmp_path / "prepared", raw, download=True)  # asks no network
    item = manifest.read(tmp_path / "prepared", "train")[0]
    assert (item.snr_db, item.text) == (None, "")


def test_the_disk_is_measured_before_the_first_download(tmp_path, monkeypatch):
    usage = download.shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"voicebank_demand needs 15\.0 GB.* 1\.0 GB free"):
        CORPUS.prepare(tmp_path / "prepared", VoiceBankDemandConfig(), str)
