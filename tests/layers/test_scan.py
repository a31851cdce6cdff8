"""Laws of the selective scan: every backend is the recurrence, whatever the shape or the cut."""

import math
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.errors import UserError
from speechlab.layers import scan
from speechlab.layers.kernels.operands import Operands
from speechlab.layers.scan import BACKENDS, selective_scan
from tests.support.scan_operands import assert_near, operands, with_gradients
from tests.support.signals import arrays

HERE = ("reference", "parallel", "numba")  # cuda: by a stand-in, below
FAST = ("parallel", "numba")
ROWS = ("u", "delta", "z", "y", "B", "C")  # golden tensors, channels first


@pytest.mark.parametrize("backend", HERE)
def test_published_implementation(shared, backend):
    folder = shared / "golden" / "mamba_layer" / "selective_scan"
    A, D, dt_bias, last, *rows = arrays(folder, "A", "D", "delta_bias", "last_state", *ROWS)
    u, dt, z, y, B, C = (v.transpose(1, 2) for v in rows)
    found = selective_scan(u, dt, A, B, C, D, z, dt_bias, backend=backend)
    assert_near(found, [y, last], 1e-5)


@given(
    b=st.integers(1, 3),
    L=st.integers(0, 75),
    d=st.sampled_from([1, 3, 16, 40, 65, 129, 150]),
    n=st.sampled_from([1, 3, 8, 16, 17]),
    optional=st.booleans(),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_backends_agree(b, L, d, n, optional):
    x = operands(b, L, d, n, optional=optional)
    wanted = with_gradients(x, "reference") if L else None
    for backend in FAST if L else HERE:
        if L:
            assert_near(with_gradients(x, backend), wanted, 1e-10)
        y, last = selective_scan(*x, backend=backend)
        assert y.shape == (b, L, d) and last.shape == (b, d, n)
    single = Operands(*(v if v is None else v.float() for v in x))
    if L:
        assert_near(with_gradients(single, "numba"), wanted, 1e-5)


@pytest.mark.parametrize("leak", [0.02, 3.0])
@pytest.mark.parametrize("shape", [(2, 75, 150, 16), (1, 37, 65, 5), (3, 33, 16, 17)])
def test_leaky_backends_agree(shape, leak):
    x = operands(*shape)
    wanted, single = with_gradients(x, "reference", leak), Operands(*(v.float() for v in x))
    for backend in FAST:
        assert_near(with_gradients(x, backend, leak), wanted, 1e-10)
        assert_near(with_gradients(single, backend, leak), wanted, 1e-5)


def test_a_leaky_scan_is_the_scan_of_a_growing_input():
    """With w_t = exp(leak t) it is the scan of u w, divided by w."""
    x, leak = operands(2, 50, 5, 3), 0.1
    w = torch.exp(leak * torch.arange(1, 51, dtype=torch.float64))[:, None]
    y, last = selective_scan(*x._replace(u=x.u * w), backend="reference")
    found = selective_scan(*x, leak=leak, backend="reference")
    assert_near(found, [y / w, last / w[-1]], 1e-12)


@pytest.mark.parametrize("backend", HERE)
def test_zero_input_decays_with_the_leak_or_faster(backend):
    x = operands(2, 50, 5, 3)
    _, last = selective_scan(*x._replace(u=0 * x.u), leak=0.1, backend=backend)
    assert (last.abs() <= x.state.abs() * math.exp(-5)).all()
    _, last = selective_scan(*x._replace(u=0 * x.u, A=0 * x.A), leak=0.1, backend=backend)
    assert_near([last], [x.state * math.exp(-5)], 1e-12)


@pytest.mark.parametrize("leak", [-0.1, float("nan")])
def test_a_state_does_not_grow(leak):
    with pytest.raises(ValueError, match="leak must be 0 or more"):
        selective_scan(*operands(1, 5, 4, 3), leak=leak)


@pytest.mark.parametrize("backend", HERE)
def test_long_sequences_lose_no_accuracy(backend):
    x = operands(1, 4000, 20, 4)
    single = Operands(*(v.float() for v in x))
    assert_near(with_gradients(single, backend), with_gradients(x, "parallel"), 1e-5)


@pytest.mark.parametrize(
    ("backend", "segment", "shape", "leak"),
    [
        ("reference", 0, (2, 9, 3, 2), 0.1),
        ("numba", 0, (2, 9, 3, 2), 0.0),
        ("numba", 0, (1, 35, 2, 9), 0.1),  # over chunks and tiles
        ("parallel", 2**21, (2, 9, 3, 2), 0.0),
        ("parallel", 60, (2, 9, 3, 2), 0.1),
    ],
)
def test_gradients(backend, segment, shape, leak, monkeypatch):
    monkeypatch.setattr(scan, "SEGMENT_ELEMENTS", segment)
    scanned = partial(selective_scan, backend=backend, leak=leak)
    assert torch.autograd.gradcheck(scanned, tuple(operands(*shape, grad=True)))
    if backend != "numba":
        assert torch.autograd.gradgradcheck(scanned, tuple(operands(1, 5, 2, 2, grad=True)))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("n", "step"), [(16, 0.26), (16, 1.0), (16, 2.6), (64, 0.26), (64, 5.0)])
