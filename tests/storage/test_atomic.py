"""Files are written atomically."""

import errno
import os

import pytest

from speechlab.errors import UserError
from speechlab.storage import atomic
from speechlab.storage.atomic import replacing, unfinished


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_at_the_end(tmp_path):
    path = tmp_path / "new/folder/x.txt"
    with replacing(path) as part:
        part.write_text("new")
        assert part == unfinished(path)
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["x.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_goes_wrong_leaves_the_older_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def write():
        with replacing(path) as part:
            part.write_text("ne")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_a_name_that_cannot_be_taken_leaves_nothing(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="x"), replacing(tmp_path / "x") as part:
        part.write_text("new")
    assert names(tmp_path) == ["x"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Or a power cut would leave an empty file under it."""
    happened, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (happened.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (happened.append("name"), replace(*names)))
    with replacing(tmp_path / "x") as part:
        part.write_text("new")
    assert happened == ["fsync", "name"]


def test_names_as_long_as_they_may_be(tmp_path):
    path = tmp_path / ("é" * 125 + ".wav")  # 254 bytes
    with replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"


def test_a_killed_run_s_rest_is_written_over(tmp_path):
    unfinished(tmp_path / "x").write_text("longer than what comes")
    with replacing(tmp_path / "x") as part:
        part.write_text("new")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "new"


@pytest.mark.parametrize("linked", [True, False])
def test_a_file_is_kept_under_a_second_name(tmp_path, monkeypatch, linked):
    """Also where the disk has no links; the next write of the first leaves the second."""
    path, copy = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    copy.write_bytes(b"zero")
    if not linked:
        monkeypatch.setattr(atomic.os, "link", refused_link)
    atomic.keep(path, copy)
    atomic.write(path, b"two")
    assert (path.read_bytes(), copy.read_bytes()) == (b"two", b"one")
    assert names(tmp_path) == ["a", "b"]


def refused_link(*names):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_full_disk_is_named(tmp_path):
    (tmp_path / "a.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"a: cannot be written \(the disk is full\)"):
        atomic.write(tmp_path / "a", b"x" * 100_000)
    assert names(tmp_path) == []
