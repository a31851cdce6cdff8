"""Parallel work gives what work in one process gives."""

import os
import sys
import time

import pytest
import torch

from speechlab.errors import UserError
from speechlab.processes import THREADS, finished, n_processors

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


def test_as_many_as_this_process_may_use():
    assert 1 <= n_processors() <= os.cpu_count()