def test_stable_where_the_log_form_overflows(backend, n, step):
    """step A reaches 320 per step: exp of minus its cumulative sum is not a number."""
    x = operands(1, 200, 32, n, step=step)
    x = x._replace(A=-torch.arange(1.0, n + 1, dtype=torch.float64).repeat(32, 1))
    single = Operands(*(v.float() for v in x))
    assert_near(with_gradients(single, backend), with_gradients(x, "reference"), 1e-5)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", ["u", "dt", "B", "C", "z", "A", "D", "dt_bias", "state"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_stays_where_it_belongs(backend, name, bad):
    """Outputs are bad where the plain recurrence has them bad: there and later, nowhere else."""
    x = operands(2, 41, 70, 5, torch.float32)
    where = {"u": (1, 20, 3), "dt": (1, 20, 3), "z": (1, 20, 3), "B": (1, 20, 2), "C": (1, 20, 2)}
    where |= {"A": (3, 2), "D": (3,), "dt_bias": (3,), "state": (1, 3, 2)}
    if name == "A":
        bad = -bad  # an infinitely fast decay forgets at once
    getattr(x, name)[where[name]] = bad
    wanted, found = (selective_scan(*x, backend=other) for other in ("reference", backend))
    spread = sum((~v.isfinite()).sum().item() for v in wanted)
    assert spread > 0 or name == "A"
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
        assert_near([a.nan_to_num(0, 0, 0)], [b.nan_to_num(0, 0, 0)], 1e-5)


@pytest.mark.parametrize("backend", HERE)
@given(cuts=st.lists(st.integers(0, 80), max_size=6), leak=st.sampled_from([0.0, 0.1]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_carried_state(backend, cuts, leak):
    """A sequence in pieces, the state handed on, is the whole; by numba bit for bit."""
    x = operands(2, 80, 70, 5, torch.float32 if backend == "numba" else torch.float64)
    scanned = partial(selective_scan, backend=backend, leak=leak)
    whole = scanned(*x)
    state, parts = x.state, []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 80], strict=True):
        u, dt, B, C, z = (v[:, start:end] for v in (x.u, x.dt, x.B, x.C, x.z))
        y, state = scanned(u, dt, x.A, B, C, x.D, z, x.dt_bias, state)
        parts.append(y)
    found = torch.cat(parts, 1), state
    if backend == "numba":
        assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))
    else:
        assert_near(found, whole, 1e-12)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_prefix(backend, leak):
    """What comes later changes nothing before."""
    x = operands(2, 50, 6, 5)
    scanned = partial(selective_scan, backend=backend, leak=leak)
    y, _ = scanned(*x)
    u, dt, B, C, z = (v[:, :23] for v in (x.u, x.dt, x.B, x.C, x.z))
    short, _ = scanned(u, dt, x.A, B, C, x.D, z, x.dt_bias, x.state)
    assert_near([short], [y[:, :23]], 1e-12)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(backend, dtype):
    x = operands(2, 30, 6, 5, torch.float32)
    low = x._replace(**{name: getattr(x, name).to(dtype) for name in ("u", "dt", "B", "C", "z")})
    y, last = selective_scan(*low, backend=backend)
    assert y.dtype == dtype and last.dtype == torch.float32
    wanted = selective_scan(*(v.float() for v in low), backend=backend)
    assert torch.equal(y, wanted[0].to(dtype)) and torch.equal(last, wanted[1])


