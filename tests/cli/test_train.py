"""Data, training and runs by the command line: what it prints, where it writes, how it resumes."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import speechlab
from speechlab.cli import main
from speechlab.cli.options import assigned
from speechlab.data.corpora import synthetic
from speechlab.data.corpora.catalogue import CORPORA
from speechlab.errors import UserError
from speechlab.storage import state as snapshots
from speechlab.study.experiments import EXPERIMENTS
from speechlab.training import loop
from speechlab.training.runs import Run
from tests.support.toy_corpus import prepared, words
from tests.support.training_toys import ended, forked
from tests.support.warm import LIMIT_S

SMALL = ["n_train=2", "n_held_out=1", "n_noises=1", "n_noises_held_out=1", "noise_s=1", "jobs=1"]
SMALL += ["n_rooms=1", "n_rooms_held_out=1"]
SMALL = [f"--set={setting}" for setting in SMALL]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("toy") / "corpus")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in, as a user has it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_words(corpus, **changes):
    return ["train", "cleanumamba-tiny", *words(corpus, **changes)]


def test_from_nothing_to_a_cleaned_file(place, capsys):
    """Prepare, train, enhance, in the folders where everything lies by default."""
    assert main.main(["data", "prepare", "synthetic", *SMALL]) == 0
    assert "1 test pairs" in capsys.readouterr().out
    assert main.main(train_words("synthetic")) == 0
    printed = capsys.readouterr()
    run = Path("results/runs/cleanumamba-tiny")
    first, second = printed.out.splitlines()
    assert first == f"{run}: finished at step 6 of 6"
    lines = printed.err.splitlines()  # no bar in a log
    told = [line.split(",")[0] for line in lines]
    assert told[0] == "cleanumamba-tiny: step 0 of 6"
    assert [line.split()[1] for line in told[-3:]] == ["step", "took", "best"]
    assert told[-3] == "cleanumamba-tiny: step 6 of 6" and "dev si_sdr" in lines[-3]
    assert second.startswith("best on dev: si_sdr ") and second.endswith(f"{run}/best.safetensors")
    [noisy] = (place / "data/synthetic/test/noisy").iterdir()
    assert main.main(["enhance", str(noisy), "--checkpoint", str(run), "--output", "out"]) == 0
    samples, rate = soundfile.read(place / "out" / noisy.name)
    assert rate == 16000 and np.isfinite(samples).all()
    assert len(samples) == soundfile.info(noisy).frames


def test_the_same_command_goes_on_and_another_is_refused(place, corpus, capsys):
    command = train_words(corpus)
    assert main.main(command) == 0
    printed = capsys.readouterr().out
    content = {path: path.read_bytes() for path in Path("results/runs/cleanumamba-tiny").iterdir()}
    assert main.main(command) == 0 and capsys.readouterr().out == printed
    assert main.main([*command, "--set", "training.lr=0.5"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "lr was 0.005, is 0.5" in error
    assert {path: path.read_bytes() for path in content} == content


def test_a_run_is_resumed_finetuned_and_compared(place, corpus, capsys):
    assert main.main([*train_words(corpus, training__n_steps=2), "--name", "one"]) == 0
    for setting in ("n_steps=4", "training.n_steps=5"):  # as in `train`
        assert main.main(["resume", "results/runs/one", "--set", setting]) == 0
    run = Run.open("results/runs/one")
    assert [note["n_steps"] for note in run.settings["changes"]] == [4, 5] and run.step == 5
    own = [word for word in words(corpus) if not word.startswith("--set=model.")]
    assert main.main(["finetune", "results/runs/one", "--name", "two", *own]) == 0
    assert speechlab.load("results/runs/two").config == speechlab.load("results/runs/one").config
    capsys.readouterr()
    assert main.main(["runs"]) == 0
    table = capsys.readouterr().out
    assert table.index("one") < table.index("two") and table.count("finished") == 2
    assert main.main(["runs", "one", "two"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert lines[0].split() == ["one", "two"]
    assert told["config.start"][-1] == "results/runs/one" and "best.si_sdr" in told
    assert told["training.n_steps"] == ["5", "6"] and "training.batch_size" not in told


def test_what_there_is_to_train(capsys):
    assert main.main(["train", "--list"]) == 0
    page = capsys.readouterr().out
    assert all(name in page for name in EXPERIMENTS)
    settings = ["mixture.snr_db=[0, 1]", "losses.si_sdr=1", "name=x"]
    asked = [word for setting in settings for word in ("--set", setting)]
    assert main.main(["train", *asked, "cleanumamba-tiny", "--list"]) == 0
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert {*settings[:2], 'name="x"', "training.lr=0.005", "model.d_model=32"} <= set(shown)
    assert all("=" in line for line in shown)


def test_what_data_there_is(place, corpus, capsys):
    assert main.main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(CORPORA)]] == list(CORPORA)
    assert max(map(len, lines)) <= 100 and "data show" in lines[-1]
    (place / "data").mkdir()
    (place / "data/synthetic").symlink_to(corpus)
    main.main(["data", "list"])
    assert capsys.readouterr().out.splitlines()[1].split()[1] == "yes"
    for name, known in CORPORA.items():
        assert main.main(["data", "show", name]) == 0
        page = capsys.readouterr().out
        assert all(text in page for text in (known.licence, known.source, known.layout))


@pytest.mark.parametrize(("folder", "name"), [("there", "there"), ("data/own", "own")])
def test_data_elsewhere_says_how_to_train_on_it(place, monkeypatch, capsys, folder, name):
    asked = []
    monkeypatch.setattr(synthetic, "prepare", lambda *given: asked.append(given))
    command = ["data", "prepare", "synthetic", "--folder", folder, "--set", "n_train=5"]
    assert main.main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"""--set 'corpora=["{name}"]'""")
    [(target, config, _)] = asked
    assert target == Path(folder) and config == synthetic.SyntheticConfig(n_train=5)


def test_words_are_json_or_text():
    given = ["a=1e-3", "b=true", "c=[1, 2]", "d=x=y", "e=", 'f="1"', "g.h=null"]
    wanted = {"a": 1e-3, "b": True, "c": [1, 2], "d": "x=y", "e": "", "f": "1", "g.h": None}
    assert assigned(given) == wanted
    for word in ("a", "=1"):
        with pytest.raises(UserError, match="KEY=VALUE"):
            assigned([word])


def test_ctrl_c_is_a_line_and_the_run_goes_on(place, corpus, capsys):
    changes = {"training__log_every": 1, "training__validate_every": 40}
    command = train_words(corpus, training__n_steps=40, **changes)
    history = Path("results/runs/cleanumamba-tiny/history.csv")

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, begun in the background
        take_step, steps = loop.take_step, iter(range(4))

        def stops_there(*words):  # until the signal comes, however late
            return take_step(*words) if next(steps, None) is not None else time.sleep(LIMIT_S)

        loop.take_step = stops_there
        with Path("stderr").open("w") as sys.stderr:
            code = main.main(command)
        os._exit(code)

    child = forked(work)
    deadline = time.monotonic() + LIMIT_S
    while len(Run(history.parent).history) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    assert ended(child) == 130
    lines = Path("stderr").read_text().splitlines()
    first, *others, last = lines  # others: where the machine is so slow that a minute passes
    assert (first, last) == ("cleanumamba-tiny: step 0 of 40", "speechlab: interrupted")
    assert all(line.startswith("cleanumamba-tiny: step ") for line in others)
    run = Run.open(history.parent)
    assert 3 <= run.step <= 4
    assert main.main(command) == 0 and run.step == 40
    assert run.history["step"].tolist() == list(range(1, 41))
    assert main.main([*command, "--set=name=whole"]) == 0
    names = "last.safetensors", "dev.csv", "validations.csv"
    for name in names:
        one, other = (history.parents[1] / run / name for run in ("cleanumamba-tiny", "whole"))
        assert one.read_bytes() == other.read_bytes()


def torchrun(work):
    """What torchrun does for two processes, which are forks of this one: no imports."""
    here = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0}
    forks = {"start_method": "fork", "monitor_interval": 0.05}
    run = elastic_launch(LaunchConfig(1, 1, 2, run_id="test", **here, **forks), work)
    assert ended(forked(run)) == 0


def test_two_processes_are_one(place, corpus):
    """By torchrun; 9 examples in batches of 4: of the last the second process has none."""
    command = train_words(corpus)

    def work():
        with Path(f"stdout-{os.environ['RANK']}").open("w") as sys.stdout:
            return main.main([*command, "--set=name=two"])

    torchrun(work)
    said = [Path(f"stdout-{rank}").read_text() for rank in range(2)]
    assert said[0].startswith("results/runs/two: finished at step 6 of 6\n")
    assert said[0].count("\n") == 2 and not said[1]
    assert main.main([*command, "--set=name=one"]) == 0
    one, two = (Run.open(Path("results/runs", name)) for name in ("one", "two"))
    states = [snapshots.from_bytes(run.last.read_bytes(), run.last) for run in (one, two)]
    alone, shared = (state["objective"] for state in states)
    assert max((alone[name] - shared[name]).abs().max() for name in alone) < 2e-6
    assert two.settings["world_size"] == 2 and two.history["step"].tolist() == [2, 4, 6]
    pd.testing.assert_frame_equal(one.dev, two.dev, rtol=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_training_opens_nothing_of_the_test_split(place):
    """As the kernel tells it: every file that any process opens, by whatever library."""
    corpus = prepared(place / "corpus")
    folders = [folder for folder in [corpus, *corpus.rglob("*")] if folder.is_dir()]
    opened = Opened(folders)
    assert main.main(train_words(corpus, training__n_steps=2, training__n_workers=1)) == 0
    assert main.main(["resume", "results/runs/cleanumamba-tiny", "--set", "n_steps=4"]) == 0
    own = [word for word in words(corpus) if not word.startswith("--set=model.")]
    tune = ["finetune", "results/runs/cleanumamba-tiny", "--name", "two", *own]
    assert main.main(tune) == 0
    names = opened.names()
    assert {"corpus.json", "train.csv", "dev.csv", "dev_mixture_0.wav"} <= names
    assert any(name.startswith("train_speech") for name in names)
    assert not [name for name in names if name.startswith("test")]
    (corpus / "test.csv").read_bytes()
    (corpus / "test/test_speech_0.wav").read_bytes()
    assert opened.names() == {"test.csv", "test_speech_0.wav"}  # the law sees what it forbids


class Opened:
    """Watches folders: names of the files in them that are opened."""

    OPEN = 0x20  # the bit of an event that asks for, and tells of, an opened file

    def __init__(self, folders: list[Path]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.file = libc.inotify_init1(os.O_NONBLOCK)
        for folder in folders:
            assert libc.inotify_add_watch(self.file, os.fsencode(folder), self.OPEN) > 0

    def names(self) -> set[str]:
        """Since the last call."""
        events, found = b"", set()
        try:
            while True:
                events += os.read(self.file, 1 << 20)
        except BlockingIOError:
            pass
        while events:  # 12 bytes, the length of the name, the name and zeros behind it
            length = int.from_bytes(events[12:16], sys.byteorder)
            found.add(events[16 : 16 + length].rstrip(b"\0").decode())
            events = events[16 + length :]
        return found - {""}  # the folder itself
