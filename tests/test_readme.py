"""The documents are true: their commands parse, README's tree is the tree, their paths exist."""

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from speechlab.cli.main import main
from speechlab.errors import UserError
from tests.support.warm import ROOT

README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
TEXTS = README + CONTRIBUTING + (ROOT / "data" / "README.md").read_text()
LINES_MAX = 200
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = ["help", "env", "study", "test", "fuzz", "lint", "demo", "lab", "paper"]
# made by tools, or of no interest to a reader of the tree
UNMAPPED = {"README.md", ".gitignore", ".pre-commit-config.yaml", "__init__.py", "__main__.py"}


def block_after(heading: str) -> str:
    return re.search(rf"^## {heading}$.*?^```\n(.*?)^```", README, re.M | re.S)[1]


def commands() -> list[str]:
    """Every `speechlab …` of the documents: lines of code blocks, and within sentences."""
    lines = re.findall(r"^speechlab .*$", TEXTS, re.M)
    lines += re.findall(r"`(speechlab \S+ [^`\n]+)`", TEXTS)
    return sorted({line.partition("  #")[0].rstrip("… ") for line in lines})


def tree() -> list[str]:
    """The paths of the tree; an indented line is in the folder above it."""
    paths, folder = [], ""
    for line in block_after("The tree").splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        paths.append(f"{folder}{name}" if line.startswith(" ") else name)
    return paths


def visible(folder: Path) -> set[str]:
    """Tracked and new entries directly in a folder; folders end in a slash."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout, so there is no list of its files")
    lines = [line for line in listing.stdout.splitlines() if (folder / line).exists()]
    return {first + slash for first, slash, _ in (line.partition("/") for line in lines)}


@pytest.mark.parametrize("path", tree())
def test_tree_shows_what_exists(path):
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


def test_tree_shows_all_that_exists():
    assert visible(ROOT) - UNMAPPED <= set(tree())
    package = {f"speechlab/{name}" for name in visible(ROOT / "speechlab") - UNMAPPED}
    assert {p for p in package if p.endswith((".py", "/"))} <= set(tree())


def paths() -> list[str]:
    """What the documents name in backticks, with a slash and no placeholder."""
    found = re.findall(r"`([\w.-]+/[\w./-]*)`", README + CONTRIBUTING)
    written = ("results/local", "results/runs", "results/notebooks", "data/two", "notebooks/copies")
    return sorted({path for path in found if not path.startswith(written)})


@pytest.mark.parametrize("path", paths())
def test_what_to_open_exists(path):
    assert (ROOT / path).exists()


def test_readme_is_short():
    assert len(README.splitlines()) <= LINES_MAX


def test_a_newcomer_opens_at_most_two_files():
    """Every question of CONTRIBUTING is answered by one or two paths that exist."""
    answers = re.findall(r"^\| (.+\?) \| (.+) \|$", CONTRIBUTING, re.M)
    assert len(answers) >= 10
    for question, answer in answers:
        named = re.findall(r"`(\w+/[\w./]+)`", answer)
        assert 1 <= len(named) <= 2, question
        assert all((ROOT / path).is_file() for path in named), question


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_exist(target):
    assert target.startswith("https://") or (ROOT / target).exists()


def test_two_commands():
    """Both exist, and the check of a fresh copy reads them from here."""
    marked = re.search(r"<!-- commands:begin -->(.*)<!-- commands:end -->", README, re.S)[1]
    assert re.findall(r"^make \w+", marked, re.M) == ["make study", "make test"]
    script = (ROOT / ".ci" / "run").read_text()
    assert "commands:begin" in script and "make study" not in script and "make test" not in script
    assert 'PROFILE=smoke "NOTEBOOKS=01 02"' in script
    assert "git status --porcelain" in script  # neither changes a tracked file


def test_make_targets():
    """Each has one line of recipe and one line of help; `make help` prints them all."""
    rules = re.findall(r"^(\w+):.* ## (\S.+)\n((?:\t.+\n)*)", MAKEFILE, re.M)
    assert [name for name, _, _ in rules] == TARGETS
    assert all(recipe.count("\n") <= 1 for _, _, recipe in rules)
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert all(re.search(rf"^{name}\s+\S", printed, re.M) for name in TARGETS)
    assert set(re.findall(r"`?make ([a-z]+)\b`", TEXTS)) <= set(TARGETS)


def test_results_block_is_marked():
    assert README.count("<!-- results:begin -->") == README.count("<!-- results:end -->") == 1
    assert README.index("<!-- results:begin -->") < README.index("<!-- results:end -->")


@pytest.mark.parametrize("line", commands())
def test_commands_are_understood(line, monkeypatch):
    """The parser accepts every example; nothing is run."""
    arguments = shlex.split(line, comments=True)
    assert arguments.pop(0) == "speechlab"
    understood = []

    def parse_and_stop(parser, arguments):
        understood.append(parse_args(parser, arguments))
        raise UserError("understood")

    parse_args = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(UserError, match="understood"):
        main(arguments)
    assert understood
