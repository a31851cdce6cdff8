"""The kernels of `kernels.py` on torch tensors: views, buffers, threads.

Torch tensors become numpy views here; only tensors whose channels are not neighbours in memory are
copied. Work is split over `torch.get_num_threads()` threads of our own, because the kernels run
without the interpreter's lock and OpenMP survives neither a fork nor several callers.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechlab.layers import kernels
from speechlab.layers.elementary import CONSTANTS

# Elements (b, L, d, n) below which one thread does it all: about 2 ms
SERIAL_FORWARD, SERIAL_BACKWARD = 2**23, 2**22

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
    """Buffers of one worker, see `kernels`."""

    rows: np.ndarray
    memory: np.ndarray
    shared: np.ndarray
    sums: np.ndarray
    tape: np.ndarray
    constants: np.ndarray


class Split(NamedTuple):
    """How the work is cut: blocks of `lanes` channels, `group` blocks a task, `workers` threads."""

    lanes: int
    group: int
    workers: int


def split(b: int, L: int, d: int, n: int, serial: int) -> Split:
    """Blocks depend on the shape alone, so that sums are the same with any number of threads."""
    lanes = kernels.WIDTH if b * d > kernels.WIDTH else kernels.WIDTH // 2
    blocks = -(-d // lanes)
    threads = torch.get_num_threads() if b * L * d * n > serial else 1
    even = b % threads == 0 or b >= 4 * threads
    group = max(1, blocks if even else blocks // threads)
    return Split(lanes, group, max(1, min(threads, b * -(-blocks // group))))


def forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (b, L, d), last state (b, d, n) and kept states (b, chunks, n, d), no chunk unless `keep`."""
    (b, L, d), n = u.shape, A.shape[1]
    x = _inputs(u, dt, A, B, C, D, z, dt_bias)
    y, last = u.new_empty(b, L, d), u.new_empty(b, d, n)
    kept = u.new_empty(b, -(-L // kernels.CHUNK) if keep else 0, n, d)
    initial = np.zeros((b, d, n), x.A.dtype) if state is None else _packed(state)
    out = y.numpy(), last.numpy(), kept.numpy()
    cut = split(b, L, d, n, SERIAL_FORWARD)

    def work(worker: int) -> None:
        buffers = _scratch(n, cut.group, x.A.dtype, backward=False)
        kernels.forward(worker, cut.workers, cut.lanes, cut.group, x, initial, *out, buffers)

    _run(work, cut.workers)
    return y, last, kept


def backward(
    dy: Tensor | None,
    dlast: Tensor | None,
    kept: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of u, dt, A, B, C, D, z, dt_bias and the initial state; kept: of `forward`."""
    (b, L, d), n = u.shape, A.shape[1]
    x = _inputs(u, dt, A, B, C, D, z, dt_bias)
    dtype = x.A.dtype
    cut = split(b, L, d, n, SERIAL_BACKWARD)
    parts = (-(-d // cut.lanes), b, L, n)
    dy_flat, *dy_strides = (np.zeros(d, dtype), 0, 0) if dy is None else _flat(dy)
    end = np.zeros((b, d, n), dtype) if dlast is None else _packed(dlast)
    new = {name: u.new_empty(u.shape) for name in ("u", "dt")}
    new["z"] = u.new_empty(u.shape if z is not None else (0, 0, 0))
    new["state"] = u.new_empty(b, d, n)
    out = Gradients(
        **{name: value.numpy() for name, value in new.items()},
        A=np.zeros((b, d, n), dtype),
        B=np.empty(parts, dtype),
        C=np.empty(parts, dtype),
        D=np.zeros((b, d), dtype),
        bias=np.zeros((b, d), dtype),
    )

    def work(worker: int) -> None:
        buffers = _scratch(n, cut.group, dtype, backward=True)
        given = x, dy_flat, tuple(dy_strides), end, kept.numpy(), out, buffers
        kernels.backward(worker, cut.workers, cut.lanes, cut.group, *given)

    _run(work, cut.workers)
    sums = (torch.from_numpy(v.sum(0)) for v in (out.A, out.B, out.C, out.D, out.bias))
    dA, dB, dC, dD, dbias = sums
    return new["u"], new["dt"], dA, dB, dC, dD, new["z"], dbias, new["state"]


def _inputs(u, dt, A, B, C, D, z, dt_bias) -> Inputs:
    z = u.new_empty(0, 0, 0) if z is None else z
    arrays, *strides = zip(*(_flat(x) for x in (u, dt, z, B, C)), strict=True)
    A = _packed(A)
    D, bias = (np.zeros(len(A), A.dtype) if v is None else _packed(v) for v in (D, dt_bias))
    return Inputs(*arrays, A, D, bias, tuple(s for pair in zip(*strides, strict=True) for s in pair))


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


def _scratch(n: int, group: int, dtype: np.dtype, backward: bool) -> Scratch:
    k = kernels
    sums, tape = (2 * k.CHUNK * n, k.CHUNK // k.TILE * k.BLOCK * k.ENTRY) if backward else (0, 0)
    sizes = ((8 if backward else 3) * k.FIELD, group * n * (4 if backward else 2) * k.WIDTH)
    sizes += (2 * k.CHUNK * n, sums, tape)
    return Scratch(*(np.empty(size, dtype) for size in sizes), np.array(CONSTANTS, dtype))


def _run(work, workers: int) -> None:
    """work(0), work(1), ... side by side; the first one in this thread."""
    if workers == 1:
        return work(0)
    size = workers - 1
    key = os.getpid(), size  # threads do not live on in a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(size, "selective_scan")
    others = [_pools[key].submit(work, worker) for worker in range(1, workers)]
    work(0)
    for other in others:
        other.result()
