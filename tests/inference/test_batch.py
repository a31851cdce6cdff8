"""What goes where, what is refused before any work, and the log."""

import csv
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechlab.errors import UserError
from speechlab.inference.batch import Log, Result, alone, digest
from speechlab.inference.jobs import Job, plan
from speechlab.models import SYSTEMS
from speechlab.models.cleanumamba import CleanUMambaConfig


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Working folder, with a tree of empty files: a plan reads none."""
    monkeypatch.chdir(tmp_path)
    names = ["a.wav", "sub/b.flac", "sub/deep/c.MP3", "notes.txt", ".hidden.wav", "x.wav/d.ogg"]
    for name in names:
        path = tmp_path / "noisy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def targets(*inputs, output="out"):
    return sorted(job.target.as_posix() for job in plan(inputs, Path(output)))


EVERY = ["out/a.wav", "out/sub/b.wav", "out/sub/deep/c.wav", "out/x.wav/d.wav"]


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (["noisy"], EVERY),  # x.wav is a folder; hidden and other files are not sound
        (["noisy/"], EVERY),
        (["noisy/x.wav"], ["out/d.wav"]),
        (["noisy/a.wav", "noisy/sub/b.flac"], ["out/a.wav", "out/b.wav"]),
        (["noisy/a.wav", "noisy/./a.wav", "noisy/*.wav"], ["out/a.wav", "out/x.wav/d.wav"]),
        (["noisy/notes.txt"], ["out/notes.txt.wav"]),  # a file that is named is tried
        (["take[1].wav"], ["out/take[1].wav"]),  # a name with brackets is a name
        (["noisy/*.wav"], ["out/a.wav", "out/x.wav/d.wav"]),
        (["noisy/*/*.flac"], ["out/sub/b.wav"]),
        (["noisy/**/*.flac"], ["out/sub/b.wav"]),
        (["noisy/**/[ad].*"], ["out/a.wav", "out/x.wav/d.wav"]),
        (["nois?/sub/*"], ["out/noisy/sub/b.wav", "out/noisy/sub/deep/c.wav"]),
    ],
)
def test_files_folders_and_patterns(folder, inputs, found):
    (folder / "take[1].wav").touch()
    assert targets(*inputs) == found


def test_an_output_inside_the_input_is_no_input(folder):
    (folder / "noisy/out").mkdir()
    (folder / "noisy/out/a.wav").touch()
    assert targets("noisy", output="noisy/out")[:2] == ["noisy/out/a.wav", "noisy/out/sub/b.wav"]
    assert len(targets("noisy", output="noisy/out")) == 4


@pytest.fixture
def shut(monkeypatch):
    """A function that makes a folder unreadable, for root too."""
    closed, scandir = set(), os.scandir

    def refusing(path="."):
        if Path(path).resolve() in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    return lambda path: closed.add(path.resolve())


def test_a_shut_subfolder_is_a_job_that_cannot_be_done(folder, shut):
    shut(folder / "noisy/sub")
    jobs = {job.source.as_posix(): job for job in plan(["noisy", "noisy/**/*.wav"], Path("out"))}
    assert sorted(jobs) == ["noisy/a.wav", "noisy/sub", "noisy/x.wav/d.ogg"]
    fault = jobs["noisy/sub"].fault
    assert fault.startswith("noisy/sub: cannot be read (Permission denied); ")
    assert "\n" not in fault
    assert not any(job.fault for name, job in jobs.items() if name != "noisy/sub")
    assert len(plan(["noisy/*.wav"], Path("out"))) == 2  # no need to look into it


def test_a_shut_input_is_refused(folder, shut):
    shut(folder / "noisy")
    with pytest.raises(UserError, match=r"noisy: cannot be read \(Permission denied\); "):
        plan(["noisy"], Path("out"))


def test_a_shut_folder_is_in_nobody_s_way(folder, shut):
    """Its files are not known: another input's may go where they would have gone."""
    (folder / "more/sub").mkdir(parents=True)
    (folder / "more/sub/e.wav").touch()
    shut(folder / "noisy/sub")
    jobs = plan(["noisy", "more"], Path("out"))
    assert {job.target.as_posix() for job in jobs if not job.fault} >= {"out/sub/e.wav"}


