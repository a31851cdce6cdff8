"""What is written for a cluster asks for what the command line has."""

import json
import os
import re
import shlex
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from speechlab.cli import main
from tests.support.warm import ROOT

SBATCH = ROOT / "cluster" / "study.sbatch"
SNAKEFILE = ROOT / "Snakefile"
SETTINGS = {"notebooks": "10", "set": "seconds=2", "each": "weights_folder=a,b", "profile": "smoke"}


def test_a_task_of_an_array_runs_its_own_set(tmp_path):
    """With a recorder in the place of the command."""
    recorder = tmp_path / ".venv" / "bin" / "speechlab"
    recorder.parent.mkdir(parents=True)
    recorder.write_text('#!/bin/sh\nprintf "%s\\n" "$OMP_NUM_THREADS" "$@" > asked\n')
    recorder.chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_ARRAY_TASK_ID": "2"}
    environment = os.environ | slurm | {"SLURM_CPUS_PER_TASK": "3"}
    command = ["bash", str(SBATCH), "10", "--each", "weights_folder=a b,c"]
    subprocess.run(command, env=environment, check=True)
    threads, *words = (tmp_path / "asked").read_text().splitlines()
    assert threads == "3"
    options = main._parser().parse_args(words)
    assert (options.names, options.each, options.only) == (["10"], ["weights_folder=a b,c"], 2)


def test_a_task_without_a_number_runs_nothing(tmp_path):
    environment = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(["bash", str(SBATCH)], env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "SLURM_ARRAY_TASK_ID" in done.stderr


def test_what_slurm_reads_comes_before_the_first_command():
    lines = SBATCH.read_text().splitlines()
    asked = [n for n, line in enumerate(lines) if re.match(r"#SBATCH --[a-z-]+=\S+$", line)]
    assert len(asked) == 6 and lines[0] == "#!/bin/bash"
    assert all(line.startswith("#") for line in lines[: max(asked)])


def test_the_graph_asks_for_every_set_once(monkeypatch):
    """The Python part of the Snakefile, without Snakemake."""
    monkeypatch.chdir(ROOT)
    head = SNAKEFILE.read_text().partition("\nrule all:")[0]
    known = {"config": SETTINGS, "workflow": SimpleNamespace(basedir=str(ROOT))}
    exec(compile(head, "Snakefile", "exec"), known)
    assert len(known["SETS"]) == len(set(known["MARKS"].values())) == 2
    for number, one in enumerate(known["SETS"]):
        wildcards = SimpleNamespace(name=one.name)
        program, *words = shlex.split(known["command"](wildcards))
        options = main._parser().parse_args(words)
        assert program == "speechlab" and options.only == number
        assert (options.names, options.profile) == (["10"], "smoke")
        assert (options.set, options.each) == (["seconds=2"], ["weights_folder=a,b"])
        assert known["before"](wildcards) == ["notebooks/10_streaming_and_cost.ipynb"]


@pytest.mark.skipif(not shutil.which("snakemake"), reason="Snakemake is not installed")
def test_snakemake_reads_the_graph(tmp_path):
    for name in ("Snakefile", "speechlab", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    settings = [f"{key}={text}" for key, text in SETTINGS.items()]
    command = ["snakemake", "--dry-run", "--cores", "1", "--config", *settings]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, json.dumps(done.stderr)
    jobs = re.findall(r"output: results/notebooks/marks/(\S+)", done.stdout + done.stderr)
    assert len(jobs) == 2
