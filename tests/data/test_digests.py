"""What has changed in a prepared corpus: told at a training's start, and in full by verify."""

import json
import os
import shutil

import pytest

from speechlab.cli.main import main
from speechlab.data import digests, manifest
from speechlab.data.splits import Corpora
from speechlab.errors import UserError
from tests.support.tiny_corpora import pairs, prepare

SPEAKERS = {"train": ("anna", "ben"), "dev": ("carla", "dan"), "test": ("eva", "finn")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Own recordings with a test split."""
    root = tmp_path_factory.mktemp("digests")
    for split, names in SPEAKERS.items():
        pairs(root / "raw" / split, [f"{name}_000" for name in names])
    prepare("folder", root / "own", root / "raw")
    return root / "own"


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "own")


def _replace(path):
    """Other samples, the same size; the time of before."""
    time = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-2] + b"xx")
    os.utime(path, ns=(time, time))


def test_every_sound_file_has_a_digest(prepared):
    noted = digests.everything(prepared)
    assert len(noted) == 12 and all(known.sha256 for known in noted.values())
    assert list(digests.compared(prepared, noted)) == []
    Corpora([prepared]).check_files()


@pytest.mark.parametrize("kind", ["noisy", "clean"])
def test_a_changed_file_stops_a_training(folder, kind):
    path = f"train/{kind}/anna_000.wav"
    _replace(folder / path)
    with pytest.raises(UserError, match=rf"1 file\(s\) changed.*{path} \(changed\)"):
        Corpora([folder]).check_files()
    (folder / path).unlink()
    with pytest.raises(UserError, match=rf"{path} \(missing\)"):
        Corpora([folder]).check_files()


def test_training_reads_only_files_that_may_have_changed(folder, monkeypatch):
    """A copy is read until `verify` has noted its time."""
    read = []
    monkeypatch.setattr(digests, "sha256", lambda path: read.append(path) or sha256(path))
    sha256 = digests.atomic.sha256
    Corpora([folder]).check_files()
    assert len(read) == 8
    assert main(["data", "verify", str(folder)]) == 0
    del read[:]
    Corpora([folder]).check_files()
    assert read == []


def test_verify_names_what_changed(folder, capsys):
    _replace(folder / "test/clean/eva_000.wav")
    (folder / "dev/noisy/carla_000.wav").unlink()
    shutil.copy(folder / "dev/noisy/dan_000.wav", folder / "dev/noisy/other.wav")
    (folder / "raw").mkdir()
    shutil.copy(folder / "dev/noisy/dan_000.wav", folder / "raw/other.wav")
    assert main(["data", "verify", str(folder)]) == 1
    missing, changed, extra, last = capsys.readouterr().out.splitlines()
    assert changed == "changed: test/clean/eva_000.wav"
    assert missing == "missing: dev/noisy/carla_000.wav"
    assert extra == "extra: dev/noisy/other.wav"
    assert last == f"{folder}: 12 files, 1 changed, 1 missing, 1 extra"


def test_verify_names_a_manifest_changed_by_hand(folder, capsys):
    for name in ("test.csv", "files.csv"):
        (folder / name).write_text((folder / name).read_text().replace("eva", "eve"))
    assert main(["data", "verify", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert {"changed: test.csv", "changed: files.csv"} <= set(lines)
    with pytest.raises(UserError, match=r"files\.csv changed by hand"):
        manifest.data_hash(folder)


def test_verify_tells_what_it_cannot_verify(folder, capsys):
    """A corpus of version 0.1 has no digests of clean files."""
    about = json.loads((folder / "corpus.json").read_text())
    (folder / "files.csv").unlink()
    del about["files"]
    about["data_hash"] = manifest._combined(about["manifests"], about)
    (folder / "corpus.json").write_text(json.dumps(about))
    assert main(["data", "verify", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "12 files, 0 changed, 0 missing, 0 extra" in printed.out
    assert "6 files cannot be verified" in printed.err
    Corpora([folder]).check_files()
    _replace(folder / "train/noisy/ben_000.wav")
    assert main(["data", "verify", str(folder)]) == 1
    with pytest.raises(UserError, match="ben_000"):
        Corpora([folder]).check_files()
