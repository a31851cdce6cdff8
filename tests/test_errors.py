"""Messages: one line of bounded length, whatever a name holds."""

import pytest

from speechlab.errors import UserError, shown


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
