"""Batches are a function of a position: for any number of processes, from anywhere, in any rank."""

import itertools
import math
import multiprocessing
import os
import signal
import time
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch

from speechlab.data.loader import Batch, batches
from speechlab.data.manifest import Item
from speechlab.data.mixing import Example, MixtureConfig, Mixtures
from speechlab.data.recordings import Source
from speechlab.errors import UserError
from tests.support.training_toys import ended, forked

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of few processors


class Numbers(NamedTuple):
    """Examples that tell their own key."""

    n: int = 7
    sample_rate: int = 8000
    n_sources: int = 2

    def __len__(self):
        return self.n

    def example(self, seed, epoch, index):
        if seed == 13:
            raise UserError("speech/x.wav: no such file; prepare the corpus again")
        if seed == 14:
            os._exit(1)
        key = torch.tensor([[seed, epoch, index, float(torch.get_num_threads())]])
        return Example(key, torch.cat([key, -key]))


def first(n, *args, **options):
    return list(itertools.islice(batches(*args, **options), n))


def equal(one: Batch, other: Batch):
    return all(map(torch.equal, one[:2], other[:2])) and one[2:] == other[2:]


def indices(batch):
    return [int(noisy[0, 2]) for noisy in batch.noisy]


def test_an_epoch_is_every_example_once():
    found = first(9, Numbers(), 3, seed=5)
    assert [(batch.n_examples, batch.position) for batch in found] == list(
        zip([3, 3, 1] * 3, range(1, 10), strict=True)
    )
    assert found[0].noisy.shape == (3, 1, 4) and found[0].clean.shape == (3, 2, 4)
    orders = []
    for epoch in range(3):
        parts = found[3 * epoch : 3 * epoch + 3]
        assert all((part.noisy[:, 0, 1] == epoch).all() for part in parts)
        orders.append([index for part in parts for index in indices(part)])
        assert sorted(orders[-1]) == list(range(7))
    assert len(set(map(tuple, orders))) == 3
    assert indices(first(1, Numbers(), 3, seed=6)[0]) != indices(found[0])


@pytest.mark.parametrize("position", [1, 2, 3, 8])
def test_from_a_position_on(position):
    wanted = first(12, Numbers(), 3, seed=5)
    found = first(4, Numbers(), 3, seed=5, position=position)
    assert all(map(equal, found, wanted[position : position + 4]))


@pytest.mark.parametrize(("world_size", "batch_size", "n"), [(2, 4, 6), (3, 4, 9), (4, 3, 7)])
def test_ranks_together_are_the_global_batch(world_size, batch_size, n):
    """Also where the last batch has fewer examples than there are ranks."""
    whole = first(6, Numbers(n), batch_size, seed=1)
    ranks = [
        first(6, Numbers(n), batch_size, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for wanted, *parts in zip(whole, *ranks, strict=True):
        shares = [indices(part) for part in parts]
        assert [indices(wanted)[rank::world_size] for rank in range(world_size)] == shares
        assert {part[2:] for part in parts} == {wanted[2:]}
        for part in parts:
            assert part.noisy.shape[1:2] == (1,) and part.clean.shape[1:2] == (2,)
            assert len(part.noisy) == len(part.clean)
    smallest = min(len(part.noisy) for rank in ranks for part in rank)
    assert (smallest == 0) == (1 <= n % batch_size < world_size or batch_size < world_size)


def mixtures(folder):
    for name in ("speech", "noise"):
        samples = 0.1 * np.random.default_rng(len(name)).normal(size=4000)
        soundfile.write(folder / f"{name}.wav", samples, 8000)
    speech, noise = (
        Source(folder, Item(name, name, f"{name}.wav", 4000, 8000)) for name in ("speech", "noise")
    )
    config = MixtureConfig(segment_s=0.2, sample_rate=8000, speeds=(0.9, 1.0))
    return Mixtures([speech], [noise], [], config, n_per_epoch=5)


def test_processes_change_nothing(tmp_path):
    """The same bytes from two other processes, and no number drawn from the global generator."""
    examples = mixtures(tmp_path)
    wanted = first(8, examples, 2, seed=3)
    before = torch.get_rng_state()
    found = first(6, examples, 2, seed=3, position=2, n_workers=2)
    assert all(map(equal, found, wanted[2:]))
    assert torch.equal(before, torch.get_rng_state())
    assert all(batch.noisy.isfinite().all() for batch in found)


def test_processes_of_one_thread_end_with_the_iterator():
    torch.ones(300, 300) @ torch.ones(300, 300)
    with_workers = batches(Numbers(), 5, seed=3, n_workers=2, rank=1, world_size=3)
    batch = next(with_workers)
    assert (batch.noisy[:, 0, 3] == 1).all()
    assert len(next(with_workers).noisy) == 1
    children = multiprocessing.active_children()
    assert len(children) == 2
    with_workers.close()
    assert within_minutes(lambda: not any(child.is_alive() for child in children))


@pytest.mark.parametrize(("seed", "what"), [(13, r"^speech/x\.wav"), (14, "process .* died")])
def test_an_error_in_a_process_is_one_line(seed, what):
    with pytest.raises(UserError, match=what) as error:
        first(1, Numbers(), 3, seed=seed, n_workers=1)
    assert "\n" not in str(error.value)
    if seed == 13:
        with pytest.raises(UserError, match=what):
            first(1, Numbers(), 3, seed=seed)


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"position": -1}, {"n_workers": -1}, {"rank": 2, "world_size": 2}],
)
def test_arguments_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        batches(Numbers(), **{"batch_size": 2, "seed": 0, **wrong})
    with pytest.raises(ValueError, match="no examples"):
        batches(Numbers(0), 2, seed=0)


def test_a_position_far_away_is_as_near():
    (batch,) = first(1, Numbers(), 3, seed=5, position=3 * 10**6 + 2)
    assert (batch.noisy[:, 0, 1] == 10**6).all() and len(batch.noisy) == 7 - 2 * 3
    assert batch.position == 3 * 10**6 + 3 and math.ceil(7 / 3) == 3


def test_processes_end_with_a_parent_that_is_killed():
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def wait_for_ever():
        made = batches(Numbers(), 2, seed=0, n_workers=2)
        next(made)
        sender.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(3600)

    parent = forked(wait_for_ever)
    assert receiver.poll(600)
    workers = receiver.recv()
    os.kill(parent, signal.SIGKILL)
    assert len(workers) == 2
    assert ended(parent) == -signal.SIGKILL
    assert within_minutes(lambda: not any(map(is_alive, workers)))


def within_minutes(done):
    limit = time.monotonic() + 300
    while not done() and time.monotonic() < limit:
        time.sleep(0.05)
    return done()


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
