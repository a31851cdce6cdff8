"""The weights that come with the package: found by name, small, with a card that is true."""

import json
import re

import pandas as pd
import pytest
import torch

import speechlab
from speechlab.cli import main
from speechlab.inference.stream import Stream
from speechlab.models.macs import n_params
from speechlab.weights import hub, own
from tests.support.warm import ROOT

FOLDER = ROOT / "checkpoints"
MOST_BYTES = 3e6


def test_a_name_is_found_in_any_case():
    for spelling in (own.RECOMMENDED, own.RECOMMENDED.upper(), f"{own.RECOMMENDED}.safetensors"):
        assert hub.locate(spelling) == FOLDER / f"{own.RECOMMENDED}.safetensors"
    assert own.find("nothing") is None
    assert [row["name"] for row in hub.table()][: len(own.files())] == [f.name for f in own.files()]


def test_commands_use_the_recommended_one_where_none_is_named():
    parser = main._parser()
    for words in ("enhance x.wav -o y.wav", "stream --input x.wav -o y.wav"):
        assert parser.parse_args(words.split()).checkpoint == own.RECOMMENDED
    assert own.find(own.RECOMMENDED)


def test_a_package_without_the_folder_has_none(monkeypatch, tmp_path):
    monkeypatch.setattr(own, "FOLDERS", (tmp_path,))
    assert own.files.__wrapped__() == ()


@pytest.mark.parametrize("file", own.files(), ids=lambda file: file.name)
def test_a_file_is_what_its_row_and_card_say(file):
    """It streams for hours: a causal level, and a state that fades."""
    model = speechlab.load(file.path)
    assert n_params(model) == file.n_params and file.path.stat().st_size < MOST_BYTES
    assert model.config.normalize == "running" and model.config.state_leak_s
    assert Stream(model).feed(torch.zeros(1, 1, 4000)).isfinite().all()
    readable = json.loads(file.path.with_suffix(".json").read_text())
    assert readable["config"]["state_leak_s"] == model.config.state_leak_s
    card = file.path.with_suffix(".md").read_text()
    for word in ("MIT", "Groot", "Licence", "Data", "Steps", "Machine", "Scores", "Weaknesses"):
        assert word in card, word
    assert f"{file.n_params:,} parameters" in card and f"{file.pesq_wb:.3f}" in card


@pytest.mark.parametrize("file", own.files(), ids=lambda file: file.name)
def test_the_score_is_that_of_the_committed_rows(file):
    rows = pd.read_csv(ROOT / f"results/metrics/dns2020_no_reverb/{file.name}.csv")
    assert len(rows) == 150 and rows["pesq_wb"].mean() == pytest.approx(file.pesq_wb, abs=5e-4)
    assert re.search(
        rf"{file.pesq_wb:.3f} \[\d\.\d+, \d\.\d+\]", file.path.with_suffix(".md").read_text()
    )
