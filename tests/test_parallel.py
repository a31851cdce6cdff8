"""Parallel work gives what work in one process gives."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from speechlab.errors import UserError
from speechlab.parallel import THREADS, Workers, finished, n_processors
from tests.support import warm
from tests.support.warm import ROOT

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
    program = "import tests.test_parallel as t; t.keep_two_busy()"
    command = [sys.executable, "-c", program]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 300
    while any(map(runs, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(runs, pids))


def keep_two_busy():
    for pid in finished(sleep_and_tell, [0, 0, 3600], 2):
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


def unruly(task):
    """Doubles numbers; a word may take the process down, at once or the first time only."""
    what, path = task
    if what == "die" or (what == "die once" and not Path(path).exists()):
        Path(path).touch()
        os._exit(1)
    if what == "hang":
        time.sleep(3600)
    if what == "raise":
        raise ValueError("an error that nobody foresaw")
    return 2 * what if isinstance(what, int) else os.getpid()


@pytest.fixture(scope="module")
def workers():
    made = Workers(unruly, 2, limit_s=5)
    yield made
    made.close()


def test_workers_answer_in_the_order_of_the_tasks(workers):
    assert workers.results([(x, "") for x in range(7)]) == [0, 2, 4, 6, 8, 10, 12]
    assert workers.results([]) == []


def test_a_task_that_kills_or_hangs_has_no_result_and_harms_no_other(workers, tmp_path):
    words = ["die", 1, "raise", 2, "hang", 3]
    began = time.monotonic()
    assert workers.results([(x, tmp_path / "n") for x in words]) == [None, 2, None, 4, None, 6]
    assert time.monotonic() - began < 3600
    assert workers.results([(4, "")]) == [8]


def test_what_struck_a_task_once_decides_nothing(workers, tmp_path):
    assert isinstance(workers.results([("die once", tmp_path / "n")])[0], int)
    [pid] = workers.results([("who", "")])
    os.kill(pid, signal.SIGSTOP)  # nothing is read from its pipe any more
    large = "x" * 10_000_000
    assert workers.results([(large, "")] * 2) != [None, None]
    assert not runs(pid) or workers.results([("who", "")]) != [pid]
    for pid in set(workers.results([("who", "")] * 4)):
        os.kill(pid, signal.SIGKILL)  # while nobody asks
    assert workers.results([(x, "") for x in range(4)]) == [0, 2, 4, 6]


def test_no_worker_is_left():
    made = Workers(unruly, 1, limit_s=5)
    [pid] = made.results([("who", "")])
    assert runs(pid)
    made.close()
    assert not runs(pid) and made.results([(1, "")]) == [2]
    [pid] = made.results([("who", "")])
    del made
    gc.collect()
    assert not runs(pid)


def test_workers_of_a_script_without_a_guard_are_one_line(tmp_path):
    script = tmp_path / "unguarded.py"
    lines = "from speechlab.parallel import Workers", "print(Workers(abs, 1, 5).results([-1, -2]))"
    script.write_text("\n".join(lines))
    ran = warm.run(script)
    assert ran.returncode and "a process died at its start" in ran.stderr.splitlines()[-1]
