"""A second run knows what the first one left behind."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from speechlab.audio import files
from speechlab.errors import UserError
from speechlab.inference import batch
from speechlab.inference.enhance import enhance_all
from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig
from speechlab.weights.checkpoints import save


@pytest.fixture
def models():
    """Two networks of one shape with other weights."""
    sizes = {"down_channels": (4,), "skip_channels": (4,), "up_channels": (4,), "d_model": 8}
    config = CleanUMambaConfig(**sizes, layers=({"d_state": 4},))
    torch.manual_seed(0)
    return [CleanUMamba(config).eval() for _ in range(2)]


def write_noise(path, seed=0):
    noise = 0.1 * np.random.default_rng(seed).standard_normal((1, 4000)).astype(np.float32)
    files.save(path, torch.from_numpy(noise), 16000)
    return path


def rows(folder):
    with (folder / "enhance.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


DIES = """
import os, sys
from pathlib import Path
from speechlab.inference import batch, enhance
from speechlab.weights.checkpoints import load

def add(log, result, write=batch.Log.add):
    if result.status == "ok":
        os._exit(9)
    return write(log, result)

batch.Log.add = add
checkpoint, source, output = sys.argv[1:]
enhance.enhance_all(load(checkpoint), [source], output, overwrite=True, progress=False)
"""


def test_killed_between_an_output_and_its_row(models, tmp_path):
    """The output has its name; whoever goes on knows with what it was made, and trusts no more."""
    first, second = models
    source, output = write_noise(tmp_path / "in/a.wav").parent, tmp_path / "out"
    words = save(tmp_path / "first.safetensors", first), source, output
    killed = subprocess.run(
        [sys.executable, "-c", DIES, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(Path(batch.__file__).parents[1])},
    )
    assert killed.returncode == 9
    whole = (output / "a.wav").read_bytes()
    [row] = rows(output)
    assert (row["status"], len(row["made_with"])) == ("started", 12)
    assert list(pd.read_csv(output / "enhance.csv")["made_with"]) == [row["made_with"]]
    with pytest.raises(UserError, match="was made with another model"):
        enhance_all(second, [source], output, progress=False)
    assert (output / "a.wav").read_bytes() == whole
    [again] = enhance_all(first, [source], output, progress=False)
    assert (again.status, again.made_with) == ("ok", row["made_with"])
    assert (output / "a.wav").read_bytes() == whole
    assert [row["status"] for row in rows(output)] == ["ok"]


def test_killed_before_an_output_was_replaced(models, tmp_path, monkeypatch):
    """What lies there is the first model's, though the second's row was begun: made again."""
    first, second = models
    source, output = write_noise(tmp_path / "a.wav"), tmp_path / "out"
    enhance_all(first, [source], output, progress=False)
    firsts = (output / "a.wav").read_bytes()

    class Killed(BaseException):
        pass

    def start(log, job, made_with, write=batch.Log.start):
        write(log, job, made_with)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(batch.Log, "start", start)
        with pytest.raises(Killed):
            enhance_all(second, [source], output, overwrite=True, progress=False)
    assert (output / "a.wav").read_bytes() == firsts
    [again] = enhance_all(second, [source], output, progress=False)
    assert again.status == "ok"
    assert (output / "a.wav").read_bytes() != firsts


def test_a_shut_subfolder_has_its_line_and_the_rest_go_on(models, tmp_path, monkeypatch):
    """Once it is open again, its files are made and its line is gone."""
    for name in ("a.wav", "sub/b.wav", "sub/c.wav"):
        write_noise(tmp_path / "in" / name)
    scandir = os.scandir

    def refusing(path="."):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    told = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refusing)
        results = enhance_all(
            models[0], [tmp_path / "in"], tmp_path / "out", progress=False, tell=told.append
        )
    assert sorted(result.status for result in results) == ["failed", "ok"]
    [line] = told
    assert line.startswith(f"{tmp_path / 'in/sub'}: cannot be read (Permission denied); ")
    assert {row["output"]: row["reason"] for row in rows(tmp_path / "out")} == {
        "sub": line,
        "a.wav": "",
    }
    results = enhance_all(models[0], [tmp_path / "in"], tmp_path / "out", progress=False)
    assert sorted(result.status for result in results) == ["ok", "ok", "skipped"]
    left = sorted(row["output"] for row in rows(tmp_path / "out"))
    assert left == ["a.wav", "sub/b.wav", "sub/c.wav"]


def test_an_output_that_failed_to_be_replaced_is_made_again(models, tmp_path):
    """It is the first model's; the second must not take it for its own."""
    source, output = write_noise(tmp_path / "a.wav"), tmp_path / "out"
    whole = source.read_bytes()
    first, second = models
    enhance_all(first, [source], output, progress=False)
    firsts = (output / "a.wav").read_bytes()

    source.write_bytes(whole[:2000])
    [failed] = enhance_all(second, [source], output, overwrite=True, progress=False)
    assert failed.status == "failed"
    source.write_bytes(whole)
    [again] = enhance_all(second, [source], output, progress=False)
    assert again.status == "ok"
    assert (output / "a.wav").read_bytes() != firsts
    [skipped] = enhance_all(second, [source], output, progress=False)
    assert skipped.status == "skipped"
