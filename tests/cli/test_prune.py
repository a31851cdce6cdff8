"""The command `prune`: what it prints and writes, how it resumes, what it refuses."""

import json

import pytest
import torch

import speechlab
from speechlab.cli import main
from speechlab.cli.train import BY, SCHEDULES, UNREAD, number
from speechlab.errors import UserError
from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig
from speechlab.models.macs import n_params
from speechlab.pruning import plan
from speechlab.training.runs import Run
from tests.support.toy_corpus import SETTINGS, prepared

SMALL = {
    "ranking.share": 0.2,
    "ranking.n_least": 2,
    "ranking.multiples": {"d_inner": 4},
    "n_scored": 4,
    "n_trained": 4,
    "n_recover": 8,
}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """In a folder of its own, as a user types it; the target is missing."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    widths = dict.fromkeys(("down_channels", "skip_channels", "up_channels"), (8, 12))
    model = CleanUMamba(CleanUMambaConfig(**widths, d_model=8, layers=({"d_state": 4},)))
    speechlab.save("start.safetensors", model)
    settings = {k: v for k, v in SETTINGS.items() if not k.startswith("model.") and k not in UNREAD}
    settings |= {"corpora": [str(prepared(tmp_path / "corpus"))]}
    settings |= {f"pruning.{key}": value for key, value in SMALL.items()}
    words = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    return ["prune", "start.safetensors", "-n", "small", *words]


def test_from_a_checkpoint_to_a_smaller_one(command, capsys):
    command = [*command, "--to", "1.2k"]
    assert main.main(command) == 0
    printed = capsys.readouterr()
    first, second = printed.out.splitlines()
    run = Run.open("results/runs/small")
    model = speechlab.load(run.folder)
    assert n_params(model) <= 1200
    assert first == f"results/runs/small: reached the target at step {run.step}"
    assert second.startswith(f"{n_params(model):,} parameters, {model.macs(1) / 1e6:.4g} M MACs/s")
    assert second.endswith("on dev: results/runs/small/best.safetensors")
    told = printed.err.splitlines()
    assert told[0].startswith("small: step 0, ") and "parameters, removal 0" in told[0]
    content = {path: path.read_bytes() for path in run.folder.iterdir()}
    assert main.main(command) == 0 and capsys.readouterr().out == printed.out
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == content
    assert main.main(["runs"]) == 0
    assert "reached the target" in capsys.readouterr().out
    assert main.main(["resume", "results/runs/small"]) == 2
    assert "is a pruning; rerun the command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "many"], "--to takes a number such as 200k, 1.5M or 0.05, not 'many'"),
        (["--to", "9M"], "prune to less than that, not 9e+06"),
        (["--to", "1k", "--set=model.d_model=3"], "leave model.d_model out"),
        (["--to", "1k", "--set=start=x"], "prune takes the model from the checkpoint; leave start"),
        (
            ["--to", "1k", "--set=pruning.to=5"],
            "prune does not read pruning.to; leave it out: --to",
        ),
        (["--to", "1k", "--set=training.patience=1"], "does not read training.patience"),
        (["--to", "1k", "--set=pruning.mesure=1"], "no setting 'mesure' (did you mean 'measure'?)"),
        (["--to", "1k", "--set=pruning.measure=x"], "no measure 'x'; there are: weight, "),
        (["--to", "1k", "--experiment", "finetun"], "(did you mean 'finetune'?)"),
    ],
)
def test_bad_settings_are_one_line(command, capsys, words, message):
    assert main.main([*command, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_choices_are_those_of_the_plan():
    assert set(BY) == set(plan.SIZES) and set(SCHEDULES) == set(plan.SCHEDULES)


@pytest.mark.parametrize(
    ("text", "value"), [("200k", 2e5), ("1.5M", 1.5e6), ("0.05", 0.05), (".5", 0.5), ("2G", 2e9)]
)
def test_numbers_have_units(text, value):
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "k", "-5", "2m", "1e5x", "nan"])
def test_other_words_are_no_numbers(text):
    with pytest.raises(UserError, match="--to takes a number"):
        number(text)
