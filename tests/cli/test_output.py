"""What is printed: escapes for control characters and for what the terminal lacks."""

import argparse
import io
import logging
import os
import sys
import warnings

from speechlab.cli.output import escape_all, print_table, say, surroundings

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


def test_a_warning_of_the_package_is_a_message(capsys, monkeypatch):
    """With -q too; after the command the package's logger is as before."""
    logger = logging.getLogger("speechlab")
    monkeypatch.setattr(logger, "propagate", False)  # pytest-xdist cannot send the raw name
    before = logger.level, [*logger.handlers]
    for quiet in (False, True):
        with surroundings(argparse.Namespace(quiet=quiet, verbose=False, offline=False)):
            logging.getLogger("speechlab.data").warning("%s: changed", NAME)
            logging.getLogger("speechlab.data").info("not told")
        assert capsys.readouterr().err == "speechlab: a\\udcff\\x1b[2J\\r\\n²: changed\n"
    assert (logger.level, logger.handlers) == before
