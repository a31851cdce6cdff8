"""The rows of a run on disk: resumed, never mixed, never lost."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from speechlab.errors import UserError
from speechlab.evaluation.rows import Rows, cell, refuse_unwritable

HEADER = ("file", "seconds", "si_sdr", "failed")
SETTINGS = {"test_set": "a", "metrics": ["si_sdr"], "versions": {"numpy": "2"}}
ROWS = [("a", "1", "2.5", ""), ("b", "1", "", 'si_sdr: "so, so"'), ("c", "2", "-3", "")]
NAMES = [row[0] for row in ROWS]
FORBIDDEN = Path("/proc/speechlab/rows.csv")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "new" / "rows.csv"


def write(output, rows, settings=SETTINGS):
    kept = Rows(output, HEADER, settings)
    with kept.appending() as append:
        for row in rows:
            append(row)
    return kept


def test_rows_come_back_in_the_order_asked(output):
    write(output, reversed(ROWS)).finish(NAMES)
    assert not output.with_name("rows.csv.partial").exists()
    assert sorted(path.name for path in output.parent.iterdir()) == ["rows.csv", "rows.json"]
    frame = Rows(output, HEADER, SETTINGS).frame(NAMES)
    assert list(frame["file"]) == NAMES
    assert list(frame["failed"]) == ["", 'si_sdr: "so, so"', ""]
    np.testing.assert_array_equal(frame["si_sdr"], [2.5, np.nan, -3])
    assert json.loads(output.with_suffix(".json").read_text()) == SETTINGS | {"n_files": 3}


def test_an_interrupted_run_resumes(output):
    write(output, ROWS).finish(NAMES)
    whole = output.read_bytes()
    again = output.with_name("again.csv")
    write(again, ROWS[2:])  # no finish: interrupted
    assert not again.exists()
    assert list(Rows(again, HEADER, SETTINGS).done) == ["c"]
    write(again, ROWS[:2]).finish(NAMES)
    assert again.read_bytes() == whole


@pytest.mark.parametrize("torn", ["b,1", "b", 'b,1,,"si_sdr: ""so, ', "b,1,2.5,all: Tübin"])
def test_a_torn_last_line_is_dropped(output, torn):
    write(output, ROWS[:1])
    partial = output.with_name("rows.csv.partial")
    with partial.open("ab") as file:
        file.write(torn.encode()[:-1])
    assert list(Rows(output, HEADER, SETTINGS).done) == ["a"]
    write(output, ROWS[1:]).finish(NAMES)
    assert list(Rows(output, HEADER, SETTINGS).frame(NAMES)["file"]) == NAMES


def test_a_torn_header_is_an_empty_run(output):
    write(output, [])
    output.with_name("rows.csv.partial").write_text("file,seco")
    assert Rows(output, HEADER, SETTINGS).done == {}


def test_rows_of_another_run_are_refused(output):
    write(output, ROWS[:1])
    before = output.with_name("rows.csv.partial").read_bytes()
    with pytest.raises(UserError, match=r"differs in test_set; remove it"):
        Rows(output, HEADER, SETTINGS | {"test_set": "b"})
    with pytest.raises(UserError, match=r"differs in .*checkpoint"):
        Rows(output, HEADER, SETTINGS | {"checkpoint": "x"})
    with pytest.raises(UserError, match="other columns"):
        Rows(output, (*HEADER[:3], "stoi", "failed"), SETTINGS)
    with pytest.raises(UserError, match="no file of 1 rows"):
        Rows(output, HEADER, SETTINGS).refuse_strangers(["x", "y"])
    assert output.with_name("rows.csv.partial").read_bytes() == before


def test_other_versions_may_read_but_not_add(output):
    write(output, ROWS[:1]).finish(NAMES)
    newer = Rows(output, HEADER, SETTINGS | {"versions": {"numpy": "3"}})
    assert len(newer.frame(["a"])) == 1
    with pytest.raises(UserError, match="other package versions"), newer.appending():
        pass


def test_settings_of_something_else_are_not_overwritten(output):
    output.parent.mkdir()
    output.with_suffix(".json").write_text('{"config": 1}')
    with pytest.raises(UserError, match="not the settings of a run"):
        Rows(output, HEADER, SETTINGS)


def test_rows_without_settings_are_refused(output):
    write(output, ROWS).finish(NAMES)
    output.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"rows\.json beside it is missing"):
        Rows(output, HEADER, SETTINGS)


def test_a_damaged_line_is_named(output):
    write(output, ROWS).finish(NAMES)
    text = output.read_text().replace("2.5", "2.5x")
    output.write_text(text)
    with pytest.raises(UserError, match="line 2 is damaged"):
        Rows(output, HEADER, SETTINGS)


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b'"\n' * 9, b"a\rb\n", b"\0\n"])
def test_another_table_is_refused(output, content):
    write(output, ROWS).finish(NAMES)
    output.write_bytes(content)
    with pytest.raises(UserError, match=r"rows\.csv: (no table|has other columns)"):
        Rows(output, HEADER, SETTINGS)
    assert output.read_bytes() == content


def test_reading_writes_nothing(output):
    with pytest.raises(UserError, match=r"must end in \.csv"):
        Rows(output.with_suffix(".txt"), HEADER, SETTINGS)
    Rows(output, HEADER, SETTINGS)
    assert not output.parent.exists()


def test_an_unwritable_output_is_an_error_and_nothing_is_made(output):
    refuse_unwritable(output)
    assert not output.parent.exists()
    output.parent.mkdir()
    (output.parent / "file").touch()
    (output.parent / "folder.csv").mkdir()
    for path, reason in (("file/a/rows.csv", "file is no folder"), ("folder.csv", "is a folder")):
        message = f"{path} cannot be written: .*{reason}; choose another output"
        with pytest.raises(UserError, match=message):
            refuse_unwritable(output.parent / path)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="only Linux has /proc")
def test_a_folder_without_permission_is_an_error(monkeypatch):
    message = "rows.csv cannot be written"
    with pytest.raises(UserError, match=message), Rows(FORBIDDEN, HEADER, SETTINGS).appending():
        pass
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may, wherever the system may
    with pytest.raises(UserError, match=f"{message}: no permission in /proc"):
        refuse_unwritable(FORBIDDEN)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_is_an_error(output, monkeypatch):
    """A row that does not fit is an error of one line, and the rows before it are kept."""
    write(output, ROWS[:1])
    kept = Rows(output, HEADER, SETTINGS)
    real = Path.open

    def to_device(path, mode="r", *rest, **options):
        return real(Path("/dev/full") if mode == "ab" else path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", to_device)
    message = r"rows\.csv\.partial cannot be written: the disk is full"
    with pytest.raises(UserError, match=message), kept.appending() as append:
        append(ROWS[1])
    assert list(Rows(output, HEADER, SETTINGS).done) == ["a"]


def test_cells():
    assert [cell(x) for x in (np.nan, 1.0, 2 / 3, 1e-9)] == ["", "1", "0.666667", "1e-09"]


def test_a_file_may_have_a_row_for_each_speaker(output):
    """Both cells name the row; files are counted, not rows; half a mixture is scored again."""
    header = ("file", "speaker", "si_sdr", "failed")
    rows = [("a 1", "1", "2.5", ""), ("a 1", "2", "3.5", ""), ("a", "1", "0", "")]
    begun = Rows(output, header, SETTINGS, n_names=2)
    begun.fill([rows[:2]], 0, 2, progress=False)
    with begun.partial.open("ab") as file:
        file.write(b"a,1,0")  # torn
    again = Rows(output, header, SETTINGS, n_names=2)
    assert list(again.done) == ["a 1 1", "a 1 2"]
    again.fill([rows[:2], rows[2:]], 1, 2, progress=False)
    names = ["a 1", "a 1 1", "a 1 2"]
    again.finish(names)
    assert json.loads(output.with_suffix(".json").read_text())["n_files"] == 2
    frame = Rows(output, header, SETTINGS, n_names=2).frame(names)
    assert frame["file"].tolist() == ["a", "a 1", "a 1"]
    assert frame["speaker"].tolist() == ["1", "1", "2"]
    np.testing.assert_array_equal(frame["si_sdr"], [0, 2.5, 3.5])
