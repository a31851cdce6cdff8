"""The house keeps its rules: names and versions agree; nothing is undeclared, unused or large."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import speechlab
from tests.support.warm import ROOT

BYTES_MAX = 3_000_000
OURS = {"speechlab", "gradio_app", "benchmarks", "examples", "tests", "conftest"}
IMPORTED_AS = {"websocket-client": "websocket", "pyyaml": "yaml", "ipython": "IPython"}
CONDA_NAMES = {"pytorch-cpu": "torch", "pytorch-gpu": "torch", "pysoundfile": "soundfile"}
CONDA_NAMES |= {"soxr-python": "soxr", "matplotlib-base": "matplotlib"}
CONDA_ONLY = {"python", "pip", "make", "c-compiler", "cuda-version"}
PIP_ONLY = {"pesq", "espeakng-loader", "pyroomacoustics"}  # pip brings them to conda's, too
INSTALLED = ("dev", "synth", "loggers")  # extras that `make env` brings
EXTRAS_OF = {"environment.yml": (), "environment-cuda.yml": ("cuda",)}

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def tracked() -> list[Path]:
    """Files that are, or are about to be, in git; outside a checkout, all but what tools leave."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode == 0:
        paths = [ROOT / line for line in listing.stdout.splitlines()]
    else:
        paths = [p for p in ROOT.rglob("*") if not {".venv", "__pycache__"} & set(p.parts)]
    return sorted(path for path in paths if path.is_file())


def text_files() -> list[Path]:
    binary = {".safetensors", ".png", ".pdf", ".wav"}
    return [path for path in tracked() if path.suffix not in binary]


def python_files() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def notebooks() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".ipynb"]


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def parsed(cell: nbformat.NotebookNode) -> ast.Module:
    """The Python of a cell, without the magics of the notebook (%matplotlib inline)."""
    return ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.M))


def requirements(*extras: str) -> dict[str, SpecifierSet]:
    lines = PROJECT["dependencies"] + [line for extra in extras for line in EXTRAS[extra]]
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pinned}


def reasons() -> dict[str, str]:
    """Dependency -> the comment behind it in pyproject.toml."""
    lines = re.findall(r'^ +"([^"]+)", +# (.+)$', (ROOT / "pyproject.toml").read_text(), re.M)
    known = requirements(*EXTRAS)
    named = {canonicalize_name(re.split(r"[<>=~!\[ ]", line)[0]): why for line, why in lines}
    return {name: why for name, why in named.items() if name in known}


@cache
def imported() -> set[str]:
    """Top-level modules imported anywhere in the tree, notebooks included."""
    trees = [ast.parse(path.read_text()) for path in python_files()]
    trees += [parsed(cell) for path in notebooks() for cell in code_cells(path)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level}
    return {name.partition(".")[0] for name in names}


def module_of(name: str) -> str:
    return IMPORTED_AS.get(name, name.replace("-", "_"))


@pytest.mark.parametrize("name", requirements(*EXTRAS))
def test_every_dependency_gives_a_reason(name):
    assert reasons().get(name), f"pyproject.toml: say behind {name} why it is needed"


@pytest.mark.parametrize("name", requirements("dev"))
def test_every_dependency_is_used(name):
    """Imported somewhere, or a tool that the file named in its reason calls."""
    tool = re.match(r"tool (\S+) \((\S+)\)", reasons()[name])
    if tool:
        assert tool[1] in (ROOT / tool[2]).read_text(), f"{tool[2]} does not call {tool[1]}"
    else:
        assert module_of(name) in imported(), f"nothing imports {name}: remove it"


def test_every_import_is_declared():
    declared = {module_of(name) for name in requirements(*EXTRAS)}
    undeclared = imported() - declared - OURS - set(sys.stdlib_module_names)
    assert not undeclared, f"add to pyproject.toml, or do without: {sorted(undeclared)}"


@pytest.mark.parametrize(("name", "bound"), requirements(*INSTALLED).items())
def test_constraints_satisfy_the_bounds(name, bound):
    assert constraints()[name] in bound


def test_constraints_hold_the_whole_closure():
    """What the dependencies need here, and what that needs, is pinned, and to no local version."""
    pinned, seen = constraints(), set()
    exact = all(metadata.version(n) == pinned[n] for n in requirements("dev") if n != "torch")
    if sys.platform != "linux" or sys.version_info[:2] != (3, 11) or not exact:
        pytest.skip("constraints.txt is for CPython 3.11 on Linux, and this is not made from it")
    waiting = [(name, "") for name in requirements(*INSTALLED)]
    while waiting:
        name, extra = waiting.pop()
        ours = re.match(r"nvidia-|cuda-|triton", name) is None  # those PyTorch's CUDA build names
        if (name, extra) in seen or not ours:
            continue
        seen.add((name, extra))
        for need in map(Requirement, metadata.requires(name) or []):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                found = canonicalize_name(need.name)
                waiting += [(found, more) for more in ("", *need.extras)]
    missing = {name for name, _ in seen} - pinned.keys()
    assert not missing, f"not in constraints.txt: {sorted(missing)}"
    assert all(re.fullmatch(r"[\w.]+", version) for version in pinned.values())


@pytest.mark.parametrize("file", EXTRAS_OF)
def test_conda_environments_agree(file):
    """The same packages with the same lower bounds, under conda's names; pip brings the rest."""
    environment = yaml.safe_load((ROOT / file).read_text())
    lines = [line for line in environment["dependencies"] if isinstance(line, str)]
    named = {name: bound for name, _, bound in (line.partition(" ") for line in lines)}
    found = {
        canonicalize_name(CONDA_NAMES.get(name, name)): SpecifierSet(bound)
        for name, bound in named.items()
        if name not in CONDA_ONLY
    }
    wanted = requirements(*INSTALLED, *EXTRAS_OF[file])
    assert found.keys() == wanted.keys() - PIP_ONLY
    for name, bound in found.items():
        assert set(wanted[name]) <= set(bound), f"{file}: {name} {bound}, pyproject {wanted[name]}"
        assert constraints().get(name) is None or constraints()[name] in bound
    assert set(SpecifierSet(PROJECT["requires-python"])) <= set(SpecifierSet(named["python"]))
    assert environment["channels"][0] == "conda-forge"
    assert environment["dependencies"][-1] == {"pip": ["--editable .[dev,synth,loggers]"]}


def test_one_version_and_one_licence():
    assert PROJECT["version"] == speechlab.__version__
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()
    assert PROJECT["license"] == "MIT"
    licence = (ROOT / "LICENSE").read_text()
    assert licence.startswith("MIT License\n\nCopyright (c) 2026 speechlab authors")


def test_nothing_is_large_or_tied_to_one_machine():
    large = [path for path in tracked() if path.stat().st_size > BYTES_MAX]
    assert not large, f"over 3 MB: {large}"
    path_of_one_machine = re.compile(r"(?<![\w.~-])/((work|root|farm)/\w|(home|Users)/(?!someone))")
    for path in text_files():
        assert not path_of_one_machine.search(path.read_text()), f"{path}: a path of one machine"


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    """A longer one is the symptom of a missing idea."""
    source = path.read_text()
    assert len(source.splitlines()) < 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_notebooks_are_thin(path):
    """Prose and calls; a function or a class belongs in the package."""
    code = code_cells(path)
    nodes = [node for cell in code for node in ast.walk(parsed(cell))]
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in nodes)
    assert sum(len(cell.source.splitlines()) for cell in code) <= 120


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_style(command):
    """The two commands of `make lint`."""
    run = [sys.executable, "-m", "ruff", *command, "--quiet", "."]
    result = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
