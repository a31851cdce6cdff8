"""Work on many things in parallel processes, of one thread each."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from speechlab.errors import UserError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

Task = TypeVar("Task")
Result = TypeVar("Result")


def finished(function: Callable[[Task], Result], tasks: list[Task], jobs: int) -> Iterator[Result]:
    """Results of a function as they are finished, in any order, from `jobs` processes.

    With one job or one task there is no other process, and their order stays. The function must
    be one of a module, its tasks and results picklable. Raises UserError where a process dies.
    """
    if jobs == 1 or len(tasks) <= 1:
        n_threads = torch.get_num_threads()
        _one_thread()
        try:
            yield from map(function, tasks)
        finally:
            torch.set_num_threads(n_threads)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit locks of running threads
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=spawn, initializer=_begin)
    try:
        with _environment(dict.fromkeys(THREADS, "1")):  # submitting starts the processes
            results = [pool.submit(function, task) for task in tasks]
        for result in as_completed(results):
            yield result.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process died: memory is short, or the calling script has no "
            '`if __name__ == "__main__":`; finished rows are kept, so mend that and run it again'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def n_processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def obey_parent() -> None:
    """In a process of ours: Ctrl-C is for the parent, and where that is killed we end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _begin() -> None:
    obey_parent()
    _one_thread()


def _one_thread() -> None:
    torch.set_num_threads(1)


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
