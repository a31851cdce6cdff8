"""What is printed: escapes for control characters and for what the terminal lacks."""

import io
import os
import sys
import warnings

from speechlab.cli.output import escape_all, print_table, say

NAME = os.fsdecode(b"a\xff") + "\x1b[2J\r\n²"


def test_no_character_reaches_the_terminal_or_stops_a_command(monkeypatch):
    page = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", page)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    escape_all()
    say(NAME)
    print_table([{"name": NAME}])
    lines = page.buffer.getvalue().split(b"\n")
    assert lines == [rb"a\udcff\x1b[2J\r\n\xb2", b"name", rb"a\udcff\x1b[2J\r\n\xb2", b""]
    said = warnings.formatwarning(UserWarning(NAME), UserWarning, NAME, 1)
    assert said.endswith("²\n") and said[:-1].isprintable()
