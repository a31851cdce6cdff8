"""Several processes that train one model, started by torchrun: rank, sums, one writer.

    torchrun --nproc-per-node 2 -m speechlab train EXPERIMENT      # one machine
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-endpoint HOST:PORT …   # several

One all-reduce per step sums gradients, not DistributedDataParallel. The loss of a step is a sum
over its examples divided by their global number, so the sum of the processes' gradients *is* the
gradient of the whole batch, however it is shared. DDP divides by the number of processes and needs
a backward pass in each, but a process may have no example. The price: communication does not
overlap with the backward pass.
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
from speechlab.models.device import find

TIMEOUT = timedelta(hours=6)  # the others wait while the writer scores dev files
PATIENCE = timedelta(seconds=5)  # for the message of a process that failed


class Parted(UserError):
    """The connection broke: another process has ended."""


@dataclass(frozen=True)
class World:
    """The processes of a training, or one alone."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same in each; `values` is overwritten."""
        if self.size > 1:
            with _connected():
                dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gradients become their sums; a parameter without a gradient anywhere keeps none.

        One all-reduce carries all gradients, then one flag per parameter.
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
        """Copy the writer's buffers (running means) into every process."""
        if self.size == 1:
            return
        for buffer in buffers:
            sent = buffer.to(torch.uint8) if buffer.dtype == torch.bool else buffer.contiguous()
            _broadcast(sent)
            buffer.copy_(sent)

    def share(self, content: bytes | None) -> bytes:
        """The writer's content, in every process; the others pass None."""
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
    """Overwrite the others' tensor with the writer's."""
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
    """The processes that torchrun started, or this one alone.

    device: of this process's model; CUDA uses nccl, others gloo. An existing process group is used
    and kept; a new one is destroyed at the end.
    """
    if dist.is_available() and dist.is_initialized():
        yield World(device, dist.get_rank(), dist.get_world_size())
        return
    if world_size() == 1:
        yield World(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(device, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Processes that torchrun has started, this one included; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_writer() -> bool:
    """Whether this process may write, also before `joined`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0


def own_device(name: str) -> torch.device:
    """The device of this process: each process of a machine has its own GPU.

    UserError for a device that is not here.
    """
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return find(name)


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """If several processes of torchrun fail with the same UserError, only one raises it.

    The others end by SystemExit with the same code, 2.
    """
    try:
        yield
    except UserError as error:
        if world_size() > 1 and _is_reported(error):
            raise SystemExit(2) from error
        raise


def _is_reported(error: UserError) -> bool:
    """Whether another process reports this error or its cause, by torchrun's store."""
    reported = f"speechlab/reported/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*address, is_master=False, timeout=PATIENCE)
        if isinstance(error, Parted):
            store.wait([reported], PATIENCE)
            return True
        first = store.add(f"{reported}/{hashlib.sha256(str(error).encode()).hexdigest()}", 1) == 1
        store.set(reported, "yes")
        return not first
    except (KeyError, ValueError, RuntimeError):  # no store, or no report: this process reports
        return False
