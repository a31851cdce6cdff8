"""`make paper` gives the committed tables, figures and README, byte for byte."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from speechlab.errors import UserError
from speechlab.report import paper
from speechlab.study import runner
from tests.support.warm import ROOT

TRAINED = ("corpus_", *(f"{name}-" for name in runner.TRAINED))  # notebooks 01 to 06 write these


def test_readme_block_is_replaced_and_the_rest_kept(tmp_path):
    readme = tmp_path / "README.md"
    begin, end = paper.README_MARKS
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for _ in range(2):
        paper.update_readme(readme, "new\n")
        assert readme.read_text() == f"before\n{begin}\nnew\n{end}\nafter\n"
    readme.write_text("no marks\n")
    with pytest.raises(UserError, match="lacks the lines"):
        paper.update_readme(readme, "new\n")


def generated(root: Path) -> dict[str, bytes]:
    """Contents of what `make paper` writes, by path."""
    paths = [p for name in ("tables", "figures") for p in (root / "results" / name).rglob("*")]
    paths = [p for p in (*paths, root / "README.md") if p.is_file()]
    paths = [p for p in paths if not p.name.startswith(TRAINED)]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_make_paper_gives_the_committed_bytes(tmp_path):
    """In a copy with rows per file but no table and no figure; no module of it imports torch."""
    shutil.copytree(ROOT / "speechlab", tmp_path / "speechlab")
    for name in ("metrics", "streamed", "published", "benchmarks"):
        shutil.copytree(ROOT / "results" / name, tmp_path / "results" / name)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    paper.update_readme(tmp_path / "README.md", "cleared\n")
    check = (
        "import importlib, pkgutil, runpy, sys, speechlab.report as report; "
        "runpy.run_module('speechlab.report.paper', run_name='__main__'); "
        "names = [module.name for module in pkgutil.iter_modules(report.__path__)]; "
        "[importlib.import_module(f'speechlab.report.{name}') for name in names]; "
        "sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", check]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=600)
    ours, committed = generated(tmp_path), generated(ROOT)
    assert ours.keys() == committed.keys(), "run `make paper`"
    differing = [path for path in ours if ours[path] != committed[path]]
    assert not differing, f"run `make paper`: {differing}"
