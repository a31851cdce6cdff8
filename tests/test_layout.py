"""The layout of the package: imports run one way, no circles, every module is listed."""

import ast
import os
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.warm import ROOT

PACKAGE = ROOT / "speechlab"
LEVELS = (  # from the ground: a package imports only packages of lower levels
    ("errors", "version", "progress"),
    ("config", "storage", "parallel"),
    ("audio",),
    ("layers",),
    ("models",),
    ("weights", "losses", "data"),
    ("inference",),
    ("evaluation",),
    ("training", "pruning", "report"),
    ("study",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
N_MODULES_MAX = 12  # in one package
ROOMS_MAX = {  # modules that a task opens first: packages entered from its own module
    "training.loop": 6,
    "inference.enhance": 4,
    "evaluation.evaluate": 3,
    "weights.checkpoints": 2,
}


@cache
def modules() -> dict[str, Path]:
    """Dotted name without "speechlab." -> file."""
    paths = PACKAGE.rglob("*.py")
    names = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in paths}
    return {
        ".".join(part for part in parts if part != "__init__"): path
        for path, parts in names.items()
    }


def packages() -> list[str]:
    return sorted(name for name, path in modules().items() if path.name == "__init__.py")


@cache
def imports(name: str) -> frozenset[str]:
    """Modules of the package that a module imports anywhere, those of the public face aside."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())) if name else ():
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in inner if name.removeprefix("speechlab.") in modules()}
            found |= known or {node.module}
    ours = (name for name in found if name.partition(".")[0] == "speechlab")
    return frozenset(name.partition(".")[2] for name in ours)


def inner_modules() -> list[str]:
    return sorted(name for name in modules() if name not in ("", "__main__"))


@pytest.mark.parametrize("name", inner_modules())
def test_imports_run_one_way(name):
    """Down the levels or within the package; nobody imports the public face."""
    own = name.partition(".")[0]
    for imported in imports(name):
        other = imported.partition(".")[0]
        assert other, f"{name} imports speechlab itself: import the module that has it"
        assert other == own or LEVEL[other] < LEVEL[own], f"{name} imports {imported}"


def test_no_circles():
    try:
        list(TopologicalSorter({name: imports(name) for name in modules()}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_package_has_a_level():
    top = {name.partition(".")[0] for name in inner_modules()}
    assert top <= LEVEL.keys()


@pytest.mark.parametrize("package", packages())
def test_package_lists_its_modules(package):
    """Its docstring has a line for each, `name   what it holds`, and no other line like it."""
    below = defaultdict(list)
    for name in inner_modules():
        below[name.rpartition(".")[0]].append(name.rpartition(".")[2])
    text = ast.get_docstring(ast.parse(modules()[package].read_text()))
    listed = re.findall(r"^(\w+) {2,}\S", text, re.M)
    assert sorted(listed) == sorted(below[package])
    n_modules = sum(f"{package}.{name}" not in packages() for name in below[package])
    assert package == "" or n_modules <= N_MODULES_MAX


def test_training_does_not_reach_the_test_sets():
    """They are for final numbers only."""
    reached, waiting = set(), {"study.launch"}
    while waiting:
        reached |= waiting
        waiting = {other for name in waiting for other in imports(name)} - reached
    assert "training.loop" in reached
    assert not reached & {"evaluation.evaluate", "data.test_sets"}


@pytest.mark.parametrize(("name", "most"), ROOMS_MAX.items())
def test_a_task_enters_few_packages(name, most):
    """Packages that the module of a task imports from, its own included, the ground not."""
    ground = {name for level in LEVELS[:2] for name in level}
    rooms = {imported.partition(".")[0] for imported in imports(name)} | {name.partition(".")[0]}
    assert len(rooms - ground) <= most, sorted(rooms - ground)


def test_face_is_light_and_complete():
    """`import speechlab` alone needs no heavy package; every public name is there."""
    code = (
        "import sys, speechlab; heavy = {'torch', 'numpy', 'pandas', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy; [getattr(speechlab, name) for name in speechlab.__all__]"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
