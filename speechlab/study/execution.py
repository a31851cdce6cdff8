"""One notebook, executed by papermill in a subprocess that ends with this process.

The subprocess reads a pipe from here. The pipe closes at the time limit, at Ctrl-C or when this
process is killed; the subprocess then interrupts itself, and papermill ends its kernel. All its
files are in a temporary folder.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechlab.progress import WATCHED
from speechlab.storage.atomic import write
from speechlab.study.notebooks import Notebook, execution_count

START_S = 600  # seconds for a kernel to start on a busy machine
WATCH_S = 30.0  # between two lines about a running notebook
ENDING_S = 10  # seconds for the subprocess to end its kernel before it exits


@dataclass(frozen=True)
class End:
    """How an execution ended."""

    executed: dict[str, Any]  # the notebook with outputs so far, as JSON; empty without a kernel
    error: str  # the failed cell and its error on one line; "" after success
    seconds: float


class StoppedError(Exception):
    """The execution was stopped from outside."""


def execute(
    notebook: Notebook,
    parameters: Mapping[str, Any],
    time_limit_min: float,
    watch: Callable[[str, float], None] = lambda now, left_s: None,
    jobs: int = 1,
    stopping: threading.Event | None = None,
) -> End:
    """Run a notebook in its own folder with its parameters.

    watch: takes what runs and the seconds that it still takes, every WATCH_S; see `_now`.
    jobs: notebooks that run in parallel, each with its share of the cores.
    stopping: once set, the notebook is ended and StoppedError is raised.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="speechlab-study-") as name:
        place = Path(name)
        job = {"parameters": dict(parameters), "cwd": str(notebook.path.parent.resolve())}
        (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (place / "notebook.ipynb").write_text(json.dumps(notebook.content), encoding="utf-8")
        limit = began + 60 * time_limit_min
        stopping = stopping or threading.Event()
        in_time = _watch(place, limit, watch, _shared(jobs), stopping)
        if stopping.is_set():
            raise StoppedError(f"{notebook.name}: stopped from outside")
        executed = _read_json(place / "executed.ipynb")
        late = "" if in_time else f"stopped at its limit of {time_limit_min:g} min"
        return End(executed, _error(place, late, executed), time.monotonic() - began)


def _shared(jobs: int) -> dict[str, str]:
    """The environment of one of several parallel jobs: its number of PyTorch threads."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return dict(os.environ)
    from speechlab.parallel import n_processors

    return os.environ | {"OMP_NUM_THREADS": str(max(1, n_processors() // jobs))}


def _watch(
    place: Path,
    limit: float,
    watch: Callable[[str, float], None],
    environment: Mapping[str, str],
    stopping: threading.Event,
) -> bool:
    """Start the subprocess and wait; returns whether it ended before the limit."""
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "speechlab.study.execution", str(place)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**environment, WATCHED: str(place / "progress")},
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends the other
        )
        told = time.monotonic()
        try:
            while process.poll() is None and time.monotonic() < limit and not stopping.is_set():
                time.sleep(0.1)
                if time.monotonic() - told >= WATCH_S:
                    told = time.monotonic()
                    watch(*_now(place))
            return process.poll() is not None
        finally:
            _end(process)


def _now(place: Path) -> tuple[str, float]:
    """The progress of the cell that runs, else its number; the seconds for the rest of it, or 0."""
    status, work = _read_json(place / "status.json"), _read_json(place / "progress")
    cell = f"cell {status['cell']} of {status['cells']}" if status else "its kernel starts"
    return work.get("now", cell), work.get("left_s") or 0.0


def _end(process: subprocess.Popen) -> None:
    process.stdin.close()
    try:
        process.wait(ENDING_S + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _error(place: Path, late: str, executed: Mapping[str, Any]) -> str:
    """The failed cell and its error on one line; "" if the notebook did not fail."""
    status = _read_json(place / "status.json")
    if status.get("done"):
        return ""
    lines = (place / "log").read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it ended without a message")
    why = " ".join((late or status.get("error", last)).split())[:300]
    count = execution_count(executed.get("cells", []), status.get("cell", 0))
    return f"in cell In [{count}]: {why}" if count else f"before its first cell: {why}"


def _read_json(path: Path) -> dict[str, Any]:
    """The content; empty if the file is missing or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _child(place: Path) -> None:
    """The subprocess: runs papermill and writes its progress to status.json."""
    import logging
    import signal

    import papermill

    def note(record: logging.LogRecord) -> bool:
        if found := re.match(r"Executing Cell (\d+)-", record.getMessage()):
            (place / "progress").unlink(missing_ok=True)  # of an earlier cell
            status["cell"] = int(found[1])
            write(place / "status.json", json.dumps(status))
        return False

    status: dict[str, Any] = {}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("papermill").setLevel(logging.INFO)
    logging.getLogger("papermill").addFilter(note)
    job = json.loads((place / "job.json").read_text(encoding="utf-8"))
    n_cells = len(_read_json(place / "notebook.ipynb")["cells"])
    status["cells"] = n_cells + bool(job["parameters"])  # papermill adds a cell for them
    paths = place / "notebook.ipynb", place / "executed.ipynb"
    options = {"progress_bar": False, "log_output": True, "start_timeout": START_S}
    try:
        try:
            papermill.execute_notebook(*paths, **job, **options)
        except RuntimeError:
            if "cell" in status:
                raise
            # The kernel died at its start: another one took its port at the same time. Retry once.
            papermill.execute_notebook(*paths, **job, **options)
        status["done"] = True
    except papermill.PapermillExecutionError as error:
        status |= {"cell": error.cell_index + 1, "error": f"{error.ename}: {error.evalue}"}
    write(place / "status.json", json.dumps(status))


def _end_with_parent() -> None:
    """Wait until the parent's pipe closes; then interrupt, so that papermill ends its kernel."""
    import signal

    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(ENDING_S)
    os._exit(1)


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
