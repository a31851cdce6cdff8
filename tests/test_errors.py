"""Messages: one line of bounded length, whatever a name holds."""

import pytest

from speechlab.errors import UserError, meant, shown, unknown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain é ² name.wav", "plain é ² name.wav"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\rb\nc", r"a\rb\nc"),
        ("a\udcffb", r"a\udcffb"),
        ("a\u202eb", r"a\u202eb"),
    ],
)
def test_control_characters_are_escaped(text, line):
    assert shown(text) == str(UserError(text)) == line
    assert line.encode()


def test_a_long_text_keeps_its_two_ends():
    line = str(UserError("begin " + "x" * 10**6 + " end"))
    assert len(line) <= 2000
    assert line.startswith("begin ")
    assert line.endswith(" end")


KNOWN = ["cleanumamba-tiny", "SEMamba_advanced", "training.n_steps", "training.lr", "pesq_wb"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cleanumamba-tny", "cleanumamba-tiny"),
        ("CLEANUMAMBA-TINY", "cleanumamba-tiny"),
        ("semamba_advnaced", "SEMamba_advanced"),
        ("n_step", "training.n_steps"),
        ("trainng.lr", "training.lr"),
        ("pesq", "pesq_wb"),
        ("cle", "cleanumamba-tiny"),
    ],
)
def test_a_near_name_is_proposed(name, nearest):
    assert meant(name, KNOWN) == f" (did you mean '{nearest}'?)"
    assert str(unknown("thing", name, KNOWN)).startswith(f"no thing '{name}' (did you mean ")


@pytest.mark.parametrize("name", ["", "c", "pe", "zzzzzz", "\x00" * 10**6])
def test_no_name_is_proposed_where_none_is_near(name):
    assert meant(name, KNOWN) == meant(name, []) == ""
    assert len(str(unknown("thing", name, KNOWN))) <= 2000
