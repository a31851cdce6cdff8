"""Names of every kind in a test set: no error, and the second run equals the first."""

import os
import unicodedata

import pytest

from speechlab.audio import files
from speechlab.data import test_sets
from speechlab.errors import UserError
from speechlab.evaluation.evaluate import evaluate
from tests.support.sound_files import noise

NAMES = [
    os.fsdecode(b"\xff\xfe"),
    *("a\rb", "\r\n", "b\x1b[2J", "x\u00b2", "9\u00b2", "\u0663", "\u00e9", "a, \"b\"", "sub/c"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES):
        clean = noise(length=4000, seed=number)
        files.save(tmp_path / f"set/clean/{name}.wav", clean, 16000)
        noisy = clean + noise(length=4000, seed=99)
        decomposed = unicodedata.normalize("NFD", name)
        files.save(tmp_path / f"set/noisy/{decomposed}.wav", noisy, 16000)
    return tmp_path / "set"


def test_the_second_run_equals_the_first(folder, tmp_path):
    settings, told = {"metrics": ["si_sdr"], "jobs": 1, "progress": False}, []
    settings |= {"sample_rate": 8000}  # each file is named among the resampled ones
    first = evaluate(folder, tmp_path / "rows.csv", **settings, tell=told.append)
    assert f"{len(NAMES) - 1} files of noisy/ at 16000 Hz" in told[0]
    before = (tmp_path / "rows.csv").read_bytes()
    second = evaluate(folder, tmp_path / "rows.csv", **settings)
    assert len(first) == len(NAMES) and first["si_sdr"].notna().all()
    assert first.equals(second) and (tmp_path / "rows.csv").read_bytes() == before
    assert all(map(str.isprintable, first["file"]))
    assert "sub/c" in set(first["file"])


def test_what_a_test_set_leaves_out_is_told(folder):
    (folder / "noisy/b.m4a").touch()
    (folder / "noisy/up").symlink_to(folder / "noisy")
    lines = []
    assert len(test_sets.find(folder, lines.append)) == len(NAMES)
    assert lines == [
        f"{folder / 'noisy'}: left out: files that are not read as sound (1 .m4a); "
        "up (a link to a folder above it)"
    ]


def test_two_files_of_one_name_are_refused(folder):
    files.save(folder / "noisy/\u00e9.wav", noise(), 16000)
    with pytest.raises(UserError, match="are one name"):
        test_sets.find(folder)
