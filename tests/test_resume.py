"""Killed at any moment and started again, a training ends as if it had never been."""

import errno
import os
import random
import signal
import sys
import time

import pandas as pd
import pytest
import torch

from speechlab import snapshots, training
from speechlab.corpora import manifest
from speechlab.crops import sources
from speechlab.errors import UserError
from speechlab.mixing import MixtureConfig, Mixtures
from speechlab.runs import Run
from tests.training_toys import Sines, contents, ended, forked, gan, plain, train

FILES = ("best.safetensors", "last.safetensors", "best.json", "dev.csv", "validations.csv")
TIMED = ["samples_per_s"]
BUSY = {"ema": 0.9, "checkpoint_every": 1, "validate_every": 3, "log_every": 2, "n_steps": 24}
BUSY |= {"accumulate": 2, "batch_size": 2}

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of few processors


def same(one, other):
    """Every file but for the clock's numbers, the name of the run and when it was made."""
    names = [name for name in FILES if "best" not in name]
    assert contents(one.folder, *names) == contents(other.folder, *names)
    known, wanted = one.best_known, other.best_known
    assert known.pop("run") != wanted.pop("run") and known == wanted
    tensors = [snapshots.deserialise(run.best.read_bytes()) for run in (one, other)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[1])
    pd.testing.assert_frame_equal(
        one.history.drop(columns=TIMED), other.history.drop(columns=TIMED), check_exact=True
    )


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """Runs that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    begun = time.monotonic()
    runs = {"plain": train(folder / "plain", **BUSY)}
    runs["seconds"] = time.monotonic() - begun
    return runs | {"gan": train(folder / "gan", gan(), **BUSY)}


def test_killed_at_random_moments(tmp_path, wanted):
    moments = random.Random(time.time_ns())
    seconds = [moments.uniform(0, wanted["seconds"]) for _ in range(3)]
    survived = []
    for wait in seconds:
        child = forked(lambda: train(tmp_path / "run", **BUSY))
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        survived.append(ended(child) == 0)
    same(train(tmp_path / "run", **BUSY), wanted["plain"])


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_killed_at_every_kind_of_write(tmp_path, wanted, before):
    """Each time a few files further, just before or just after one takes its name."""
    folder = tmp_path / "run"

    def dies_at(count):
        replace = os.replace

        def counted(*paths):
            nonlocal count
            count -= 1
            if count == 0 and before:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = counted
        train(folder, **BUSY)

    codes = [ended(forked(lambda n=n: dies_at(n))) for n in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11)]
    assert codes.count(-signal.SIGKILL) >= 9
    same(train(folder, **BUSY), wanted["plain"])


def test_a_gan_resumes_exactly(tmp_path, wanted):
    """Two optimisers, running means, a power iteration, dropout."""
    folder = tmp_path / "run"
    dead = ended(forked(lambda: train(folder, gan(), scores=_killing(after=4), **BUSY)))
    assert dead == -signal.SIGKILL and 0 < Run.open(folder).step < 24
    same(train(folder, gan(), **BUSY), wanted["gan"])


def test_with_other_processes_making_the_examples(tmp_path, wanted):
    """Killed with its two workers at work; the numbers are those of none."""
    folder = tmp_path / "run"
    dead = ended(forked(lambda: train(folder, n_workers=2, scores=_killing(after=3), **BUSY)))
    assert dead == -signal.SIGKILL and 0 < Run.open(folder).step < 24
    same(train(folder, n_workers=2, **BUSY), wanted["plain"])


def _killing(after):
    """Dev scores that kill their process the last time but some."""
    from tests.training_toys import dev

    count = iter(range(after))

    def scores(model):
        if next(count, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return dev(model)

    return scores


def test_a_checkpoint_between_rows_keeps_their_means(tmp_path):
    """The sums since the last row are part of the state."""
    sparse = {"log_every": 5, "checkpoint_every": 3, "n_steps": 10, "validate_every": 7}
    whole = train(tmp_path / "whole", **sparse)
    dead = ended(forked(lambda: train(tmp_path / "cut", scores=_killing(after=0), **sparse)))
    assert dead == -signal.SIGKILL and Run.open(tmp_path / "cut").step == 6
    same(train(tmp_path / "cut", **sparse), whole)


@pytest.mark.parametrize("damage", ["torn", "empty", "garbage", "not ours"])
def test_a_damaged_state_is_told_in_a_line(tmp_path, damage):
    """Whoever damaged it: a killed training does not."""
    run = train(tmp_path / "run", n_steps=2)
    content = run.last.read_bytes()
    damaged = {
        "torn": content[:-9],
        "empty": b"",
        "garbage": b"\xff" * 4000,
        "not ours": run.best.read_bytes(),
    }
    run.last.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"last\.safetensors: not a readable training") as error:
        train(tmp_path / "run", n_steps=2)
    assert "\n" not in str(error.value) and run.best.exists()
    run.last.unlink()  # as the message says
    assert train(tmp_path / "run", n_steps=2).last.read_bytes() == content


def test_a_full_disk_leaves_the_older_state(tmp_path, monkeypatch):
    run = train(tmp_path / "run", n_steps=2)
    content = run.last.read_bytes()
    config = training.resume(run, {"n_steps": 9})

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"last\.safetensors: cannot be written \(No space"):
            training.fit(plain(), Sines(), lambda _: None, config, run, progress=False)
    assert run.last.read_bytes() == content


def test_a_state_is_what_was_put_in():
    shared = torch.arange(6.0).view(2, 3)
    state = {"a": {"0": shared, "t": shared.T}, "list": [1, None, "x", 0.1, torch.tensor(3)]}
    state |= {"half": torch.ones(2, dtype=torch.bfloat16), "none": {}, "tensor": torch.zeros(0)}
    known = snapshots.from_bytes(snapshots.to_bytes(state), "file")
    assert torch.equal(known["a"]["t"], shared.T) and torch.equal(known["a"]["0"], shared)
    assert known["list"][:4] == [1, None, "x", 0.1] and known["list"][4] == 3
    assert known["half"].dtype == torch.bfloat16 and known["none"] == {}
    assert known["tensor"].shape == (0,)


def corpus(folder):
    """Speech and noise in every split: as a corpus module leaves them."""
    import numpy as np
    import soundfile

    splits = {}
    for split in manifest.SPLITS:
        splits[split] = []
        for kind in ("speech", "noise"):
            path = folder / split / f"{kind}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            samples = np.random.default_rng(len(split)).normal(size=4000) * 0.1
            soundfile.write(path, samples, 8000)
            name, who = f"{split}_{kind}", (split,) if kind == "speech" else ()
            relative = str(path.relative_to(folder))
            splits[split].append(manifest.Item(name, kind, relative, 4000, 8000, (), who))
    manifest.write(folder, splits, {"name": "toy"})


def test_training_opens_no_test_file(tmp_path):
    """Every file that a training on a prepared corpus opens, told by the interpreter itself."""
    folder, opened = tmp_path / "corpus", tmp_path / "opened.txt"
    corpus(folder)

    def work():
        paths = []
        sys.addaudithook(lambda event, args: paths.append(args[0]) if event == "open" else None)
        speech, noise = (sources(folder, "train", kind) for kind in ("speech", "noise"))
        config = MixtureConfig(segment_s=0.05, sample_rate=8000)
        examples = Mixtures(speech, noise, [], config, n_per_epoch=6)
        run = Run.start(tmp_path / "run", {}, manifest.about(folder)["data_hash"])
        scored = Mixtures(
            *(sources(folder, "dev", kind) for kind in ("speech", "noise")), [], config, 2
        )

        def dev(model):
            pairs = [scored.example(0, 0, i) for i in range(2)]
            return pd.DataFrame(
                {"mse": [float((model(n[None])[0] - c).square().mean()) for n, c in pairs]}
            )

        config = training.TrainingConfig(n_steps=3, metric="mse")
        training.fit(plain(), examples, dev, config, run, progress=False)
        opened.write_text(
            "\n".join(map(os.fspath, filter(lambda p: isinstance(p, str | os.PathLike), paths)))
        )

    assert ended(forked(work)) == 0
    seen = [path for path in opened.read_text().splitlines() if str(folder) in path]
    assert {str(folder / "train.csv"), str(folder / "dev.csv")} <= set(seen)
    assert not [path for path in seen if "test.csv" in path or "/test/" in path[len(str(folder)) :]]
    with pytest.raises(UserError, match="never 'test'"):
        sources(folder, "test", "speech")
