"""The fuzz survey itself: it sees each kind of fault, and its cases are the same in every run."""

import os
import time
from pathlib import Path
from random import Random

import pytest

from speechlab.errors import UserError
from tests.fuzz import mutate
from tests.fuzz.mutate import survey


def well(random: Random, folder: Path) -> str:
    if random.random() < 0.5:
        raise UserError(f"{folder / 'a file'}: has {random.random()} bytes")
    return "opened"


def raises(random: Random, folder: Path) -> str:
    raise KeyError("a bug")


def dies(random: Random, folder: Path) -> str:
    os._exit(3)


def hangs(random: Random, folder: Path) -> str:
    time.sleep(600)


def leaves(random: Random, folder: Path) -> str:
    (folder / "x.part").touch()
    return "opened"


def grows(random: Random, folder: Path) -> str:
    return f"opened {len(b'x' * 80_000_000) % 7}"


def says_much(random: Random, folder: Path) -> str:
    raise type("Loud", (UserError,), {"__str__": lambda self: "two\nlines"})


def test_counts(tmp_path, capsys):
    outcomes = survey(well, tmp_path, short=40, full=40)
    assert outcomes.keys() == {"opened", "refused: FILE file: has N bytes"}
    assert outcomes.total() == 40
    assert "40 of 40 cases" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        (raises, "KeyError: 'a bug'"),
        (dies, "ended with 3"),
        (hangs, "no answer for 1 s"),
        (leaves, r"left x\.part"),
        (grows, "memory grows by more than 50 MB"),
        (says_much, "not one line"),
    ],
)
def test_a_fault_is_seen(tmp_path, monkeypatch, tried, said):
    if tried is hangs:
        monkeypatch.setattr(mutate, "HANG_S", 1)
    with pytest.raises(AssertionError, match=said):
        survey(tried, tmp_path, short=2, full=2, most_mb=50)


@pytest.mark.parametrize("content", [b"", b"a", bytes(range(256)) * 40])
def test_mutations_repeat_and_differ(content):
    made = [mutate.any_bytes(content, Random(seed)) for seed in range(50)]
    assert made == [mutate.any_bytes(content, Random(seed)) for seed in range(50)]
    assert len(set(made)) > 25
