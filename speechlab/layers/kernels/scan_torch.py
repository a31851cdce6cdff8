"""The kernels of `scan.py` on torch tensors: views, buffers, threads.

Torch tensors become numpy views; a tensor is copied only if its channels are not adjacent in
memory. The work runs in `torch.get_num_threads()` threads of a pool: kernels run without the
interpreter's lock. OpenMP is not used, since it fails after a fork and with several callers.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from speechlab.layers.kernels import scan
from speechlab.layers.kernels.elementary import CONSTANTS, LOG2_E
from speechlab.layers.kernels.operands import Operands

# Elements (b, L, d, n) up to which one thread is used: about 2 ms
SERIAL_FORWARD, SERIAL_BACKWARD = 2**23, 2**22

T = TypeVar("T")

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


class Inputs(NamedTuple):
    """u, dt, z, B, C: flat, with their strides in b and L in this order; z empty: no gate.

    A (d, n), D and bias (d,): packed.
    """

    u: np.ndarray
    dt: np.ndarray
    z: np.ndarray
    B: np.ndarray
    C: np.ndarray
    A: np.ndarray
    D: np.ndarray
    bias: np.ndarray
    leak: np.floating  # times log2(e)
    strides: tuple[int, ...]


class Gradients(NamedTuple):
    """Of u, dt, z (b, L, d); state, A (b, d, n); B, C (block, b, L, n); D, bias (b, d)."""

    u: np.ndarray
    dt: np.ndarray
    z: np.ndarray
    state: np.ndarray
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray
    bias: np.ndarray


class Scratch(NamedTuple):
    """Buffers of one worker, see `scan`."""

    leaks: np.ndarray | None
    rows: np.ndarray
    memory: np.ndarray
    shared: np.ndarray
    sums: np.ndarray
    tape: np.ndarray
    constants: np.ndarray


class Split(NamedTuple):
    """Division of work: blocks of `lanes` channels, `group` blocks a task, `workers` threads."""

    lanes: int
    group: int
    workers: int


def split(b: int, L: int, d: int, n: int, serial: int) -> Split:
    """Blocks depend on the shape alone, so that sums are the same with any number of threads."""
    lanes = scan.WIDTH if b * d > scan.WIDTH else scan.WIDTH // 2
    blocks = -(-d // lanes)
    threads = torch.get_num_threads() if b * L * d * n > serial else 1
    even = b % threads == 0 or b >= 4 * threads
    group = max(1, blocks if even else blocks // threads)
    return Split(lanes, group, max(1, min(threads, b * -(-blocks // group))))


def forward(x: Operands, leak: float, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (b, L, d), last state (b, d, n), kept states (b, chunks, n, d), with `keep`.

    Outputs are allocated by numpy, which requests huge pages: with small pages the first access is
    a third of the time. Raises ValueError if A is positive anywhere.
    """
    (b, L, d), n, given = x.u.shape, x.A.shape[1], _inputs(x, leak)
    chunks = -(-L // scan.CHUNK) if keep else 0
    dtype = given.A.dtype
    out = [np.empty(shape, dtype) for shape in ((b, L, d), (b, d, n), (b, chunks, n, d))]
    initial = np.zeros((b, d, n), dtype) if x.state is None else _packed(x.state)
    cut = split(b, L, d, n, SERIAL_FORWARD)

    def work(worker: int) -> bool:
        buffers = _scratch(n, cut.group, dtype, leak, backward=False)
        numbers = worker, cut.workers, cut.lanes, cut.group
        return scan.forward(*numbers, given, initial, *out, buffers)

    if any(_run(work, cut.workers)):
        raise ValueError("A must not be positive: a state would grow without bound")
    return tuple(torch.from_numpy(array) for array in out)


def backward(
    x: Operands, leak: float, dy: Tensor | None, dlast: Tensor | None, kept: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of u, dt, A, B, C, D, z, dt_bias and state; z: empty without a gate."""
    (b, L, d), n, given = x.u.shape, x.A.shape[1], _inputs(x, leak)
    dtype = given.A.dtype
    cut = split(b, L, d, n, SERIAL_BACKWARD)
    dy_flat, *dy_strides = (np.zeros(d, dtype), 0, 0) if dy is None else _flat(dy)
    end = np.zeros((b, d, n), dtype) if dlast is None else _packed(dlast)
    ends = dy_flat, tuple(dy_strides), end, _packed(kept)
    parts = (-(-d // cut.lanes), b, L, n)
    out = Gradients(
        u=np.empty((b, L, d), dtype),
        dt=np.empty((b, L, d), dtype),
        z=np.empty((0, 0, 0) if x.z is None else (b, L, d), dtype),
        state=np.empty((b, d, n), dtype),
        A=np.zeros((b, d, n), dtype),
        B=np.empty(parts, dtype),
        C=np.empty(parts, dtype),
        D=np.zeros((b, d), dtype),
        bias=np.zeros((b, d), dtype),
    )

    def work(worker: int) -> None:
        buffers = _scratch(n, cut.group, dtype, leak, backward=True)
        numbers = worker, cut.workers, cut.lanes, cut.group
        scan.backward(*numbers, given, *ends, out, buffers)

    _run(work, cut.workers)
    dA, dB, dC, dD, dbias = (_sum(part) for part in (out.A, out.B, out.C, out.D, out.bias))
    gradients = out.u, out.dt, dA, dB, dC, dD, out.z, dbias, out.state
    return tuple(torch.from_numpy(array) for array in gradients)


def _inputs(x: Operands, leak: float) -> Inputs:
    z = x.u.new_empty(0, 0, 0) if x.z is None else x.z
    arrays, *strides = zip(*(_flat(v) for v in (x.u, x.dt, z, x.B, x.C)), strict=True)
    A = _packed(x.A)
    D, bias = (np.zeros(len(A), A.dtype) if v is None else _packed(v) for v in (x.D, x.dt_bias))
    steps = tuple(s for pair in zip(*strides, strict=True) for s in pair)
    return Inputs(*arrays, A, D, bias, A.dtype.type(leak * LOG2_E), steps)


def _sum(parts: np.ndarray) -> np.ndarray:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _packed(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _flat(x: Tensor) -> tuple[np.ndarray, int, int]:
    """(b, L, d) as its stretch of memory and the strides of b and L; a copy if d has a stride."""
    x = x.detach()
    if x.shape[2] > 1 and x.stride(2) != 1:
        x = x.contiguous()
    b, L, d = x.shape
    size = (b - 1) * x.stride(0) + (L - 1) * x.stride(1) + d if x.numel() else 0
    return x.as_strided((size,), (1,)).numpy(), x.stride(0), x.stride(1)


def _scratch(n: int, group: int, dtype: np.dtype, leak: float, backward: bool) -> Scratch:
    k = scan
    sums, tape = (2 * k.CHUNK * n, k.CHUNK // k.TILE * k.BLOCK * k.ENTRY) if backward else (0, 0)
    sizes = ((8 if backward else 3) * k.FIELD, group * n * (4 if backward else 2) * k.WIDTH)
    sizes += (2 * k.CHUNK * n, sums, tape)
    leaks = np.empty(k.CHUNK, dtype) if leak else None  # another type, so kernels of their own
    buffers = (np.empty(size, dtype) for size in sizes)
    return Scratch(leaks, *buffers, np.array(CONSTANTS, dtype))


def _run(work: Callable[[int], T], workers: int) -> list[T]:
    """[work(0), work(1), ...], side by side; the first one in this thread."""
    key = os.getpid(), workers - 1  # threads do not survive a fork
    if workers > 1 and key not in _pools:
        _pools[key] = ThreadPoolExecutor(workers - 1, "selective_scan")
    others = [_pools[key].submit(work, worker) for worker in range(1, workers)]
    return [work(0)] + [other.result() for other in others]