@pytest.mark.parametrize("backend", HERE)
def test_autocast_changes_nothing(backend):
    leaves = [v.requires_grad_() for v in operands(2, 30, 6, 5, torch.float32)]
    wanted = selective_scan(*leaves, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = selective_scan(*leaves, backend=backend)
    found, wanted = (
        [y, last, *torch.autograd.grad(y.sum() + last.sum(), leaves)] for y, last in (found, wanted)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_float64_is_never_narrowed():
    x = operands(1, 20, 4, 3)
    mixed = Operands(*(v.float() for v in x))._replace(A=x.A)
    for backend in (None, *HERE):
        assert selective_scan(*mixed, backend=backend)[1].dtype == torch.float64


@pytest.mark.parametrize("backend", HERE)
def test_empty(backend):
    x = operands(2, 0, 5, 3, grad=True)
    y, last = selective_scan(*x, backend=backend)
    assert y.shape == (2, 0, 5) and torch.equal(last, x.state)
    (y.sum() + last.sum()).backward()
    assert torch.equal(x.state.grad, torch.ones_like(x.state))
    assert x.u.grad is None or x.u.grad.shape == (2, 0, 5)


def test_only_one_of_the_outputs_is_used():
    x = operands(2, 40, 5, 3)
    for which in (0, 1):
        found, wanted = [], []
        for backend, grads in (("numba", found), ("reference", wanted)):
            leaves = [v.clone().requires_grad_() for v in x]
            selective_scan(*leaves, backend=backend)[which].sum().backward()
            grads += [torch.zeros_like(v) if v.grad is None else v.grad for v in leaves]
        assert_near(found, wanted, 1e-10)


@pytest.mark.parametrize("name", ["dt", "A", "B", "C", "D", "z", "dt_bias", "state"])
def test_wrong_shapes_are_named(name):
    x = operands(2, 6, 5, 3)
    with pytest.raises(ValueError, match="u must be" if name == "A" else f"{name} must be"):
        selective_scan(*x._replace(**{name: getattr(x, name)[None]}))


def test_choice(monkeypatch):
    monkeypatch.delenv("SPEECHLAB_SCAN", raising=False)
    assert scan.default_backend("cpu", torch.float32) == "numba"
    assert scan.default_backend("cpu", torch.bfloat16) == "numba"
    assert scan.default_backend("cpu", torch.float64) == "parallel"
    assert scan.default_backend("mps", torch.float32) == "parallel"
    monkeypatch.setattr(scan, "_missing", lambda name: None)
    assert scan.default_backend("cuda", torch.float32) == "cuda"
    assert scan.default_backend("cuda", torch.float64) == "parallel"
    monkeypatch.setattr(scan, "_missing", lambda name: "gone")
    assert scan.default_backend("cpu", torch.float32) == "parallel"
    assert scan.default_backend("cuda", torch.float32) == "parallel"


def test_override_and_refusals(monkeypatch):
    x = operands(1, 5, 4, 3, torch.float32)
    called = []
    monkeypatch.setitem(BACKENDS, "reference", lambda x, leak: called.append(x) or (x.u, x.state))
    monkeypatch.setenv("SPEECHLAB_SCAN", "reference")
    selective_scan(*x)
    assert len(called) == 1
    selective_scan(*x, backend="parallel")  # the argument is nearer than the environment
    assert len(called) == 1
    monkeypatch.setenv("SPEECHLAB_SCAN", "fastest")
    with pytest.raises(UserError, match=r"'fastest' is unknown: choose one of reference, parallel"):
        selective_scan(*x)
    with pytest.raises(UserError, match=r"'cuda' is not available: .*not on cpu"):
        selective_scan(*x, backend="cuda")
    monkeypatch.setattr(scan, "_missing", lambda name: "numba does not import (No module)")
    with pytest.raises(UserError, match=r"'numba' is not available: numba does not import"):
        selective_scan(*x, backend="numba")


def test_status_of_every_backend():
    status = scan.backend_status()
    assert list(status) == list(BACKENDS)
    assert status["numba"].startswith("available (numba ")
    if not torch.cuda.is_available():
        assert status["cuda"] == "not available: PyTorch sees no CUDA device"


@pytest.fixture
def stand_in(monkeypatch):
    """mamba_ssm: channels first, no initial state, no gradient through the last one."""

    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state):
        assert delta_softplus and return_last_state and u.dtype == torch.float32
        u, delta, B, C = (v.transpose(1, 2) for v in (u, delta, B, C))
        z = None if z is None else z.transpose(1, 2)
        y, last = scan.reference(Operands(u, delta, A, B, C, D, z, delta_bias, None))
        return y.transpose(1, 2), last.detach()

    name = "mamba_ssm.ops.selective_scan_interface"
    module = ModuleType(name)
    module.selective_scan_fn = selective_scan_fn
    for parent in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(scan, "_unfit", lambda *_: None)  # let CPU tensors through


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("leak", [0.0, 0.1, 3.0])  # the last one by `parallel`
def test_cuda_backend(stand_in, optional, state, leak):
    x = operands(2, 20, 5, 3, torch.float32, optional)
    x = x._replace(state=operands(2, 20, 5, 3, torch.float32).state if state else None)
    assert_near(with_gradients(x, "cuda", leak), with_gradients(x, "reference", leak), 1e-5)
