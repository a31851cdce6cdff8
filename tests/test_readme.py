"""What README says is so: its commands exist, its map is the tree, its paths can be opened."""

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from speechlab.cli.main import main
from speechlab.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = ["help", "env", "study", "test", "lint", "demo", "lab", "paper"]
# left by tools, or of no interest to a reader of the map
UNMAPPED = {"README.md", ".gitignore", ".pre-commit-config.yaml", "__init__.py", "__main__.py"}


def block_after(heading: str) -> str:
    return re.search(rf"^## {heading}$.*?^```\n(.*?)^```", README, re.M | re.S)[1]


def tree() -> list[str]:
    """The paths of the map; an indented line lies in the folder above it."""
    paths, folder = [], ""
    for line in block_after("The tree").splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        paths.append(f"{folder}{name}" if line.startswith(" ") else name)
    return paths


def visible(folder: Path) -> set[str]:
    """What git holds, or is about to, directly in a folder; folders end in a slash."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout: there is no list of what belongs to the tree")
    paths = [
        line.partition("/") for line in listing.stdout.splitlines() if (folder / line).exists()
    ]
    return {first + slash for first, slash, _ in paths}


@pytest.mark.parametrize("path", tree())
def test_map_shows_what_is_there(path):
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


def test_map_shows_all_that_is_there():
    assert visible(ROOT) - UNMAPPED <= set(tree())
    package = {f"speechlab/{name}" for name in visible(ROOT / "speechlab") - UNMAPPED}
    assert {p for p in package if p.endswith((".py", "/"))} <= set(tree())


@pytest.mark.parametrize(
    "line", re.findall(r"^\| .+ \| (`.+) \|$", README.partition("| I want to")[2], re.M)
)
def test_what_to_open_exists(line):
    for path in re.findall(r"`([^`]+)`", line):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(target):
    assert target.startswith("https://") or (ROOT / target).exists()


def test_two_commands():
    """Both exist, and the check of a fresh copy takes them from here."""
    marked = re.search(r"<!-- commands:begin -->(.*)<!-- commands:end -->", README, re.S)[1]
    assert re.findall(r"^make \w+", marked, re.M) == ["make study", "make test"]
    script = (ROOT / ".ci" / "run").read_text()
    assert "commands:begin" in script and "make study" not in script and "make test" not in script
    assert "git status --porcelain" in script  # neither changes what git holds


def test_make_targets():
    """One line of recipe and one line of help each; `make help` prints them all."""
    rules = re.findall(r"^(\w+):.* ## (\S.+)\n((?:\t.+\n)*)", MAKEFILE, re.M)
    assert [name for name, _, _ in rules] == TARGETS
    assert all(recipe.count("\n") <= 1 for _, _, recipe in rules)
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert all(re.search(rf"^{name}\s+\S", printed, re.M) for name in TARGETS)
    assert set(re.findall(r"`?make ([a-z]+)\b`", README)) <= set(TARGETS)


def test_results_block_is_marked():
    assert README.count("<!-- results:begin -->") == README.count("<!-- results:end -->") == 1
    assert README.index("<!-- results:begin -->") < README.index("<!-- results:end -->")


@pytest.mark.parametrize("line", block_after("The command line").splitlines())
def test_commands_are_understood(line, monkeypatch):
    """Every example is one that the parser takes; nothing is run."""
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
