"""Two processes are one with the same batches, also where one of them has nothing to do."""

import os
import socket
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from speechlab.data.loader import batches
from speechlab.errors import UserError
from speechlab.storage import state as snapshots
from speechlab.training import distributed
from speechlab.training.distributed import World, is_writer, joined, one_voice, own_device
from speechlab.training.objectives import Supervised
from speechlab.training.runs import Run
from speechlab.training.state import State, take_step
from tests.support.training_toys import Sines, ended, forked, gan, mae, options, plain, tiny, train

CPU = torch.device("cpu")


def two(work):
    """Run `work` in two processes that torchrun could have started; both must end well."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def as_rank(rank):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work()

    children = [forked(lambda rank=rank: as_rank(rank)) for rank in range(2)]
    assert [ended(child) for child in children] == [0, 0]


def refused(works):
    """What processes with torchrun's store, one for each work, tell; their exit codes."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    reader, writer = os.pipe()

    def as_rank(rank):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": f"{len(works)}"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        code = 0
        try:
            with one_voice():
                works[rank]()
        except UserError as error:
            os.write(writer, f"{error}\n".encode())
            code = 2
        except SystemExit as end:
            code = end.code
        os._exit(code)

    children = [forked(lambda rank=rank: as_rank(rank)) for rank in range(len(works))]
    codes = [ended(child) for child in children]
    os.write(writer, b".")
    return os.read(reader, 10_000).decode().splitlines()[:-1], codes


def test_an_error_of_all_processes_is_reported_once():
    def refuses(reason):
        raise UserError(reason)

    lr, here = "lr is 1e300; it must lie in 0 to 1000", "no corpus on this machine"
    told, codes = refused([lambda: refuses(lr), lambda: refuses(lr), lambda: refuses(here)])
    assert sorted(told) == [lr, here] and codes == [2, 2, 2]  # what differs is not kept back


def test_only_the_writer_reports_its_error(tmp_path):
    """The others wait for it, and see no more than that it is gone."""
    train(tmp_path / "run", n_steps=2)
    told, codes = refused([lambda: train(tmp_path / "run", n_steps=3)] * 2)
    assert len(told) == 1 and "n_steps was 2, is 3" in told[0] and codes == [2, 2]


def test_a_dead_process_is_reported_in_one_line(tmp_path, monkeypatch):
    def dies():
        if os.environ["RANK"] == "0":
            train(tmp_path / "run", scores=lambda model: os._exit(9))
        train(tmp_path / "run")

    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=0.3))
    [told], codes = refused([dies, dies])
    assert told.startswith("another process of this training has ended (") and codes == [9, 2]


def tensors(run):
    return snapshots.from_bytes(run.last.read_bytes(), run.last)


def distance(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_two_processes_train_as_one(tmp_path):
    """9 examples in batches of 4: of the last batch the second process has none."""
    changes = {"n_steps": 7, "clip_norm": 0.5, "ema": 0.9, "log_every": 1}
    one = train(tmp_path / "one", **changes)
    two(lambda: train(tmp_path / "two", **changes))
    run = Run.open(tmp_path / "two")
    alone, both = tensors(one), tensors(run)
    assert distance(alone["objective"], both["objective"]) < 2e-6
    assert distance(alone["ema"], both["ema"]) < 2e-6
    names = ["loss", "loss.mae", "loss.mse", "loss.grad_norm"]
    assert ((one.history[names] - run.history[names]).abs() / one.history[names]).max().max() < 1e-4
    assert run.history["n_skipped"].max() == 0
    assert run.settings["world_size"] == 2 and one.settings["world_size"] == 1
    content = run.last.read_bytes()
    assert train(tmp_path / "two", **changes).last.read_bytes() == content  # it has ended


def same_gradients(objective, examples, batch_size, n_steps, most, folder):
    """Of each step, in two processes and in one; returns what one process found.

    objective: makes an objective with optimisers of plain gradient descent, so that the change of
        weights is the gradient times their rate.
    most: largest difference allowed.
    folder: for files.
    """

    def found(world):
        steps = []
        for position in range(n_steps):
            state = State(objective(), options())
            before = {k: v.clone() for k, v in state.objective.state_dict().items()}
            source = batches(examples, batch_size, 1, position, 0, world.rank, world.size)
            values = take_step(state, [next(source)], 1.0, world)
            after = state.objective.state_dict()
            steps.append({name: before[name] - after[name] for name in before})
            steps[-1] |= {name: torch.tensor(value) for name, value in values.items()}
        return steps

    def work():
        with joined(CPU) as world:
            torch.save(found(world), folder / f"{world.rank}.pt")

    two(work)
    wanted = found(World(CPU))
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    for one, first, second in zip(wanted, *ranks, strict=True):
        assert distance(one, first) < most
        assert distance(first, second) == 0
    return wanted


def descending(kind, lr):
    """A kind of objective with plain gradient descent in every phase."""

    class Descent(kind):
        def phases(self):
            phases = super().phases()
            return [replace(x, optimizer=lambda p: torch.optim.SGD(p, lr)) for x in phases]

    return Descent


def test_gradients_are_those_of_one_process(tmp_path):
    """Batches of 4, 4, 1: of the last one process has no example."""
    kind = descending(Supervised, 1.0)
    given = lambda: kind(tiny(), {"mae": mae})  # noqa: E731
    for step in same_gradients(given, Sines(), 4, 3, 1e-6, tmp_path):
        assert max(tensor.abs().max() for tensor in step.values()) > 1e-2


def test_a_gan_stays_one_in_two_processes(tmp_path):
    """Dropout and running means differ from process to process; what is learnt must not."""

    def work():
        with joined(CPU) as world:
            objective = gan()
            train(tmp_path / "run", objective, n_steps=5)
            flat = torch.cat([x.flatten().float() for x in objective.state_dict().values()])
            other = flat.clone()
            dist.broadcast(other, 0)
            assert torch.equal(flat, other), "the processes have parted"
            assert world.size == 2

    two(work)


def test_bad_steps_are_agreed_upon(tmp_path):
    """The NaN is one process's; both skip the step."""
    two(lambda: train(tmp_path / "run", examples=Sines(bad={(1, 3)}), n_steps=9))
    assert Run.open(tmp_path / "run").history["n_skipped"].tolist()[-1] == 1


def test_what_one_process_shares():
    def work():
        with joined(CPU) as world:
            assert is_writer() is world.writes is (world.rank == 0)
            content = bytes(range(200)) if world.writes else None
            assert world.share(content) == bytes(range(200))
            assert world.share_number(0.1 if world.writes else 7.0) == 0.1
            lone, none, both = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
            both.grad = torch.full((2,), 1.0 + world.rank)
            lone.grad = torch.ones(2) if world.rank else None
            world.sum_gradients([lone, none, both])
            assert none.grad is None
            assert lone.grad.tolist() == [1, 1] and both.grad.tolist() == [3, 3]

    two(work)


def test_one_process_communicates_with_none(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(CPU) as world:
        assert world == World(CPU) and world.writes and not dist.is_initialized()
        assert world.share(b"x") == b"x" and world.share_number(2.0) == 2.0
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device("cuda") == torch.device("cuda", 3) and own_device("cpu") == CPU


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_writer_begins_a_run(tmp_path, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    Run.start(tmp_path / "run", {}, "")
    assert (tmp_path / "run").exists() is (rank == "0")
    plain()
