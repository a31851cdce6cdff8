"""Parallel work in processes of one thread each.

`finished` processes one list of tasks. `Workers` processes many lists in turn, whose tasks may hang
or kill their process.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, Generic, TypeVar

import torch

from speechlab.errors import UserError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

START_S = 600.0  # for a process to import its code, on a busy machine
STARTING = threading.Lock()
ATTEMPTS = 2  # per task: one failure may be due to the machine, two are due to the task

Task = TypeVar("Task")
Result = TypeVar("Result")


def finished(function: Callable[[Task], Result], tasks: list[Task], jobs: int) -> Iterator[Result]:
    """Results of a function as they finish, in any order, from `jobs` processes.

    With one job or one task it runs in this process, in order. The function must belong to a
    module; tasks and results must be picklable. UserError if a process dies.
    """
    if jobs == 1 or len(tasks) <= 1:
        with threads(1):
            yield from map(function, tasks)
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
            '`if __name__ == "__main__":`; finished rows are kept, so fix this and run it again'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class Workers(Generic[Task, Result]):
    """A function on lists of tasks, in up to `n` processes that stay between the lists.

    If the process of a task dies or takes longer than `limit_s`, a new process tries the task once
    more; after a second failure it has no result. So a single fault of the machine (low memory, a
    pause) changes no result. Processes start with the first list, and end with `close` or with the
    parent, even a killed one.
    """

    def __init__(self, function: Callable[[Task], Result], n: int, limit_s: float) -> None:
        """function: as in `finished`. n: 1 or more."""
        self.function, self.n, self.limit_s = function, n, limit_s
        self._idle: list[_Worker] = []
        weakref.finalize(self, _end, self._idle)

    def results(self, tasks: Sequence[Task]) -> list[Result | None]:
        """In the order of the tasks; None for a task without a result.

        UserError if processes cannot start.
        """
        if not tasks:
            return []
        with ThreadPoolExecutor(min(self.n, len(tasks))) as threads:
            return list(threads.map(self._result, tasks))

    def close(self) -> None:
        """End the processes; further tasks start new ones."""
        _end(self._idle)

    def _result(self, task: Task) -> Result | None:
        for _ in range(ATTEMPTS):
            worker = self._worker()
            try:
                answer = worker.asked(task, self.limit_s)
            except (EOFError, OSError):  # died, or killed at the limit
                worker.end()
                continue
            except BaseException:
                worker.end()
                raise
            self._idle.append(worker)
            return answer
        return None

    def _worker(self) -> "_Worker":
        while self._idle:
            try:
                worker = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if worker.process.is_alive():
                return worker
            worker.end()
        return _Worker(self.function)


class _Worker:
    """A process and its pipe; one thread uses it at a time."""

    def __init__(self, function: Callable[[Task], Result]) -> None:
        begun = context("speechlab.data.loader", function.__module__)
        self.pipe, far = begun.Pipe()
        self.process = begun.Process(target=_serve, args=(far, function), daemon=True)
        with STARTING:
            self.process.start()
        far.close()  # so the pipe ends with the process
        try:
            if not self.pipe.poll(START_S):
                raise EOFError
            self.pipe.recv()
        except (EOFError, OSError) as error:
            self.end()
            raise UserError(
                "a process died at its start: memory is short, or the calling script has no "
                '`if __name__ == "__main__":`; fix this and run it again'
            ) from error

    def asked(self, task: Task, limit_s: float) -> Any:
        """Its answer; EOFError or OSError if it dies, or is killed at the limit."""
        limit = threading.Timer(limit_s, self.process.kill)
        limit.daemon = True
        limit.start()
        try:
            self.pipe.send(task)
            return self.pipe.recv()
        finally:
            limit.cancel()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _end(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()


def _serve(pipe: Connection, function: Callable[[Task], Result]) -> None:
    """The loop of a worker: receive a task, send its result, until the pipe ends."""
    _begin()
    pipe.send(None)  # started
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(function(pipe.recv()))


def context(*modules: str) -> BaseContext:
    """How processes start: from a server that imports the code once, if the system has that.

    modules: imported by the server. It is started once, with those of the first call.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    begun = multiprocessing.get_context("forkserver")
    begun.set_forkserver_preload([*modules])
    return begun


def n_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def obey_parent() -> None:
    """In a child process: ignore Ctrl-C, which the parent handles, and end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Inside, PyTorch uses `n` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin() -> None:
    obey_parent()
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
