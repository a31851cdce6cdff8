"""Locks: one process at a time; whatever becomes of a process, its lock is free again."""

import os
import signal

import pytest

from speechlab.errors import UserError
from speechlab.storage import locks
from tests.support.training_toys import ended, forked


def holder(path, released):
    """The process id of a child that holds the file now, until `released` returns."""
    reader, writer = os.pipe()

    def work():
        with locks.waited_for(path, lambda line: None, ""):
            os.write(writer, b"!")
            released()

    child = forked(work)
    assert os.read(reader, 1) == b"!"
    return child


def test_the_second_waits_and_is_told_once(tmp_path):
    """The first holds the lock until the second one waits, and writes a note before it ends."""
    path, note, told = tmp_path / "new/lock", tmp_path / "released", []
    reader, writer = os.pipe()
    child = holder(path, lambda: os.read(reader, 1) and note.touch())

    def tell(line):
        told.append(line)
        os.write(writer, b"!")

    with locks.waited_for(path, tell, "busy"):
        assert note.exists() and told == ["busy"]
        assert ended(child) == 0
    assert not path.exists()


def test_a_killed_process_holds_nothing(tmp_path):
    """Nor does a worker that it forked and that outlives it."""
    path, told = tmp_path / "lock", []
    reader, writer = os.pipe()

    def forks():
        os.write(writer, f"{forked(signal.pause)} ".encode())
        signal.pause()

    child = holder(path, forks)
    worker = int(os.read(reader, 20))
    os.kill(child, signal.SIGKILL)
    ended(child)
    assert path.exists()
    with locks.waited_for(path, told.append, "busy"):
        os.kill(worker, signal.SIGKILL)  # alive until now
    assert told == [] and not path.exists()


def test_never_two_at_once(tmp_path, monkeypatch):
    """Though each removes the file that the others wait for."""
    path, note = tmp_path / "lock", tmp_path / "inside"

    def work():
        for _ in range(15):
            with locks.waited_for(path, lambda line: None, ""):
                note.touch(exist_ok=False)
                note.unlink()

    monkeypatch.setattr(locks, "POLL_S", 0.001)
    children = [forked(work) for _ in range(3)]
    assert [ended(child) for child in children] == [0, 0, 0]


def test_a_place_without_leave_to_write_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "lock").symlink_to(tmp_path / "missing/lock")
    for path in (tmp_path / "file/lock", tmp_path / "lock"):
        waiting = locks.waited_for(path, lambda line: pytest.fail(line), "busy")
        with pytest.raises(UserError, match="lock: cannot be written"), waiting:
            pass
