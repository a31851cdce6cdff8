"""The selective scan of Mamba (arXiv 2312.00752, section 3.2 and algorithm 2) on any machine.

    step_t = softplus(dt_t + dt_bias)                the discretisation step, one per channel
    h_t = exp(step_t A) h_{t-1} + step_t B_t u_t     the recurrence, equation 2a
    y_t = (C_t . h_t + D u_t) silu(z_t)              the read-out, equation 2b; skip and gate

| here     | paper   | shape        | meaning                                             |
|----------|---------|--------------|-----------------------------------------------------|
| u        | x       | (b, L, d)    | input                                               |
| dt, step | Delta   | (b, L, d)    | step size before and after bias and softplus        |
| A        | A       | (d, n)       | real and negative: how fast a state forgets         |
| B, C     | B, C    | (b, L, n)    | what is written and what is read, for all channels  |
| D        | D       | (d,)         | skip from input to output (section 3.4)             |
| z        | gate    | (b, L, d)    | gate of the block around the scan (figure 3)        |
| state, h | h       | (b, d, n)    | the memory, all that a stream has to carry          |
| decay    | A bar   | (b, L, d, n) | exp(step A), in (0, 1]                              |
| drive    | B bar x | (b, L, d, n) | step B u, B discretised by Euler's rule             |

b examples, L frames, d channels, n states per channel.

No backend divides by a product of decays or exponentiates a positive sum: at steps that trained
weights reach, that overflows to NaN.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from speechlab.errors import UserError

Scan = tuple[Tensor, Tensor]

# Elements (b, steps, d, n) that `parallel` works on at once; the backward pass recomputes the others.
SEGMENT_ELEMENTS = 2**21


def reference(u, dt, A, B, C, D=None, z=None, dt_bias=None, state=None) -> Scan:
    """The recurrence as it is written, one step at a time: slow on purpose, the oracle of the tests."""
    step = F.softplus(dt if dt_bias is None else dt + dt_bias)
    decay = torch.exp(step.unsqueeze(-1) * A)  # (b, L, d, n)
    drive = (step * u).unsqueeze(-1) * B.unsqueeze(2)  # (b, L, d, n)
    h = _initial(state, u, A)
    reads = []
    # unbind: indexing would make the backward pass fill a whole (b, L, d, n) tensor for every step
    for a, x, c in zip(decay.unbind(1), drive.unbind(1), C.unbind(1), strict=True):
        h = a * h + x
        reads.append((h @ c.unsqueeze(-1)).squeeze(-1))  # (b, d)
    y = torch.stack(reads, 1) if reads else drive.sum(-1)
    return _skip_and_gate(y, u, D, z), h


def parallel(u, dt, A, B, C, D=None, z=None, dt_bias=None, state=None) -> Scan:
    """The recurrence in chunks that run side by side: any device, any floating type, every product at most 1."""
    step = F.softplus(dt if dt_bias is None else dt + dt_bias)
    h = _initial(state, u, A)
    length = max(1, SEGMENT_ELEMENTS // max(1, h.numel()))
    pieces = [x.split(length, 1) for x in (u, step, B, C)]
    recompute = torch.is_grad_enabled() and len(pieces[0]) > 1
    reads = []
    for piece in zip(*pieces, strict=True):
        if recompute:
            y, h = checkpoint(_segment, *piece, A, h, use_reentrant=False, preserve_rng_state=False)
        else:
            y, h = _segment(*piece, A, h)
        reads.append(y)
    return _skip_and_gate(torch.cat(reads, 1), u, D, z), h


def _segment(u, step, B, C, A, h) -> Scan:
    """One piece of `parallel`: scan K chunks of T steps at once from zero, then hand the state from chunk to chunk."""
    b, L, d = u.shape
    if L == 0:
        return u * 1, h
    T = max(1, int(L**0.5))
    K = -(-L // T)
    rest = (0, 0, 0, K * T - L)  # a step of zero keeps the state: padding changes nothing
    step, drive, B = F.pad(step, rest), F.pad(step * u, rest), F.pad(B, rest)
    decay = torch.exp(step.unsqueeze(-1) * A).view(b, K, T, d, -1)
    drive = (drive.unsqueeze(-1) * B.unsqueeze(2)).view(b, K, T, d, -1)
    local, kept = (
        [],
        [],
    )  # state of a chunk that began at zero; what it keeps of the state before it
    for t, (a, x) in enumerate(zip(decay.unbind(2), drive.unbind(2), strict=True)):
        local.append(x if t == 0 else a * local[-1] + x)  # (b, K, d, n)
        kept.append(a if t == 0 else a * kept[-1])
    before = []
    for a, x in zip(kept[-1].unbind(1), local[-1].unbind(1), strict=True):
        before.append(h)
        h = a * h + x
    states = torch.stack(local, 2) + torch.stack(kept, 2) * torch.stack(before, 1).unsqueeze(2)
    states = states.view(b, K * T, d, -1)[:, :L]
    return (states @ C.unsqueeze(-1)).squeeze(-1), h


def _initial(state: Tensor | None, u: Tensor, A: Tensor) -> Tensor:
    return u.new_zeros(u.shape[0], *A.shape) if state is None else state


def _skip_and_gate(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    if D is not None:
        y = y + D * u
    return y if z is None else y * F.silu(z)


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
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from speechlab.layers import fused

    return fused.forward(u, dt, A, B, C, D, z, dt_bias, state, keep)


@_fused_forward.register_fake
def _(u, dt, A, B, C, D, z, dt_bias, state, keep):
    b, L, d = u.shape
    chunks = (L + 31) // 32 if keep else 0
    shapes = (b, L, d), (b, d, A.shape[1]), (b, chunks, A.shape[1], d)
    return tuple(u.new_empty(shape) for shape in shapes)


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
) -> list[Tensor]:
    from speechlab.layers import fused

    return list(fused.backward(dy, dlast, kept, u, dt, A, B, C, D, z, dt_bias))


@_fused_backward.register_fake
def _(dy, dlast, kept, u, dt, A, B, C, D, z, dt_bias):
    d, n = A.shape
    gate = u.shape if z is not None else (0, 0, 0)
    shapes = u.shape, u.shape, (d, n), B.shape, B.shape, (d,), gate, (d,), (u.shape[0], d, n)
    return [u.new_empty(shape) for shape in shapes]


def _save(ctx, inputs, output) -> None:
    *tensors, state, _ = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.given = [x is not None for x in (*tensors, state)]
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dlast, _):
    if dy is None and dlast is None:
        return (None,) * 10
    gradients = _fused_backward(dy, dlast, *ctx.saved_tensors)
    return *(g if given else None for g, given in zip(gradients, ctx.given, strict=True)), None


_fused_forward.register_autograd(_backward, setup_context=_save)


def numba(u, dt, A, B, C, D=None, z=None, dt_bias=None, state=None) -> Scan:
    """One fused pass on the CPU, float32 or float64; the backward pass recomputes (`kernels.py`)."""
    given = (u, dt, A, B, C, D, z, dt_bias, state)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    y, last, _ = _fused_forward(*given, keep)
    return y, last


def cuda(u, dt, A, B, C, D=None, z=None, dt_bias=None, state=None) -> Scan:
    """The kernel of mamba-ssm. It takes no initial state: where one is given, `parallel` computes."""
    if state is not None or u.shape[1] == 0:
        return parallel(u, dt, A, B, C, D, z, dt_bias, state)
    kernel = import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    u_, dt_, B_, C_, z_ = (None if x is None else x.transpose(1, 2) for x in (u, dt, B, C, z))
    options = {"delta_bias": dt_bias, "delta_softplus": True, "return_last_state": True}
    y, last = kernel(u_, dt_, A, B_, C_, D, z_, **options)
    return y.transpose(1, 2), _LastState.apply(last.detach(), u, dt, A, B, dt_bias)


class _LastState(torch.autograd.Function):
    """The gradient of the last state, which mamba-ssm's backward pass leaves out: by `parallel`, if asked."""

    @staticmethod
    def forward(ctx, last, u, dt, A, B, dt_bias):
        ctx.save_for_backward(u, dt, A, B, dt_bias)
        return last.clone()

    @staticmethod
    def backward(ctx, dlast):
        inputs = [x if x is None else x.detach().requires_grad_() for x in ctx.saved_tensors]
        u, dt, A, B, dt_bias = inputs
        with torch.enable_grad():
            last = parallel(u, dt, A, B, torch.zeros_like(B), dt_bias=dt_bias)[1]
            found = iter(torch.autograd.grad(last, [x for x in inputs if x is not None], dlast))
        return None, *(None if x is None else next(found) for x in inputs)


