"""Several processes that train one model, started by torchrun: who am I, sums, one writer.

    torchrun --nproc-per-node 2 -m speechlab train EXPERIMENT      # one machine
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-endpoint HOST:PORT …   # several

Gradients are summed by one plain all-reduce per step and not by DistributedDataParallel. The loss
of a step is a sum over its examples divided by their global number, so the sum of the processes'
gradients *is* the gradient of one process with the whole batch, whatever share each has had, none
included. DDP divides by the number of processes and waits for a backward pass in each of them;
a process without an example would need one over nothing. What is given up is the overlap of
sending with the backward pass.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speechlab.errors import UserError

TIMEOUT = timedelta(hours=6)  # the others wait while the writer scores the dev files
PATIENCE = timedelta(seconds=5)  # for a process that failed to say so


class Parted(UserError):
    """The connection to the other processes broke: one of them has ended."""


@dataclass(frozen=True)
class World:
    """The processes of a training; one alone communicates with nobody."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes files and shows progress."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same in each; `values` is overwritten."""
        if self.size > 1:
            with _connected():
                dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gradients become their sums; a parameter that no process has one for keeps none.

        One all-reduce carries all of them and, behind them, one flag per parameter.
        """
        if self.size == 1:
            return
        has = [float(p.grad is not None) for p in parameters]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([part.reshape(-1) for part in parts])
        flat = self.sum(torch.cat([flat, torch.tensor(has).to(flat)]))
        *summed, has = flat.split([p.numel() for p in parameters] + [len(parts)])
        for p, gradient, found in zip(parameters, summed, has.tolist(), strict=True):
            p.grad = gradient.view_as(p).to(p.dtype, copy=True) if found else None

    def share_buffers(self, buffers: Iterable[Tensor]) -> None:
        """The writer's running means and the like, into every process."""
        if self.size == 1:
            return
        for buffer in buffers:
            sent = buffer.to(torch.uint8) if buffer.dtype == torch.bool else buffer.contiguous()
            _broadcast(sent)
            buffer.copy_(sent)

    def share(self, content: bytes | None) -> bytes:
        """What the writer holds, in every process; the others pass None."""
        if self.size == 1:
            return content
        length = torch.tensor([len(content) if self.writes else 0], device=self.device)
        _broadcast(length)
        if self.writes:
            tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(self.device)
        else:
            tensor = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        _broadcast(tensor)
        return tensor.cpu().numpy().tobytes()

    def share_number(self, value: float) -> float:
        """The writer's number, in every process."""
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        if self.size > 1:
            _broadcast(tensor)
        return tensor.item()


def _broadcast(tensor: Tensor) -> None:
    """The writer's, into the place of the others'."""
    with _connected():
        dist.broadcast(tensor, 0)


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise Parted(f"another process of this training has ended ({reason})") from error


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, or this one alone; left again at the end.

    device: where this process's model lies; CUDA talks by nccl, all else by gloo. A process group
    that is there already is used and left alone.
    """
    if dist.is_available() and dist.is_initialized():
        yield World(device, dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(device, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def is_writer() -> bool:
    """Whether this process may write, also before it has joined the others."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0


def own_device(name: str) -> torch.device:
    """The device for this process: of several on one machine, each takes its own GPU."""
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Of processes that torchrun started and that fail alike, or with another one, one tells.

    It raises its UserError; the others end by SystemExit with the same code, 2.
    """
    try:
        yield
    except UserError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and _is_told(error):
            raise SystemExit(2) from error
        raise


def _is_told(error: UserError) -> bool:
    """Whether another process tells this error, or the one that made it; by torchrun's store."""
    told = f"speechlab/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*address, is_master=False, timeout=PATIENCE)
        if isinstance(error, Parted):
            store.wait([told], PATIENCE)
            return True
        first = store.add(f"{told}/{hashlib.sha256(str(error).encode()).hexdigest()}", 1) == 1
        store.set(told, "yes")
        return not first
    except (KeyError, ValueError, RuntimeError):  # no store, or nobody who told: then this one does
        return False
