"""The selective scan of Mamba (arXiv 2312.00752, section 3.2 and algorithm 2) on any machine.

    step_t = softplus(dt_t + dt_bias)                       the discretisation step, one per channel
    h_t = exp(step_t A - leak) h_{t-1} + step_t B_t u_t     the recurrence, equation 2a
    y_t = (C_t . h_t + D u_t) silu(z_t)                     the read-out, equation 2b; skip, gate

| here     | paper   | shape        | meaning                                             |
|----------|---------|--------------|-----------------------------------------------------|
| u        | x       | (b, L, d)    | input                                               |
| dt, step | Delta   | (b, L, d)    | step size before and after bias and softplus        |
| A        | A       | (d, n)       | real and negative: rate of decay of a state         |
| B, C     | B, C    | (b, L, n)    | input and output vectors, shared by all channels    |
| D        | D       | (d,)         | skip from input to output (section 3.4)             |
| z        | gate    | (b, L, d)    | gate of the block around the scan (figure 3)        |
| state, h | h       | (b, d, n)    | the memory, carried by a stream                     |
| decay    | A bar   | (b, L, d, n) | exp(step A - leak), in (0, 1]                       |
| drive    | B bar x | (b, L, d, n) | step B u, B discretised by Euler's rule             |
| leak     | -       | a number     | of all states, per frame; 0, as published: none     |

b examples, L frames, d channels, n states per channel.

No backend divides by a product of decays or exponentiates a positive sum: with the steps of trained
weights, that overflows to NaN. (`cuda` does so with the leak, up to MOST_GROWTH.)
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from speechlab.errors import UserError
from speechlab.layers.kernels.operands import Operands

Scan = tuple[Tensor, Tensor]  # y, last state

# Elements (b, steps, d, n) of a segment in `parallel`; the backward pass recomputes the others.
SEGMENT_ELEMENTS = 2**21
MOST_GROWTH = 30.0  # leak L up to which `cuda` multiplies its input by exp(leak t): 1e13


def reference(x: Operands, leak: float = 0.0) -> Scan:
    """The recurrence step by step: slow on purpose, the reference of the tests."""
    step = _step(x)
    decay = torch.exp(step.unsqueeze(-1) * x.A - leak)  # (b, L, d, n)
    drive = (step * x.u).unsqueeze(-1) * x.B.unsqueeze(2)  # (b, L, d, n)
    h = _initial(x)
    reads = []
    # unbind: an index would make the backward pass fill a (b, L, d, n) tensor at every step
    for a, v, c in zip(decay.unbind(1), drive.unbind(1), x.C.unbind(1), strict=True):
        h = a * h + v
        reads.append((h @ c.unsqueeze(-1)).squeeze(-1))  # (b, d)
    y = torch.stack(reads, 1) if reads else drive.sum(-1)
    return _skip_and_gate(y, x), h


def parallel(x: Operands, leak: float = 0.0) -> Scan:
    """Chunks in parallel, in plain PyTorch: any device, every factor at most 1."""
    h = _initial(x)
    length = max(1, SEGMENT_ELEMENTS // max(1, h.numel()))
    pieces = list(zip(*(v.split(length, 1) for v in (x.u, _step(x), x.B, x.C)), strict=True))
    recompute = torch.is_grad_enabled() and len(pieces) > 1
    reads = []
    for piece in pieces:
        if recompute:
            options = {"use_reentrant": False, "preserve_rng_state": False}
            y, h = checkpoint(_segment, *piece, x.A, h, leak, **options)
        else:
            y, h = _segment(*piece, x.A, h, leak)
        reads.append(y)
    return _skip_and_gate(torch.cat(reads, 1), x), h


def _segment(
    u: Tensor, step: Tensor, B: Tensor, C: Tensor, A: Tensor, h: Tensor, leak: float
) -> Scan:
    """K chunks of T steps in parallel, each from zero; then the state passes through the chunks."""
    (b, L, d), n = u.shape, A.shape[1]
    if L == 0:
        return u * 1, h
    T = max(1, int(L**0.5))
    K = -(-L // T)
    rest = (0, 0, 0, K * T - L)  # a step of zero keeps the state: padding changes nothing,
    A = A.clamp(min=torch.finfo(A.dtype).min)  # if A is finite
    step, drive, B = F.pad(step, rest), F.pad(step * u, rest), F.pad(B, rest)
    exponent = step.unsqueeze(-1) * A
    if leak:  # not of the padding
        exponent = exponent - F.pad(step.new_full((L, 1), leak), rest).unsqueeze(-1)
    decay = torch.exp(exponent).view(b, K, T, d, n)
    drive = (drive.unsqueeze(-1) * B.unsqueeze(2)).view(b, K, T, d, n)
    local, kept = [], []  # states of a chunk from zero; factors of the state before it
    for t, (a, v) in enumerate(zip(decay.unbind(2), drive.unbind(2), strict=True)):
        local.append(a * local[-1] + v if t else v)  # (b, K, d, n)
        kept.append(a * kept[-1] if t else a)
    before = []
    for a, v in zip(kept[-1].unbind(1), local[-1].unbind(1), strict=True):
        before.append(h)
        h = a * h + v
    states = torch.stack(local, 2) + torch.stack(kept, 2) * torch.stack(before, 1).unsqueeze(2)
    states = states.view(b, K * T, d, n)[:, :L]
    return (states @ C.unsqueeze(-1)).squeeze(-1), h


def _step(x: Operands) -> Tensor:
    return F.softplus(x.dt if x.dt_bias is None else x.dt + x.dt_bias)


def _initial(x: Operands) -> Tensor:
    return x.u.new_zeros(x.u.shape[0], *x.A.shape) if x.state is None else x.state


def _skip_and_gate(y: Tensor, x: Operands) -> Tensor:
    if x.D is not None:
        y = y + x.D * x.u
    return y if x.z is None else y * F.silu(x.z)


@torch.library.custom_op("speechlab::selective_scan", mutates_args=(), device_types="cpu")
def _fused_forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor | None,
    leak: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from speechlab.layers.kernels import scan_torch as fused

    return fused.forward(Operands(u, dt, A, B, C, D, z, dt_bias, state), leak, keep)


@_fused_forward.register_fake
def _(u: Tensor, dt: Tensor, A: Tensor, *others: object) -> tuple[Tensor, ...]:
    (b, L, d), n, keep = u.shape, A.shape[1], others[-1]
    kept = (b, (L + 31) // 32 if keep else 0, n, d)
    return tuple(u.new_empty(shape) for shape in ((b, L, d), (b, d, n), kept))


@torch.library.custom_op("speechlab::selective_scan_backward", mutates_args=(), device_types="cpu")
def _fused_backward(
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
    leak: float,
) -> list[Tensor]:
    from speechlab.layers.kernels import scan_torch as fused

    x = Operands(u, dt, A, B, C, D, z, dt_bias, None)
    return list(fused.backward(x, leak, dy, dlast, kept))


@_fused_backward.register_fake
def _(dy: object, dlast: object, kept: Tensor, *operands: Any) -> list[Tensor]:
    u, _, A, B, _, _, z, _, _ = operands
    (b, _, d), n = u.shape, A.shape[1]
    gate = (0, 0, 0) if z is None else u.shape
    shapes = u.shape, u.shape, A.shape, B.shape, B.shape, (d,), gate, (d,), (b, d, n)
    return [u.new_empty(shape) for shape in shapes]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, state, ctx.leak, _ = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.given = [v is not None for v in (*tensors, state)]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None, _: None) -> tuple:
    if dy is None and dlast is None:
        return (None,) * 11
    gradients = _fused_backward(dy, dlast, *ctx.saved_tensors, ctx.leak)
    found = (g if given else None for g, given in zip(gradients, ctx.given, strict=True))
    return *found, None, None


_fused_forward.register_autograd(_backward, setup_context=_save)


def numba(x: Operands, leak: float = 0.0) -> Scan:
    """One fused pass on the CPU, float32 or float64; backward recomputes (`kernels.scan`)."""
    keep = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in x)
    y, last, _ = _fused_forward(*x, leak, keep)
    return y, last


def cuda(x: Operands, leak: float = 0.0) -> Scan:
    """The kernel of mamba-ssm. It has no initial state: with one, `parallel` is used.

    It has no leak either: with w_t = exp(leak t), the scan of u w, divided by w, is the leaky scan.
    """
    L = x.u.shape[1]
    if x.state is not None or L == 0 or leak * L > MOST_GROWTH:
        return parallel(x, leak)
    if leak:
        w = torch.exp(leak * torch.arange(L, dtype=x.u.dtype, device=x.u.device))[:, None]  # (L, 1)
        y, last = cuda(x._replace(u=x.u * w))
        return y / w, last / w[-1]
    kernel = import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    u, dt, B, C = (v.transpose(1, 2) for v in (x.u, x.dt, x.B, x.C))  # (b, d, L), (b, n, L)
    z = None if x.z is None else x.z.transpose(1, 2)
    options = {"delta_bias": x.dt_bias, "delta_softplus": True, "return_last_state": True}
    y, last = kernel(u, dt, x.A, B, C, x.D, z, **options)
    return y.transpose(1, 2), _LastState.apply(last.detach(), x.u, x.dt, x.A, x.B, x.dt_bias)


class _LastState(torch.autograd.Function):
    """The gradient through the last state, which mamba-ssm lacks: by `parallel`, if needed."""

    @staticmethod
    def forward(ctx: Any, last: Tensor, *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        return last.clone()

    @staticmethod
    def backward(ctx: Any, dlast: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [v if v is None else v.detach().requires_grad_() for v in ctx.saved_tensors]
        u, dt, A, B, dt_bias = inputs
        unread = torch.zeros_like(B)
        with torch.enable_grad():
            _, last = parallel(Operands(u, dt, A, B, unread, None, None, dt_bias, None))
            found = iter(torch.autograd.grad(last, [v for v in inputs if v is not None], dlast))
        return None, *(None if v is None else next(found) for v in inputs)


BACKENDS: dict[str, Callable[[Operands, float], Scan]] = {
    "reference": reference,
    "parallel": parallel,
    "numba": numba,
    "cuda": cuda,
}


@cache
def _missing(name: str) -> str | None:
    """Why a backend cannot run on this machine; None if it can."""
    if name == "cuda" and not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    modules = {
        "numba": "speechlab.layers.kernels.scan_torch",
        "cuda": "mamba_ssm.ops.selective_scan_interface",
    }
    try:
        import_module(modules.get(name, __name__))
    except (ImportError, OSError) as error:  # OSError: a compiled library that does not load
        package = {"cuda": "mamba-ssm"}.get(name, name)
        return f"{package} does not import ({error})"
    return None


def _unfit(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why a backend cannot process tensors of this type and device; None if it can."""
    device = {"numba": "cpu", "cuda": "cuda"}.get(name, device_type)
    if device != device_type:
        return f"it needs tensors on {device}, not on {device_type}"
    if name == "cuda" and dtype == torch.float64:
        return "it has no float64"
    return _missing(name)


