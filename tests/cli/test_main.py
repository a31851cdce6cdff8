"""The command line: what it prints, its exit codes, one line for what is wrong."""

import argparse
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile

import speechlab
from speechlab.cli import main, process
from speechlab.cli.parser import PUBLISHED
from speechlab.inference import separate
from speechlab.models import SYSTEMS
from speechlab.models.cleanumamba import CONFIGS, CleanUMamba
from speechlab.study import runner
from speechlab.weights import hub
from speechlab.weights.checkpoints import save
from tests.support.small_models import SMALL
from tests.support.warm import ROOT


@pytest.fixture
def test_set(tmp_path):
    """Two pairs of half-second files that a metric without speech can score."""
    generator = np.random.default_rng(0)
    for side, gain in (("clean", 0.0), ("noisy", 0.1)):
        (tmp_path / "set" / side).mkdir(parents=True)
        for i in range(2):
            tone = 0.3 * np.sin(np.arange(8000) * 0.05 * (i + 1))
            signal = tone + gain * generator.standard_normal(8000)
            soundfile.write(tmp_path / "set" / side / f"p{i}.wav", signal, 16000)
    return tmp_path / "set"


def test_doctor_names_kernels_and_reasons(capsys):
    assert main.main(["doctor"]) == 0
    page = capsys.readouterr().out
    assert f"speechlab {speechlab.__version__}" in page
    assert "in use on cpu" in page
    for name in ("reference", "parallel", "numba", "cuda", "mamba-ssm", "torch"):
        assert name in page


def test_weights_list(capsys):
    assert main.main(["weights", "list"]) == 0
    assert "CleanUMamba-3N-E8_pruned-500K" in capsys.readouterr().out


def test_import_then_load(shared, tmp_path, capsys):
    source = shared / "upstream_checkpoints/cleanumamba/Experiment_CleanU_LSTM.pkl"
    target = tmp_path / "lstm.safetensors"
    assert main.main(["import", str(source), str(target)]) == 0
    assert "443,009 parameters" in capsys.readouterr().out
    assert speechlab.load(target).config.mixer == "lstm"
    running = tmp_path / "running.safetensors"
    assert main.main(["import", str(source), str(running), "--normalize", "running"]) == 0
    assert speechlab.load(running).look_ahead == 765


def test_a_leak_is_given_to_the_model(shared, test_set, tmp_path, capsys):
    """Files of another leak are not those of the model as published."""
    source = str(shared / "upstream_checkpoints/cleanumamba/Experiment_CleanU_Mamba.pkl")
    target = tmp_path / "leaky.safetensors"
    assert main.main(["import", source, str(target), "--state-leak", "20"]) == 0
    assert speechlab.load(target).config.state_leak_s == 20
    words = ["enhance", str(test_set / "noisy"), "-c", source, "-o", str(tmp_path / "out")]
    for leak, code in (("20", 0), ("20", 0), ("10", 2)):
        assert main.main([*words, "--state-leak", leak]) == code
    assert "made with another model or other settings" in capsys.readouterr().err
    source = source.replace("Mamba.pkl", "LSTM.pkl")
    assert main.main(["stream", "-c", source, "--state-leak", "20", "-o", "x.wav"]) == 2
    assert "mamba_s4, not for lstm; leave it out" in capsys.readouterr().err


@pytest.fixture
def checkpoint(tmp_path):
    return str(save(tmp_path / "model.safetensors", CleanUMamba(CONFIGS["ablation"])))


def test_evaluate_a_checkpoint(test_set, checkpoint, tmp_path):
    words = ["evaluate", str(test_set), "--output", str(tmp_path / "rows.csv"), "--jobs", "1"]
    assert main.main([*words, "--checkpoint", checkpoint, "--metrics", "si_sdr", "ssnr"]) == 0
    assert pd.read_csv(tmp_path / "rows.csv")["si_sdr"].notna().sum() == 2


