"""Extraction of an archive is atomic and confined to its folder."""

import bz2
import gzip
import io
import lzma
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


def pax(path: Path, headers: dict[str, str], content: bytes = b"x" * 9, name: str = "a") -> Path:
    """A tar archive of one file with these pax records."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        member = tarfile.TarInfo(name)
        member.size, member.pax_headers = len(content), headers
        archive.addfile(member, io.BytesIO(content))
    return path


def refused(archive: Path, said: str) -> None:
    """One line, and neither a folder nor a half of it is left."""
    before = names(archive.parent)
    with pytest.raises(UserError, match=rf"{archive.name}.*{said}") as caught:
        archives.unpack(archive, archive.parent / "folder", progress=False)
    assert str(caught.value).isprintable()
    assert names(archive.parent) == before


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"comment": "x" * 2_000_000}, "a header of 20000"),
        ({"size": "-5"}, "is damaged"),
        ({"size": "abc"}, "a size that is no number"),
        ({"size": "9" * 14}, "needs 99999.9 GB|is damaged"),
        ({"GNU.sparse.map": "0,1", "GNU.sparse.size": "9" * 12}, "a sparse file"),
        ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, "a sparse file"),
        ({"GNU.sparse.size": "999", "GNU.sparse.numblocks": "1"}, "a sparse file"),
    ],
)
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_pax_records_are_bounded(tmp_path, name, headers, said):
    refused(pax(tmp_path / name, headers), said)


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
@pytest.mark.parametrize("member", ["", ".", "./.", "b" * 300, "b/" * 2000 + "c"])
def test_names_that_name_no_file_are_refused(tmp_path, name, member):
    path = tmp_path / name
    if name == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            info = zipfile.ZipInfo("a")
            info.filename = member
            archive.writestr(info, b"x")
    else:
        make(path, {member: b"x"})
    refused(path, "no usable name")


@pytest.mark.parametrize("twice", [["a", "a"], ["a", "./a"], ["a", "a/b"], ["a/b", "a"]])
def test_no_file_replaces_another(tmp_path, twice):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in twice:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    refused(tmp_path / "a.tar", "is in it twice, or is a file and a folder")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("place", [35, 40, 200, 4000])
def test_damage_in_a_compressed_zip_is_one_line(tmp_path, method, place):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a", os.urandom(5000))
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    refused(path, "is damaged")


@pytest.mark.parametrize("compression", [gzip, bz2, lzma])
@pytest.mark.parametrize("place", [0.01, 0.3, 0.6, -9])
def test_the_checksum_of_a_compressed_tar_is_read(tmp_path, compression, place):
    """It is after the last member, where tarfile does not look."""
    content = make(tmp_path / "b.tar", {"a": os.urandom(50_000)}).read_bytes()
    changed = bytearray(compression.compress(content))
    changed[int(place * len(changed)) if place > 0 else place] ^= 1
    (tmp_path / "a.tar.gz").write_bytes(changed)
    refused(tmp_path / "a.tar.gz", "is damaged")


def test_what_follows_a_tar_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_PADDING", 100_000)
    content = make(tmp_path / "b.tar", {"a": b"x"}).read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content + bytes(200_000)))
    refused(tmp_path / "a.tar.gz", "data follow its last member")


def test_the_number_of_members_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    refused(make(tmp_path / "a.tar", FILES), "more than 2 members")


def test_a_bad_utf8_name_of_a_zip_is_one_line(tmp_path):
    path = make(tmp_path / "a.zip", {"\u00e9\u00e9": b"x"})
    path.write_bytes(path.read_bytes().replace(b"\xc3\xa9\xc3\xa9", b"\xff\xfe\xc3\x28"))
    refused(path, "is damaged")