def _constant_when_compiled(function: Callable[..., str]) -> Callable[..., str]:
    """`torch.compiler.assume_constant_result`, which imports the compiler: 2 s for each process."""
    function._dynamo_marked_constant = True
    return function


@_constant_when_compiled
def default_backend(device_type: str, dtype: torch.dtype) -> str:
    """Name of the default backend for a device and type; SPEECHLAB_SCAN overrides it."""
    if name := os.environ.get("SPEECHLAB_SCAN"):
        return name
    fused = {"cuda": "cuda", "cpu": "numba"}.get(device_type, "parallel")
    if dtype == torch.float64 or _unfit(fused, device_type, dtype):
        return "parallel"
    return fused


@_constant_when_compiled
def _require(name: str, device_type: str, dtype: torch.dtype) -> str:
    if name not in BACKENDS:
        raise UserError(f"scan backend {name!r} is unknown: choose one of {', '.join(BACKENDS)}")
    if reason := _unfit(name, device_type, dtype):
        fix = "name another one or leave the choice open (no backend=, no SPEECHLAB_SCAN)"
        raise UserError(f"scan backend {name!r} is not available: {reason}; {fix}")
    return name


def backend_status() -> dict[str, str]:
    """Per backend "available (...)" or the reason why not; imports the backends."""
    notes = {
        "reference": "any device, slow on purpose",
        "parallel": "any device",
        "numba": f"numba {_version('numba')}, CPU, float32 and float64",
        "cuda": f"mamba-ssm {_version('mamba-ssm')}, float32; parallel with an initial state",
    }
    missing = {name: _missing(name) for name in BACKENDS}
    return {
        name: f"not available: {missing[name]}" if missing[name] else f"available ({note})"
        for name, note in notes.items()
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    state: Tensor | None = None,
    *,
    leak: float = 0.0,
    backend: str | None = None,
) -> Scan:
    """The scan over u (b, L, d) from `state` (None: zeros): y (b, L, d), last state (b, d, n).

    Letters and shapes: see the module docstring; A must not be positive. Computed in float64 if any
    input is float64, else in float32, also for lower precisions and under autocast. y has the type
    of u, the state that of the computation. Two parts of a sequence, with the state passed on, give
    the result of the whole, with `numba` bit for bit. `numba` and `cuda` can be differentiated
    once, the others any number of times.
    ValueError for shapes that do not fit and a leak below 0, UserError for a backend that cannot
    run.
    """
    x = Operands(u, dt, A, B, C, D, z, dt_bias, state)
    _check_shapes(x)
    if not leak >= 0:
        raise ValueError(f"leak must be 0 or more, not {leak}: a state would grow without bound")
    double = any(v is not None and v.dtype == torch.float64 for v in x)
    dtype, device = torch.float64 if double else torch.float32, u.device.type
    name = _require(backend or default_backend(device, dtype), device, dtype)
    with torch.autocast(device, enabled=False) if device in ("cpu", "cuda") else nullcontext():
        y, last = BACKENDS[name](Operands(*(v if v is None else v.to(dtype) for v in x)), leak)
    return y.to(u.dtype), last


def _check_shapes(x: Operands) -> None:
    if x.u.ndim != 3 or x.A.ndim != 2:
        found = f"not {tuple(x.u.shape)} and {tuple(x.A.shape)}"
        raise ValueError(f"u must be (b, L, d) and A (d, n), {found}")
    (b, L, d), n = x.u.shape, x.A.shape[1]
    wanted = {"A": (d, n), "D": (d,), "dt_bias": (d,), "state": (b, d, n)}
    wanted |= {"dt": (b, L, d), "z": (b, L, d), "B": (b, L, n), "C": (b, L, n)}
    for name, shape in wanted.items():
        v = getattr(x, name)
        if v is not None and tuple(v.shape) != shape:
            where = f"for u {(b, L, d)} and {n} states"
            raise ValueError(f"{name} must be {shape}, not {tuple(v.shape)}, {where}")
