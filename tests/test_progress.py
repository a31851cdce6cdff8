"""Progress: a bar on a terminal alone; lines a minute apart and three at the end elsewhere."""

import io
import json
import sys

import pytest

from speechlab import progress
from speechlab.progress import Report


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_a_minute_apart_and_three_at_the_end(clock):
    lines = []
    with Report("enhance", 300, tell=lines.append) as report:
        for number in range(300):
            clock[0] += 1
            report.note = f"loss {number}"
            report.update()
        report.outcome = "300 s of audio"
    assert lines == [
        *(f"enhance: file {n} of 300, loss {n - 1}, 0{4 - i}:00 left" for i, n in MINUTES),
        "enhance: file 300 of 300, loss 299",
        "enhance: took 05:00, 1 s a file",
        "enhance: 300 s of audio",
    ]


MINUTES = enumerate((60, 120, 180, 240, 300))


def test_parts_of_files_and_bytes(clock):
    lines = []
    with Report("a.zip", 3e6, "B", 1e6, tell=lines.append) as report:
        clock[0] += 60
        report.update(1e6)
    assert lines[0] == "a.zip: 2.00MB of 3.00MB, 01:00 left"
    with Report("x", None, tell=lines.append) as report:
        clock[0] += 60
        report.update(0.25)
    assert "x: file 0.2" in lines


def test_a_failure_has_no_summary(clock):
    lines = []
    with pytest.raises(KeyError), Report("x", 2, tell=lines.append):
        raise KeyError
    assert lines == []


def test_no_bar_off_a_terminal(capsys):
    with Report("x", 2) as report:
        report.update()
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 3
    assert "\r" not in printed.err and "%" not in printed.err
    with Report("x", 2, shown=False) as report:
        report.update()
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Report("x", 2) as report:
        report.note = "loss 3"
        report.update(2)
    assert "2/2" in sys.stderr.getvalue() and "took" not in sys.stderr.getvalue()


def test_the_newest_count_is_in_the_watched_file(clock, monkeypatch, tmp_path):
    monkeypatch.setenv(progress.WATCHED, str(tmp_path / "noted"))
    with Report("x", 4, shown=False) as report:
        for _ in range(3):
            clock[0] += 2
            report.update()
        report.note = "loss 3"
        noted = json.loads((tmp_path / "noted").read_text())
        assert noted == {"now": "x: file 3 of 4", "left_s": 2.0}
