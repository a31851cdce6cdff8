"""Parallel work gives what work in one process gives."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from speechlab.errors import UserError
from speechlab.processes import THREADS, finished, n_processors

ROOT = Path(__file__).resolve().parents[1]
PARENT = None  # process, set in it alone


def double(x):
    time.sleep(0.1)  # so that the other process has one to do
    limits = [os.environ.get(name) for name in THREADS]
    return 2 * x, os.getpid() == PARENT, torch.get_num_threads(), limits


def die(_):
    os._exit(1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_are_those_of_one_process(jobs, monkeypatch):
    """Each process has one thread, told to all libraries; this one keeps what it had."""
    monkeypatch.setattr(sys.modules[__name__], "PARENT", os.getpid())
    threads, environment = torch.get_num_threads(), dict(os.environ)
    results = sorted(finished(double, [1, 2, 3], jobs))
    assert [result for result, *_ in results] == [2, 4, 6]
    for _, is_parent, n_threads, limits in results:
        assert (is_parent, n_threads) == (jobs == 1, 1)
        assert jobs == 1 or limits == ["1"] * len(THREADS)
    assert (torch.get_num_threads(), dict(os.environ)) == (threads, environment)


def test_a_process_that_dies_is_one_line():
    with pytest.raises(UserError, match="a process died: ") as error:
        list(finished(die, [1, 2], 2))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_processes_end_with_a_parent_that_is_killed():
    """A process that works, and one that waits for work, of a parent that cannot tell them."""
    program = "import tests.test_processes as t; t.keep_two_busy()"
    command = [sys.executable, "-c", program]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 20
    while any(map(runs, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(runs, pids))


def keep_two_busy():
    for pid in finished(sleep_and_tell, [0, 0, 60], 2):
        print(pid, flush=True)  # noqa: T201


def sleep_and_tell(seconds):
    time.sleep(seconds or 0.5)
    return os.getpid()


def runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_as_many_as_this_process_may_use():
    assert 1 <= n_processors() <= os.cpu_count()