BACKENDS: dict[str, Callable[..., Scan]] = {
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
    modules = {"numba": "speechlab.layers.fused", "cuda": "mamba_ssm.ops.selective_scan_interface"}
    try:
        import_module(modules.get(name, __name__))
    except (ImportError, OSError) as error:  # OSError: a compiled library that does not load
        package = {"cuda": "mamba-ssm"}.get(name, name)
        return f"{package} does not import ({error})"
    return None


def _unfit(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why a backend cannot take such tensors; None if it can."""
    device = {"numba": "cpu", "cuda": "cuda"}.get(name, device_type)
    if device != device_type:
        return f"it needs tensors on {device}, these are on {device_type}"
    if name == "cuda" and dtype == torch.float64:
        return "it has no float64"
    return _missing(name)


@torch.compiler.assume_constant_result
def default_backend(device_type: str, dtype: torch.dtype) -> str:
    """Name of the backend that takes such tensors where none is named; SPEECHLAB_SCAN overrides."""
    if name := os.environ.get("SPEECHLAB_SCAN"):
        return name
    fused = {"cuda": "cuda", "cpu": "numba"}.get(device_type, "parallel")
    if dtype == torch.float64 or _unfit(fused, device_type, dtype):
        return "parallel"
    return fused


@torch.compiler.assume_constant_result
def _require(name: str, device_type: str, dtype: torch.dtype) -> str:
    if name not in BACKENDS:
        raise UserError(f"scan backend {name!r} is unknown: choose one of {', '.join(BACKENDS)}")
    if reason := _unfit(name, device_type, dtype):
        fix = "name another one or leave the choice open (no backend=, no SPEECHLAB_SCAN)"
        raise UserError(f"scan backend {name!r} is not available: {reason}; {fix}")
    return name


def backend_status() -> dict[str, str]:
    """Per backend "available (...)" or the reason why it is not; imports what it reports on."""
    notes = {
        "reference": "any device, slow on purpose",
        "parallel": "any device",
        "numba": f"numba {_version('numba')}, CPU, float32 and float64",
        "cuda": f"mamba-ssm {_version('mamba-ssm')}, float32; parallel where a state is given",
    }
    reasons = {name: _missing(name) for name in BACKENDS}
    return {
        name: f"not available: {why}" if (why := reasons[name]) else f"available ({notes[name]})"
        for name in BACKENDS
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
    backend: str | None = None,
) -> Scan:
    """The scan over u (b, L, d) from `state` (None: zeros): y (b, L, d), last state (b, d, n).

    Letters and shapes: see the head of the module. Lower precisions and autocast are computed in
    float32 (float64 where any input is float64): y has the type of u, the state that of computing.
    A sequence cut in two, with the state carried over, gives what the whole gives; by `numba` bit
    for bit. `numba` and `cuda` can be differentiated once, the others any number of times.
    Raises ValueError for shapes that do not fit, UserError for a backend that cannot run.
    """
    given = {
        "u": u,
        "dt": dt,
        "A": A,
        "B": B,
        "C": C,
        "D": D,
        "z": z,
        "dt_bias": dt_bias,
        "state": state,
    }
    _check_shapes(given)
    present = [x for x in given.values() if x is not None]
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in present) else torch.float32
    device = u.device.type
    name = _require(backend or default_backend(device, dtype), device, dtype)
    plain = torch.autocast(device, enabled=False) if device in ("cpu", "cuda") else nullcontext()
    with plain:
        cast = {key: x if x is None else x.to(dtype) for key, x in given.items()}
        y, last = BACKENDS[name](**cast)
    return y.to(u.dtype), last


def _check_shapes(given: dict[str, Tensor | None]) -> None:
    u, A = given["u"], given["A"]
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(
            f"u must be (b, L, d) and A (d, n), not {tuple(u.shape)} and {tuple(A.shape)}"
        )
    (b, L, d), n = u.shape, A.shape[1]
    wanted = dict.fromkeys(("dt", "z"), (b, L, d)) | dict.fromkeys(("B", "C"), (b, L, n))
    wanted |= {"A": (d, n), "D": (d,), "dt_bias": (d,), "state": (b, d, n)}
    for name, shape in wanted.items():
        x = given[name]
        if x is not None and tuple(x.shape) != shape:
            raise ValueError(
                f"{name} must be {shape}, not {tuple(x.shape)}, for u {(b, L, d)} and {n} states"
            )
