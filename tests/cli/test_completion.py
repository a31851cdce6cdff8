"""A shell completes commands, options and names; without shtab one line says what to do."""

import contextlib
import io
import shutil
import subprocess
import sys

import pytest

from speechlab.cli import main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    pytest.importorskip("shtab", reason="completion needs shtab")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main.main(["completion", "bash"]) == 0
    path = tmp_path_factory.mktemp("bash") / "script"
    path.write_text(printed.getvalue())
    return path


ASK = """
source "$0"
COMP_WORDS=(speechlab "$@"); COMP_CWORD=$#
_shtab_speechlab
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("enh", "enhance"),
        ("enhance --over", "--overwrite"),
        ("train cleanumamba-ti", "cleanumamba-tiny"),
        ("data prepare syn", "synthetic"),
        ("weights download Experiment_CleanU_LS", "Experiment_CleanU_LSTM"),
        ("enhance -c Experiment_CleanU_LS", "Experiment_CleanU_LSTM"),
        ("evaluate set --metrics pesq_w", "pesq_wb"),
        ("separate --level mi", "mixture"),
        ("resume pyproj", "pyproject.toml"),
    ],
)
def test_bash_completes(script, words, found):
    command = ["bash", "-c", ASK, str(script), *words.split()]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found in printed.stdout.split()


def test_without_shtab_a_line_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main.main(["completion", "zsh"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "speechlab: completion needs shtab; run `pip install shtab`\n"
