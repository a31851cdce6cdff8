"""Python processes that start in a hundredth of a second, with the heavy imports done.

`run` and `start` do what `subprocess.run` and `subprocess.Popen` do for `python ARGUMENTS`, where
the arguments are `-m MODULE ...`, `-c CODE ...` or `SCRIPT ...`. The first call starts one server,
which imports PyTorch, pandas, Matplotlib and IPython once. Each further process is a fork of it,
with its own process id, signals, environment, folder and standard streams. A process has one
PyTorch thread. Environment variables that libraries read on import (OMP_NUM_THREADS) have no
effect: a test of those needs `subprocess`.
"""

import atexit
import contextlib
import io
import json
import multiprocessing.process
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 1800  # of a process that hangs; none that works needs as long on a busy machine
STARTING = threading.Lock()
PRELOADED = (  # with all of speechlab
    "scipy.signal",
    "scipy.stats",
    "pesq",
    "pystoi",
    "fast_bss_eval",
    "matplotlib.pyplot",
    "matplotlib_inline.backend_inline",
    "IPython.core.interactiveshell",
    "papermill",
)


class Process:
    """A running process. `returncode` is that of `subprocess.Popen`: negative for a signal."""

    def __init__(self, pid: int, status: IO[bytes], stdin: IO[bytes] | None) -> None:
        self.pid, self.returncode, self.stdin, self._status = pid, None, stdin, status

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def wait(self, timeout: float = LIMIT_S) -> int:
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("python", timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.wait()


def start(
    *arguments: object,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: IO | int = subprocess.DEVNULL,
    stderr: IO | int = subprocess.DEVNULL,
) -> Process:
    """A process of `python ARGUMENTS`, in a session of its own.

    stdin: DEVNULL or PIPE; stdout, stderr: DEVNULL or files.
    """
    request = {"arguments": [*map(str, arguments)], "cwd": str(cwd or Path.cwd())}
    request["env"] = dict(os.environ if env is None else env)
    (reads, writes), (source, sink) = os.pipe(), os.pipe()
    with Path(os.devnull).open("r+b") as nothing:
        streams = [nothing if one == subprocess.DEVNULL else one for one in (stdout, stderr)]
        files = [source, *(stream.fileno() for stream in streams), writes]
        with STARTING:
            requests, _ = _server(os.getpid())
            socket.send_fds(requests, [json.dumps(request).encode()], files)
    os.close(source)
    os.close(writes)
    status, pipe = os.fdopen(reads, "rb", buffering=0), os.fdopen(sink, "wb", buffering=0)
    if stdin == subprocess.DEVNULL:
        pipe.close()
    return Process(int(status.readline()), status, pipe)


def popen(command: Sequence[str], start_new_session: bool = True, **options: Any) -> Process:
    """In the place of `subprocess.Popen` for a command of this interpreter."""
    assert command[0] == sys.executable and start_new_session
    return start(*command[1:], **options)


def run(
    *arguments: object,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """A process of `python ARGUMENTS`, waited for; its output as text."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with start(*arguments, cwd=cwd, env=env, stdout=out, stderr=err) as process:
            code = process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    done = subprocess.CompletedProcess([*map(str, arguments)], code, *texts)
    if check:
        assert code == 0, done.stderr[-3000:]
    return done


@cache
def _server(pid: int) -> tuple[socket.socket, subprocess.Popen]:
    """The server of this process and the way to it. pid: a fork of this process has its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.warm", str(theirs.fileno())],
        cwd=ROOT,
        env=environment,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    theirs.close()

    def end() -> None:
        if pid == os.getpid():
            ours.close()  # at which the server ends
            server.wait()

    atexit.register(end)
    return ours, server


def _serve(requests: socket.socket) -> None:
    """Fork for each request, until the tests end."""
    import gc
    import importlib

    import torch

    import speechlab

    ours = [one.name for one in pkgutil.walk_packages(speechlab.__path__, "speechlab.")]
    for name in (*PRELOADED, *ours):
        if not name.endswith("__main__"):
            importlib.import_module(name)
    torch.set_num_threads(1)
    gc.freeze()
    while True:
        request, files, _, _ = socket.recv_fds(requests, 1 << 20, 4)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            _wait(json.loads(request), files)
        for file in files:
            os.close(file)


def _wait(request: dict, files: list[int]) -> None:
    """Fork the process; tell its id, and its exit code when it has ended."""
    *streams, status = files
    child = os.fork()
    if child == 0:
        os.close(status)
        _become(request, streams)
    for file in streams:
        os.close(file)
    os.write(status, f"{child}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(status, f"{code}\n".encode())
    os._exit(0)


def _become(request: dict, streams: list[int]) -> None:
    """Be `python ARGUMENTS` in the request's environment and folder; does not return."""
    for number, file in enumerate(streams):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    os.setsid()
    multiprocessing.process.ORIGINAL_DIR = request["cwd"]
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.FileIO(1, "w"))
    errors = io.TextIOWrapper(io.FileIO(2, "w"), errors="backslashreplace", line_buffering=True)
    sys.stderr = sys.__stderr__ = errors
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        _python(request["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        with contextlib.suppress(OSError):  # a reader of the output may be gone
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
        os._exit(code)


def _python(arguments: list[str]) -> None:
    """What the interpreter does with its arguments."""
    first, *rest = arguments
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    script = first not in ("-m", "-c")
    folder = Path(first).parent.resolve() if script else Path.cwd()
    sys.path[:0] = [str(folder), *filter(None, paths)]
    if first == "-m":
        sys.modules.pop(rest[0], None)  # it runs under the name __main__
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = [first, *rest]
        runpy.run_path(str(Path(first).resolve()), run_name="__main__")


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