@pytest.mark.parametrize(
    ("inputs", "output", "said"),
    [
        (["noisy"], "noisy", "is the input and the output folder"),
        (["noisy/*.wav"], "noisy/../noisy", "is the input and the output folder"),
        (["noisy/a.wav"], "noisy", "is an input, and would be overwritten"),
        (["absent"], "out", "absent: no such file"),
        (["noisy/*.opus"], "out", "no sound files"),
        (["nowhere/*.wav"], "out", "no such file or folder"),
        (["empty"], "out", "no sound files"),
        (["same"], "out", "would both become out/a.wav"),
        (["noisy", "same/a.flac"], "out", "would both become out/a.wav"),
        (["mixed"], "out", "would be a file and the folder of"),
    ],
)
def test_what_is_refused(folder, inputs, output, said):
    for name in ("same/a.wav", "same/a.flac", "mixed/x.flac", "mixed/x.wav/y.wav", "empty/x.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    with pytest.raises(UserError) as error:
        targets(*inputs, output=output)
    assert said in str(error.value)
    assert ";" in str(error.value) or "(" in str(error.value)
    assert not (folder / "out").exists()


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def result(folder, name, status="ok", **values):
    return Result(f"in/{name}", str(folder / name), status, **values)


def test_a_row_is_on_disk_at_once_and_the_last_one_counts(tmp_path):
    path = tmp_path / "enhance.csv"
    with Log(path) as log:
        log.add(result(tmp_path, "a.wav", "failed", reason="why, and\nwhere"))
        assert len(rows(path)) == 1
        log.add(result(tmp_path, "a.wav", seconds=7200.0625, clipped=0))
    (row,) = rows(path)
    assert (row["output"], row["status"], row["seconds"]) == ("a.wav", "ok", "7200.0625")
    assert row["clipped"] == "0"
    assert row["rtf"] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["enhance.csv"]


def test_a_torn_line_is_dropped_and_numbers_stay(tmp_path):
    path = tmp_path / "enhance.csv"
    with Log(path) as log:
        log.add(result(tmp_path, "a.wav", seconds=2.0, sample_rate=16000, made_with="abc"))
    with path.open("a") as file:
        file.write("in/b.wav,b.wa")
    with Log(path) as log:
        assert [row["output"] for row in rows(path)] == ["a.wav"]
        again = log.add(log.skipped(Job(tmp_path / "in", tmp_path / "a.wav")))
    assert (again.status, again.seconds, again.sample_rate) == ("skipped", 2.0, 16000)
    assert [(row["status"], row["seconds"]) for row in rows(path)] == [("skipped", "2")]


def test_one_run_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    with (
        alone(tmp_path / "out"),
        pytest.raises(UserError, match="another run writes there"),
        alone(tmp_path / "out"),
    ):
        pass
    with alone(tmp_path / "out"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no folder to write to"), alone(tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    ("system", "before"),
    [
        ("cleanumamba", "5216cf400890"),
        ("semamba_basic", "bda69ad97387"),
        ("semamba_advanced", "8beb0a08844a"),
        ("sepmamba", "eb3c9993b796"),
    ],
)
def test_a_folder_of_before_is_continued(system, before):
    """The digest of version 0.1, which had no leak and no widths of pruned models."""
    config = SYSTEMS[system][0]()
    assert digest(SimpleNamespace(config=config, state_dict=dict), 1.0) == before


def test_a_leak_makes_other_files():
    digests = {
        digest(SimpleNamespace(config=CleanUMambaConfig(state_leak_s=s), state_dict=dict), 1.0)
        for s in (None, 10.0, 20.0)
    }
    assert len(digests) == 3
