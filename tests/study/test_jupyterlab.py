"""JupyterLab itself opens every notebook and runs all cells, as "Run All Cells" does.

A real server on a copy of the study, spoken to as its page in a browser speaks to it: the notebook
from the contents API, a session whose kernel works beside it, a cell's request after the other.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import websocket

from speechlab.study.notebooks import FIRST
from speechlab.study.schedule import MINUTES
from tests.support.warm import LIMIT_S, ROOT

NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").glob("*.ipynb") if p.name != FIRST)
MAKEFILE = ROOT / "Makefile"
# It trains and shows tables and figures; `test_notebooks` executes all, in warm processes.
RUN = "02_train_cleanumamba.ipynb"
SMALL = 'profile = "smoke"'  # in a cell behind the parameters, as a reader would change it


class Server(NamedTuple):
    address: str  # http://…/
    token: str

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}api/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            return json.load(answer)


def copied(folder: Path) -> Path:
    """What a reader has who cloned the repository: notebooks and results, no data."""
    left_out = shutil.ignore_patterns("runs", "notebooks", "local", ".ipynb_checkpoints")
    shutil.copytree(ROOT / "results", folder / "results", ignore=left_out)
    (folder / "data").mkdir()
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / FIRST, folder / "notebooks")
    for path in NOTEBOOKS:
        content = json.loads(path.read_text(encoding="utf-8"))
        tagged = ["parameters" in cell["metadata"].get("tags", []) for cell in content["cells"]]
        small = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
        content["cells"].insert(tagged.index(True) + 1, small | {"id": "small", "source": SMALL})
        (folder / "notebooks" / path.name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("localhost", port)) == 0


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server of JupyterLab on the repository, with the options of `make lab`."""
    own, folder = tmp_path_factory.mktemp("own"), copied(tmp_path_factory.mktemp("repository"))
    places = {f"JUPYTER_{kind}_DIR": str(own / kind) for kind in ("RUNTIME", "CONFIG", "DATA")}
    places |= {"IPYTHONDIR": str(own), "XDG_CACHE_HOME": str(own), "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "SPEECHLAB_WEIGHTS"} | places
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    [options] = re.findall(r"^\t\$\(BIN\)/jupyter-lab (.+)$", MAKEFILE.read_text(), re.M)
    command += ["--ServerApp.port=0", *options.split()]
    with (own / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not (known := list((own / "RUNTIME").glob("jpserver-*.json"))):
            assert process.poll() is None and time.monotonic() < deadline, (own / "log").read_text()
            time.sleep(0.1)
        about = json.loads(known[0].read_text())
        while not listens(about["port"]):  # the server writes the file before it listens
            assert process.poll() is None and time.monotonic() < deadline, (own / "log").read_text()
            time.sleep(0.1)
        yield Server(about["url"], about["token"])
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def execute(channel: websocket.WebSocket, code: str) -> tuple[dict[str, Any], list[dict]]:
    """One cell's request; its reply and its outputs."""
    header = {"msg_id": uuid.uuid4().hex, "session": "test", "username": "", "version": "5.3"}
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
    message = {"header": header | {"msg_type": "execute_request"}, "content": content}
    channel.send(json.dumps(message | {"channel": "shell", "parent_header": {}, "metadata": {}}))
    reply, outputs, idle = {}, [], False
    while not (reply and idle):
        got = json.loads(channel.recv())
        if got["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        idle = idle or got["content"].get("execution_state") == "idle"
        if got["msg_type"] == "execute_reply":
            reply = got["content"]
        elif got["msg_type"] in ("stream", "display_data", "execute_result", "error"):
            outputs.append(got["content"])
    return reply, outputs


@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS])
def test_it_opens(lab, name):
    content = lab.ask(f"contents/notebooks/{name}")["content"]
    assert {cell["cell_type"] for cell in content["cells"]} == {"markdown", "code"}


def test_it_begins_with_the_map(lab):
    """The address that the browser opens names a file that the server has; its links work."""
    [shown] = re.findall(r"default_url=/lab/tree/(\S+)", MAKEFILE.read_text())
    cells = lab.ask(f"contents/{shown}")["content"]["cells"]
    text = "\n".join(cell["source"] for cell in cells)
    linked = re.findall(r"\]\(([^)#]+)\)", text)
    assert {path.name for path in NOTEBOOKS} <= set(linked)
    assert all((ROOT / "notebooks" / path).exists() for path in linked)
    minutes = re.findall(r"^\| \[(\d\d) .*?\| ([\d.]+) \|", text, re.M)
    assert {number: float(one) for number, one in minutes} == MINUTES


def test_run_all(lab):
    cells = lab.ask(f"contents/notebooks/{RUN}")["content"]["cells"]
    session = {
        "path": f"notebooks/{RUN}",
        "name": RUN,
        "type": "notebook",
        "kernel": {"name": "python3"},
    }
    kernel = lab.ask("sessions", session)["kernel"]["id"]
    address = f"{lab.address.replace('http', 'ws', 1)}api/kernels/{kernel}/channels"
    channel = websocket.create_connection(f"{address}?token={lab.token}", timeout=LIMIT_S)
    shown: list[dict] = []
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    for count, source in enumerate(code, start=1):
        reply, outputs = execute(channel, source)
        assert reply["status"] == "ok", f"cell [{count}]: {reply['ename']}: {reply['evalue']}"
        assert reply["execution_count"] == count
        shown += outputs
    channel.close()
    assert any("text/html" in output.get("data", {}) for output in shown)  # tables
    assert any("image/png" in output.get("data", {}) for output in shown)  # figures
