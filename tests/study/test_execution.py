"""A notebook's process ends with its time limit and with the study, and leaves nothing running."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechlab.study import execution, schedule
from speechlab.study.runner import run_study
from tests.support.study_toys import LIMIT_MIN, copies, read, reason, run, wanted, write

pytestmark = pytest.mark.usefixtures("warm_papermill")
ENDLESS = """
import os, time
from pathlib import Path
Path("../pid").write_text(str(os.getpid()))
while True:
    Path("../beats").open("a").write("x")
    time.sleep(0.05)
"""
# A script for a process of its own, which can be interrupted or killed.
SCRIPT = """
from speechlab.study.runner import plan, run_study
run_study(plan(folder="notebooks", copies="copies"), progress=False, jobs=2)
"""


def until(condition):
    """Wait for a condition, which comes at any speed of the machine."""
    deadline = time.monotonic() + 60 * LIMIT_MIN
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs_on(root):
    """Whether the kernel of ENDLESS lives; one that only waits to be counted does not."""
    pid = (root / "pid").read_text()
    try:
        os.kill(int(pid), 0)
        stat = Path("/proc", pid, "stat").read_text() if Path("/proc").is_dir() else ""
    except (ProcessLookupError, FileNotFoundError):
        return False
    return ") Z " not in stat


class Clock:
    """In the place of `time` in `execution`: minutes pass as the endless notebook beats."""

    sleep = staticmethod(time.sleep)

    def __init__(self, beats, minutes):
        self.beats, self.minutes = beats, [0.0, *minutes]

    def monotonic(self):
        n = self.beats.stat().st_size if self.beats.exists() else 0
        return 60 * self.minutes[min(n // 5, len(self.minutes) - 1)]


def test_an_endless_notebook_ends_with_its_time_limit(tmp_path, monkeypatch):
    """Not before it: the kernel has all the real time that it needs to begin."""
    write(tmp_path / "notebooks", "01_endless", "x = 1", ENDLESS)
    clock = Clock(tmp_path / "beats", [9.9, 10.1])
    monkeypatch.setattr(execution, "time", clock)
    [outcome] = run(tmp_path, minutes=10.0)
    assert "in cell In [2]: stopped at its limit of 10 min" in outcome.line
    assert copies(tmp_path) == ["01_endless.failed.ipynb"]
    until(lambda: not runs_on(tmp_path))
    assert (tmp_path / "beats").stat().st_size >= 10  # it was not stopped at 9.9 minutes


MEETING = """
import os, time
from pathlib import Path
Path("../here-{me}").touch()
deadline = time.monotonic() + 1800
while not Path("../here-{other}").exists():
    assert time.monotonic() < deadline
    time.sleep(0.05)
print("threads", os.environ.get("OMP_NUM_THREADS"))
"""


def test_trainings_stand_side_by_side(tmp_path, monkeypatch):
    """Two that wait for each other end; the first and the last are alone, and outcomes in order."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("speechlab.parallel.n_processors", lambda: 6)
    folder = tmp_path / "notebooks"
    for number, other in (("02", "03"), ("03", "02")):
        write(folder, f"{number}_train", MEETING.format(me=number, other=other))
    seen = "from pathlib import Path\nprint(len(list(Path('..').glob('here-*'))))"
    for name in ("01_data", "10_tables"):
        write(folder, name, seen)
    outcomes = run(tmp_path, jobs=2)
    names = [outcome.wanted.name for outcome in outcomes]
    assert names == ["01_data", "02_train", "03_train", "10_tables"]
    lines = [outcome.line for outcome in outcomes]
    assert [outcome.status for outcome in outcomes] == ["done"] * 4, lines
    said = [read(one.wanted.copy).cells[-1].outputs[0].text.split() for one in outcomes]
    assert said == [["0"], ["threads", "3"], ["threads", "3"], ["2"]]


TALKING = """
import time
from pathlib import Path
from speechlab.progress import Report
with Report("fit", 3, "step", shown=False) as report:
    report.update()
    deadline = time.monotonic() + 1800
    while not Path("../heard").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
"""


def test_the_study_talks(tmp_path, monkeypatch):
    """What starts and its time; the step and the rest of a running one; three lines at last."""
    monkeypatch.setattr(execution, "WATCH_S", 0.1)
    monkeypatch.setitem(schedule.MINUTES, "02", 3.0)
    write(tmp_path / "notebooks", "02_train", "x = 1", TALKING)
    lines = []

    def tell(line):
        lines.append(line)
        if "fit: step 1 of 3" in line:
            (tmp_path / "heard").touch()

    run_study(wanted(tmp_path), LIMIT_MIN, tell=tell)
    assert lines[0] == "1 notebooks, about 3 min unless some are finished"
    assert lines[1] == "02_train: starts; planned 03:00, at most 30:00"
    work = r"its kernel starts|cell \d of 3|fit: step 1 of 3"
    left = r"about 0\d:\d\d left|longer than the planned 03:00(, at least 0.* left)?"
    assert all(re.fullmatch(f"02_train: ({work}), ({left})", line) for line in lines[2:-4])
    assert lines[-5].startswith("02_train: fit: step 1 of 3, ")
    assert lines[-4].startswith("02_train: done in ")
    assert lines[-3] == "1 notebooks: 1 done, 0 finished, 0 failed"
    assert lines[-2].startswith("took 0") and "longest: 02_train" in lines[-2]
    assert "copies" in lines[-1]


def hears_ctrl_c():
    """As a program begun in the foreground does; tests may have been begun in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("name", ["01_endless", "02_endless"])
def test_killed_in_the_middle(tmp_path, end, name):
    """No half copy, nothing left running; and the next run is as if there had been none before."""
    write(tmp_path / "notebooks", name, "x = 1", ENDLESS)
    command = [sys.executable, "-c", SCRIPT]
    options = {"cwd": tmp_path, "env": os.environ | {"TMPDIR": str(tmp_path)}}
    options |= {"stderr": subprocess.DEVNULL, "preexec_fn": hears_ctrl_c}
    process = subprocess.Popen(command, **options)
    until((tmp_path / "beats").exists)
    assert runs_on(tmp_path)
    process.send_signal(end)
    process.wait(60 * LIMIT_MIN)
    until(lambda: not runs_on(tmp_path))
    assert copies(tmp_path) == []
    assert reason(tmp_path, name) == "not run yet"