def test_enhance_a_folder_with_a_bad_file(test_set, checkpoint, tmp_path, capsys):
    """Exit code 1 and a line for the bad one; without it 0, and what is there is skipped."""
    (test_set / "noisy/bad.wav").write_bytes(b"")
    arguments = ["enhance", "--checkpoint", checkpoint, "--output", str(tmp_path / "out")]
    assert main.main([*arguments, str(test_set / "noisy")]) == 1
    printed = capsys.readouterr()
    assert printed.out == "2 ok, 0 skipped, 1 failed\n"
    [error, *report] = printed.err.splitlines()
    assert error.startswith(f"speechlab: {test_set / 'noisy/bad.wav'}: empty")
    assert len(report) == 3 and all(line.startswith("enhance: ") for line in report)
    assert soundfile.info(tmp_path / "out/p0.wav").frames == 8000
    assert main.main([*arguments, str(test_set / "noisy/p*.wav")]) == 0
    assert capsys.readouterr().out == "0 ok, 2 skipped, 0 failed\n"
    assert main.main([*arguments, str(test_set / "noisy"), "--mix", "2"]) == 2


def test_quiet_prints_errors_and_verbose_prints_decisions(test_set, checkpoint, tmp_path, capsys):
    words = ["enhance", str(test_set / "noisy"), "-c", checkpoint, "-o"]
    assert main.main([*words, str(tmp_path / "quiet"), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main.main([*words, str(tmp_path / "out"), "-v"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "2 ok, 0 skipped, 0 failed\n"
    model = "model: CleanUMamba, 441,601 parameters, 16000 Hz, from "
    for decided in (
        model,
        "device: cpu",
        "level: robust; of the model: utterance",
        "files: 2, into ",
    ):
        assert f"speechlab: {decided}" in printed.err
    (test_set / "noisy/bad.wav").write_bytes(b"")
    assert main.main([*words, str(tmp_path / "quiet"), "-q"]) == 1
    printed = capsys.readouterr()
    assert not printed.out and "bad.wav: empty" in printed.err
    file = ["enhance", str(test_set / "noisy/p0.wav"), "-c", checkpoint, "-o"]
    assert main.main([*file, str(tmp_path / "one.flac")]) == 0
    assert soundfile.info(tmp_path / "one.flac").frames == 8000
    assert main.main([*file, str(tmp_path / "x.wav"), "--device", "cuda:7"]) == 2
    assert "no device 'cuda:7'" in capsys.readouterr().err and not (tmp_path / "x.wav").exists()


def test_stream_is_enhance_with_stream(test_set, checkpoint, tmp_path, capsys):
    source, target = str(test_set / "noisy/p0.wav"), tmp_path / "live.wav"
    words = ["--checkpoint", checkpoint, "--output"]
    assert main.main(["stream", *words, str(target), "--input", source, "-v"]) == 0
    printed = capsys.readouterr()
    assert "latency 765 samples (47.8 ms)" in printed.out
    assert "speechlab: level: robust; of the model: running" in printed.err
    assert main.main(["enhance", *words, str(tmp_path / "out"), source, "--stream"]) == 0
    paths = target, tmp_path / "out/p0.wav"
    streamed, expected = (soundfile.read(path, dtype="int16")[0].astype(int) for path in paths)
    assert np.abs(streamed - expected).max() <= 1


def test_a_separation_says_what_is_decided(test_set, tmp_path, capsys):
    model = str(save(tmp_path / "two.safetensors", SYSTEMS["sepmamba"][1](SMALL["sepmamba"])))
    words = ["separate", str(test_set / "noisy"), "-c", model, "-o", str(tmp_path / "out"), "-v"]
    assert main.main(words) == 0
    printed = capsys.readouterr()
    assert "speechlab: model: SepMamba, " in printed.err and "2 ok" in printed.out
    assert "speechlab: level: mixture; of the model: none" in printed.err


def test_failures_of_a_study_are_repeated_on_stderr(monkeypatch, capsys):
    """With -q they are all that is printed."""
    line = "02_train: failed after 3 s in cell In [2]: KeyError: 'x'"
    outcomes = [runner.Outcome(None, "done", "01"), runner.Outcome(None, "failed", line)]
    monkeypatch.setattr(runner, "plan", lambda *_, **__: [])
    monkeypatch.setattr(runner, "run_study", lambda *_, **__: outcomes)
    assert main.main(["study", "-q"]) == 1
    assert capsys.readouterr() == ("", f"speechlab: {line}\n")


def test_check_metrics_tells_of_a_failed_file_of_any_set(test_set, capsys):
    (test_set / "noisy/p0.wav").write_bytes(b"")
    assert main.main(["check-metrics", str(test_set), "--jobs", "1", "--limit", "2"]) == 1
    printed = capsys.readouterr()
    assert "; 1 failed" in printed.out
    assert "speechlab: p0: all: noisy/p0.wav: empty, 0 bytes; " in printed.err


def test_check_metrics_keeps_its_rows(test_set, tmp_path, capsys):
    arguments = ["check-metrics", str(test_set), "--jobs", "1", "--output"]
    for limit in (1, 2):  # the second command resumes
        output = str(tmp_path / "rows.csv")
        assert main.main([*arguments, output, "--limit", str(limit)]) == 0
        assert "no set with a known row" in capsys.readouterr().out
        assert len(pd.read_csv(output)) == limit


REFUSED = [  # commands that import no torch and their errors
    ("evaluate no/such/set --output x.csv", "no/such/set"),
    ("import absent.pkl x.safetensors", "absent.pkl: no such checkpoint"),
    ("check-metrics no/such/set", "no/such/set"),
    ("weights download no_such_weights", "no_such_weights"),
    ("enhance --checkpoint absent.pkl --output out in", "absent.pkl"),
    ("train", "train needs an EXPERIMENT; `speechlab train --list` lists them"),
    ("train no", "no experiment 'no'; there are: cleanumamba-tiny, "),
    ("train cleanumamba-tiny", "not there yet; run `speechlab data prepare synthetic`"),
    ("train cleanumamba-tiny --set n_steps", "--set takes KEY=VALUE, not 'n_steps'"),
    ("train cleanumamba-tiny --name a/b", "name is 'a/b'"),
    ("resume results/runs/no", "results/runs/no: holds no run"),
    ("finetune no.safetensors --name x", "no.safetensors: no such checkpoint"),
    ("finetune x --name x --set model.d_model=8", "takes the model from the checkpoint"),
    ("finetune x --name x --experiment no", "no experiment 'no'"),
    ("data prepare no", "no corpus 'no'; there are: synthetic, "),
    ("data show no", "no corpus 'no'"),
    ("data prepare synthetic --folder /dev/null", "/dev/null: is a file; name a folder"),
]
REFUSED_LATE = [  # those that need a configuration or a table
    ("train cleanumamba-tiny --list --set n_steps=3", "'n_steps'; set training.n_steps"),
    ("train cleanumamba-tiny --list --set training.lr=fast", "TrainingConfig.lr must be float"),
    ("runs no", "results/runs/no: holds no run"),
    ("data prepare synthetic --set n_train=many", "SyntheticConfig.n_train must be int"),
    ("data prepare synthetic --set n=1", "SyntheticConfig has no setting 'n'; it has: n_train"),
]


@pytest.mark.parametrize(("command", "said"), REFUSED + REFUSED_LATE)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, command, said):
    monkeypatch.chdir(tmp_path)
    assert main.main(command.split()) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.startswith("speechlab: ")
    assert printed.err.count("\n") == 1 and not printed.out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    ["runs --runs PATH", "resume PATH", "data verify PATH", "evaluate PATH --output x.csv"],
)
def test_a_path_of_any_length_is_one_line(capsys, command):
    assert main.main(command.replace("PATH", "a" * 5000).split()) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["enhance", "SOUND", "-o", "out", "-c", PUBLISHED],
        ["separate", "SOUND", "-o", "out", "-c", PUBLISHED],
        ["stream", "--input", "SOUND", "-o", "out.wav", "-c", PUBLISHED],
        ["evaluate", "SET", "-o", "out.csv", "-c", PUBLISHED],
        ["import", PUBLISHED, "out.safetensors"],
        ["finetune", PUBLISHED, "-n", "out"],
        ["prune", PUBLISHED, "-n", "out", "--to", "1k"],
    ],
    ids=lambda command: command[0],
)
def test_offline_fetches_nothing(test_set, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    for name in (hub.OFFLINE, "SPEECHLAB_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "download", None)
    places = {"SET": str(test_set), "SOUND": str(test_set / "noisy" / "p0.wav")}
    assert main.main([places.get(word, word) for word in command] + ["--offline"]) == 2
    error = capsys.readouterr().err
    assert "not downloaded; run" in error and error.count("\n") == 1
    assert hub.OFFLINE not in os.environ and list(tmp_path.iterdir()) == [test_set]


def test_interruption_is_told(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("speechlab.cli.doctor.report", interrupt)
    assert main.main(["doctor"]) == 130
    assert capsys.readouterr().err == "speechlab: interrupted\n"


LIGHT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numba", "pandas", "scipy", "mamba_ssm"):
            raise RuntimeError(f"imports {name}")
sys.meta_path.insert(0, Blocked())
import speechlab.cli.main
for words in sys.stdin.read().splitlines():
    try:
        code = speechlab.cli.main.main(words.split())
    except SystemExit as stopped:  # --help, --version
        code = stopped.code
    print(f"{words}: {code}")
"""


def test_lists_and_bad_options_import_no_torch(tmp_path):
    """Nor pandas, scipy, numba: help, lists, missing paths and unknown names take 0.2 s."""
    (tmp_path / "set").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"")
    given = "--checkpoint model.safetensors --output out"
    done = ("--version", "enhance --help", "train --list", "data list", "runs", "weights list")
    refused = (
        f"enhance missing {given}",
        f"enhance set --mix 2 {given}",
        f"enhance set --stream --pcs {given}",
        f"separate missing {given}",
        "evaluate set --output rows.csv --checkpoint missing.pkl",
        "evaluate set --output rows.csv --estimates missing",
        "import model.safetensors x.pkl",
        "data prepare synthetic --set n_train",
        *(command for command, _ in REFUSED),
    )
    expected = dict.fromkeys(done, 0) | dict.fromkeys(refused, 2)
    printed = subprocess.run(
        [sys.executable, "-c", LIGHT],
        input="\n".join(expected),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"speechlab {speechlab.__version__}" in printed.stdout
    lines = printed.stdout.splitlines()
    assert [line for line in lines if line in {f"{w}: {c}" for w, c in expected.items()}] == [
        f"{words}: {code}" for words, code in expected.items()
    ]


def test_a_reader_that_stops_early_is_no_error():
    """As `head` does; here it has ended before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "speechlab", "weights", "list"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def parsers(parser, name="speechlab"):
    """A parser and those of its subcommands, with what one types to get there."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield from parsers(inner, f"{name} {word}")


@pytest.mark.parametrize(("name", "parser"), [*parsers(main._parser())])
def test_help_says_what_everything_is(name, parser):
    """Every command in its parent's list, every argument, and a default where one is taken.

    An argument that is called `run` would take the place of the command's function.
    """
    for action in parser._actions:
        assert action.dest != "run"
        if isinstance(action, argparse._SubParsersAction):
            listed = {pseudo.dest for pseudo in action._choices_actions if pseudo.help}
            assert listed == set(action.choices)
            continue
        assert action.help or action.choices, f"{name}: {action.dest} has no help"


def test_the_default_chunk_is_that_of_the_module():
    """The parser has a copy, since importing the module takes seconds."""
    assert process.CHUNK_S == separate.CHUNK_S
