"""Extraction of an archive is atomic and confined to its folder."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from speechlab.errors import UserError
from speechlab.storage import archive as archives
from tests.storage.test_atomic import names

FILES = {"top/a.wav": b"a" * 1000, "top/deep/b.wav": b"b" * 2000, "top/empty": b""}


def make(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def held(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


ARCHIVES = ["a.zip", "a.tar", "a.tar.gz"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_unpacked_whole_and_once(tmp_path, name):
    archive = make(tmp_path / name, FILES | {"__MACOSX/top/._a.wav": b"junk"})
    folder = tmp_path / "out" / "folder"
    assert archives.unpack(archive, folder, progress=False) == folder
    assert held(folder) == FILES
    archive.unlink()
    archives.unpack(archive, folder, progress=False)  # it is there: nothing is read again
    assert names(folder.parent) == ["folder"]


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize(
    "evil", ["../evil", "/evil", "top/../../evil", "..\\evil", "C:\\evil", "C:evil", "top/.."]
)
def test_no_member_writes_outside(tmp_path, name, evil):
    archive = make(tmp_path / name, {"top/good": b"good", evil: b"evil"})
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"outside its folder.*nothing was unpacked"):
        archives.unpack(archive, tmp_path / "out" / "folder", progress=False)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["zip", tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_no_link_and_no_device(tmp_path, kind):
    path = tmp_path / ("a.zip" if kind == "zip" else "a.tar")
    if kind == "zip":
        member = zipfile.ZipInfo("top/link")
        member.create_system, member.external_attr = 3, 0o120777 << 16
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, "/etc")
    else:
        member = tarfile.TarInfo("top/link")
        member.type, member.linkname = kind, "/etc"
        with tarfile.open(path, "w") as archive:
            archive.addfile(member)
    with pytest.raises(UserError, match=rf"{path.name}: top/link is a link or a device"):
        archives.unpack(path, tmp_path / "folder", progress=False)
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ARCHIVES)
def test_unpacking_goes_on_where_it_was_killed(tmp_path, name, monkeypatch):
    archive = make(tmp_path / name, FILES)
    folder = tmp_path / "folder"
    real, written = archives.replacing, []

    def killed_at_the_second(path):
        written.append(path.name)
        if len(written) == 2:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(archives, "replacing", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        archives.unpack(archive, folder, progress=False)
    assert not folder.exists()
    archives.unpack(archive, folder, progress=False)
    assert held(folder) == FILES
    assert written == ["a.wav", "b.wav", "b.wav", "empty"]


def test_the_half_of_another_archive_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "replacing", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        archives.unpack(make(tmp_path / "a.zip", FILES), tmp_path / "folder", progress=False)
    monkeypatch.undo()
    stray = tmp_path / "folder.part" / "top"
    stray.mkdir(exist_ok=True)
    (stray / "a.wav").write_bytes(b"z" * 1000)
    other = make(tmp_path / "b.zip", {"top/a.wav": b"A" * 1000})
    archives.unpack(other, tmp_path / "folder", progress=False)
    assert held(tmp_path / "folder") == {"top/a.wav": b"A" * 1000}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_is_told(tmp_path, name):
    archive = make(tmp_path / name, {"top/a.wav": os.urandom(50_000)})
    content = bytearray(archive.read_bytes())
    for damaged in (content[: len(content) // 2], b"no archive at all", b""):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name} is damaged") as caught:
            archives.unpack(archive, tmp_path / "folder", progress=False)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "folder").exists()


def test_a_flipped_bit_in_a_zip_is_told(tmp_path):
    archive = make(tmp_path / "a.zip", {"a.wav": b"a" * 50_000})
    content = bytearray(archive.read_bytes())
    content[25_000] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip is damaged"):
        archives.unpack(archive, tmp_path / "folder", progress=False)
    assert not (tmp_path / "folder").exists()


def test_an_archive_that_is_not_there_or_of_another_kind_is_told(tmp_path):
    with pytest.raises(UserError, match=r"a\.zip: no such file"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "folder", progress=False)
    (tmp_path / "a.rar").write_bytes(b"Rar!")
    with pytest.raises(UserError, match=r"a\.rar: .*\.zip, \.tar"):
        archives.unpack(tmp_path / "a.rar", tmp_path / "folder", progress=False)


def test_an_archive_larger_than_the_disk_is_told_before(tmp_path, monkeypatch):
    archive = make(tmp_path / "a.zip", FILES)
    usage = archives.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"a\.zip needs .* GB"):
        archives.unpack(archive, tmp_path / "folder", progress=False)
    assert names(tmp_path) == ["a.zip"]
