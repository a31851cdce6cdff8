"""A training that is killed at any moment and restarted equals an uninterrupted one."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from speechlab.errors import UserError
from speechlab.storage import state as snapshots
from speechlab.training import loop
from speechlab.training.runs import Run
from tests.support.training_toys import (
    Sines,
    contents,
    dev,
    distilled,
    ended,
    forked,
    gan,
    plain,
    train,
)

FILES = ("best.safetensors", "last.safetensors", "best.json", "dev.csv", "validations.csv")
TIMED = ["samples_per_s"]
BUSY = {"ema": 0.9, "checkpoint_every": 1, "validate_every": 3, "log_every": 2, "n_steps": 24}
BUSY |= {"accumulate": 2, "batch_size": 2}
CALLS = 40_000  # of about a step

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of few processors


def same(one, other):
    """Every file but for the clock's numbers, the name of the run and when it was made."""
    names = [name for name in FILES if "best" not in name]
    assert contents(one.folder, *names) == contents(other.folder, *names)
    known, wanted = one.best_known, other.best_known
    assert known.pop("run") != wanted.pop("run") and known == wanted
    tensors = [load_file(run.best) for run in (one, other)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[1])
    pd.testing.assert_frame_equal(
        one.history.drop(columns=TIMED), other.history.drop(columns=TIMED), check_exact=True
    )


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """Uninterrupted runs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    begun = time.monotonic()
    runs = {"plain": train(folder / "plain", **BUSY)}
    runs["seconds"] = time.monotonic() - begun
    runs["tuned"] = train(folder / "tuned", score_start=True, **BUSY)
    return runs | {"gan": train(folder / "gan", gan(), **BUSY)}


@pytest.mark.parametrize(("n_workers", "seed"), [(0, 1), (2, 2)])
def test_killed_at_ten_random_moments(tmp_path, wanted, n_workers, seed):
    """Steps into a process and calls of functions into a step: so a failure can be repeated."""
    drawn = random.Random(seed)
    moments = [(drawn.randint(0, 2), drawn.randint(0, CALLS)) for _ in range(10)]
    busy = BUSY | {"n_workers": n_workers}
    train(tmp_path / "warm", n_workers=n_workers, n_steps=1)  # starts the server of the workers

    def work(moment):
        _dies(*moment)
        train(tmp_path / "run", **busy)

    codes = [ended(forked(lambda moment=moment: work(moment))) for moment in moments]
    assert codes == [-signal.SIGKILL] * 10, list(zip(moments, codes, strict=True))
    assert 0 < Run.open(tmp_path / "run").step < BUSY["n_steps"]
    same(train(tmp_path / "run", **busy), wanted["plain"])


def _dies(n_steps, n_calls):
    """This process ends by a signal when it has begun so many steps, and made so many calls then.

    Calls of functions of Python and C, and returns, in the thread that trains.
    """
    count, take_step = iter(range(n_steps)), loop.take_step

    def counted(frame, event, of):
        nonlocal n_calls
        n_calls -= 1
        if n_calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepped(*given):
        if next(count, None) is None:
            sys.setprofile(counted)
        return take_step(*given)

    loop.take_step = stepped
    if n_steps == 0:  # before any
        sys.setprofile(counted)


def test_killed_from_outside(tmp_path, wanted):
    """Amid a call, too."""
    drawn = random.Random(3)
    waits = [drawn.uniform(0, wanted["seconds"]) for _ in range(3)]
    codes = []
    for wait in waits:
        child = forked(lambda: train(tmp_path / "run", **BUSY))
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        codes.append(ended(child))
    try:
        same(train(tmp_path / "run", **BUSY), wanted["plain"])
    except AssertionError as error:
        raise AssertionError(f"killed after {waits} s: {codes}") from error


def test_killed_at_every_kind_of_write(tmp_path, wanted):
    """Each time a few files further, first just before, then just after one takes its name.

    Also those of the score of what it begins with.
    """
    folder = tmp_path / "run"

    def dies_at(count, before):
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
        train(folder, score_start=True, **BUSY)

    moments = [(n, before) for n in (1, 2, 3, 4, 6, 8) for before in (True, False)]
    codes = [ended(forked(lambda moment=moment: dies_at(*moment))) for moment in moments]
    assert codes.count(-signal.SIGKILL) >= 11
    same(train(folder, score_start=True, **BUSY), wanted["tuned"])


def test_killed_amid_the_score_of_what_it_begins_with(tmp_path, wanted):
    folder = tmp_path / "run"
    for _ in range(2):
        assert killed(lambda: train(folder, scores=killing(), score_start=True, **BUSY))
        assert not Run.open(folder).last.exists()
    run = train(folder, score_start=True, **BUSY)
    same(run, wanted["tuned"])
    assert run.validations["step"].tolist()[:2] == [0, 3]


def test_a_gan_resumes_exactly(tmp_path, wanted):
    """Two optimisers, running means, a power iteration, dropout."""
    folder = tmp_path / "run"
    assert killed(lambda: train(folder, gan(), scores=killing(after=4), **BUSY))
    assert 0 < Run.open(folder).step < 24
    same(train(folder, gan(), **BUSY), wanted["gan"])


def test_passed_states_resume_exactly(tmp_path):
    """Killed in the middle: the states that batches leave are part of the checkpoint."""

    def trained(name, scores=dev):
        objective = distilled(passed=1.0, clean=1.0, clean_after=4)
        return train(tmp_path / name, objective, Sines(8, 500), scores)

    assert killed(lambda: trained("cut", killing(after=1)))
    assert 0 < Run.open(tmp_path / "cut").step < 12
    same(trained("cut"), trained("whole"))


def killed(work) -> bool:
    """Whether a child that does `work` kills itself."""
    return ended(forked(work)) == -signal.SIGKILL


def killing(after=0):
    """Dev scores that kill their process when they were asked `after` times."""
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
    assert killed(lambda: train(tmp_path / "cut", scores=killing(), **sparse))
    assert Run.open(tmp_path / "cut").step == 6
    same(train(tmp_path / "cut", **sparse), whole)


@pytest.mark.parametrize("damage", ["torn", "empty", "garbage", "not ours"])
def test_a_damaged_state_is_named_in_one_line(tmp_path, damage):
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
    with pytest.raises(UserError, match="not a readable training"):
        loop.resume(run, {"n_steps": 9})  # which records nothing
    with pytest.raises(UserError, match=r"last\.safetensors: not a readable training") as error:
        train(tmp_path / "run", n_steps=2)
    assert "\n" not in str(error.value) and run.best.exists()
    run.last.unlink()  # as the message says
    assert train(tmp_path / "run", n_steps=2).last.read_bytes() == content


def test_a_changed_bit_of_a_state_is_found_and_the_state_before_is_offered(tmp_path):
    """The digest in its header; the command of the message resumes to the same result."""
    whole = train(tmp_path / "whole", n_steps=6).last.read_bytes()
    run = train(tmp_path / "a run", n_steps=6)
    assert run.last.read_bytes() == whole
    content = bytearray(whole)
    content[-3] ^= 4
    run.last.write_bytes(content)
    with pytest.raises(UserError, match=r"its content has changed.*to resume from step") as error:
        train(tmp_path / "a run", n_steps=6)
    command = re.search("`(mv .*)`, and run the command again", str(error.value))[1]
    subprocess.run(command, shell=True, check=True)
    assert 0 < run.step < 6 and not run.previous.exists()
    assert train(tmp_path / "a run", n_steps=6).last.read_bytes() == whole


def test_a_state_without_a_digest_opens(tmp_path):
    """As version 0.1 wrote it."""
    run = train(tmp_path / "run", n_steps=2)
    content = run.last.read_bytes()
    run.last.write_bytes(content.replace(b"speechlab_sha256", b"speechlab_unread"))
    assert train(tmp_path / "run", n_steps=2).step == 2


def test_a_full_disk_leaves_the_older_state(tmp_path, monkeypatch):
    run = train(tmp_path / "run", n_steps=2)
    content = run.last.read_bytes()
    config = loop.resume(run, {"n_steps": 9})

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"safetensors: cannot be written \(the disk is full\)"):
            loop.fit(plain(), Sines(), lambda _: None, config, run, progress=False)
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
