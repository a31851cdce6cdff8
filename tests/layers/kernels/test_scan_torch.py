"""Laws of the fused scan: the same numbers from every thread, process and installation."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speechlab.layers import scan
from speechlab.layers.kernels import scan_torch
from speechlab.layers.kernels.operands import Operands
from speechlab.layers.scan import selective_scan
from tests.support.scan_operands import assert_near, operands, with_gradients
from tests.support.warm import ROOT


@pytest.fixture
def two_threads(monkeypatch):
    """Two threads, also for small work."""
    monkeypatch.setattr(scan_torch, "SERIAL_FORWARD", 0)
    monkeypatch.setattr(scan_torch, "SERIAL_BACKWARD", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1, 37, 128, 5), (3, 40, 300, 16), (2, 33, 7, 3)])
def test_threads_change_nothing(shape, two_threads):
    x = operands(*shape, torch.float32)
    two = with_gradients(x, "numba")
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(two, with_gradients(x, "numba"), strict=True))


def test_several_callers_at_once(two_threads):
    inputs = [operands(2, 60 + i, 200, 8, torch.float32) for i in range(4)]
    alone = [with_gradients(x, "numba") for x in inputs]
    with ThreadPoolExecutor(4) as callers:
        together = list(callers.map(lambda x: with_gradients(x, "numba"), inputs * 3))
    for found, wanted in zip(together, alone * 3, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


class Scans(Dataset):
    """Item i: the i-th scan, computed by whoever asks."""

    def __init__(self, inputs: list[Operands]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> Tensor:
        return selective_scan(*self.inputs[i], backend="numba")[0][0]


def as_numpy(x: Operands) -> np.ndarray:
    return selective_scan(*x, backend="numba")[0].numpy()


def test_forked_workers(two_threads):
    """Processes forked after the threads were in use."""
    scans = Scans([operands(2, 50 + i, 200, 8, torch.float32) for i in range(6)])
    here = [scans[i] for i in range(len(scans))]
    options = {"batch_size": None, "num_workers": 2, "multiprocessing_context": "fork"}
    for found, wanted in zip(DataLoader(scans, timeout=600, **options), here, strict=True):
        assert torch.equal(found, wanted)


def test_fork_with_threads(two_threads):
    """The child has no thread of the parent's pool, and starts its own."""
    x = operands(2, 50, 200, 8, torch.float32)
    wanted = as_numpy(x)
    with multiprocessing.get_context("fork").Pool(1) as child:
        assert (child.apply_async(as_numpy, (x,)).get(600) == wanted).all()


def test_operator_contracts():
    for x in (operands(2, 7, 5, 3, torch.float32, optional) for optional in (True, False)):
        for grad in (True, False):
            given = [v if v is None else v.detach().requires_grad_(grad) for v in x]
            torch.library.opcheck(scan._fused_forward, (*given, 0.1, grad))


def test_compiles_into_one_graph():
    x = operands(2, 20, 5, 3, torch.float32)
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    leaves = [v.clone().requires_grad_() for v in x]
    y, last = compiled(*leaves)
    found = [y, last, *torch.autograd.grad(y.sum() + last.sum(), leaves)]
    y, last = selective_scan(*leaves)
    wanted = [y, last, *torch.autograd.grad(y.sum() + last.sum(), leaves)]
    assert_near(found, wanted, 1e-6)


def test_sliced_inputs_are_not_copied():
    x = operands(2, 33, 40, 5, torch.float32)
    wanted = with_gradients(x, "numba")
    both = torch.cat([x.u, x.z], -1)  # as in_proj gives them
    shared = torch.cat([x.dt[..., :3], x.B, x.C], -1)
    u, z = both.chunk(2, -1)
    B, C = shared[..., 3:8], shared[..., 8:]
    flat, *_ = scan_torch._flat(z)
    assert flat.ctypes.data == z.data_ptr()
    across = x.dt.transpose(1, 2).contiguous().transpose(1, 2)  # channels no neighbours: a copy
    sliced = x._replace(u=u, z=z, B=B, C=C, dt=across)
    y, last = selective_scan(*sliced, backend="numba")
    assert torch.equal(y, wanted[0]) and torch.equal(last, wanted[1])
    expanded = x._replace(u=x.u[:1].expand(2, -1, -1), B=x.B[:, :1].expand(-1, 33, -1))
    found = selective_scan(*expanded, backend="numba")
    assert_near(found, selective_scan(*expanded, backend="reference"), 1e-5)


def test_numba_is_differentiated_once():
    x = operands(1, 5, 2, 2, grad=True)
    y, _ = selective_scan(*x, backend="numba")
    (slope,) = torch.autograd.grad(y.square().sum(), x.u, create_graph=True)
    with pytest.raises(RuntimeError, match="selective_scan_backward"):
        slope.sum().backward()


def test_growing_states_are_refused_by_numba():
    x = operands(1, 5, 4, 3, torch.float32)
    with pytest.raises(ValueError, match="must not be positive"):
        selective_scan(*x._replace(A=-x.A), backend="numba")


def run(code: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_leaves_numba_alone():
    code = "import sys, speechlab, speechlab.layers.scan; print('numba' in sys.modules)"
    assert run(code, ROOT).strip() == "False"


COMPILED = """
import re, torch
from speechlab.layers.kernels import scan as kernels
from speechlab.layers.scan import selective_scan
ones = [torch.ones(1, 9, 128)] * 2 + [-torch.ones(128, 16)] + [torch.ones(1, 9, 16)] * 2
y, expected = (selective_scan(*ones, backend=backend)[0] for backend in ("numba", "reference"))
assert torch.allclose(y, expected)
for tensor in ones:
    tensor.requires_grad_()
selective_scan(*ones, backend="numba")[0].sum().backward()
for kernel in (kernels.forward, kernels.backward):
    [code] = kernel.inspect_llvm().values()
    products = re.findall(r"= fmul [a-z ]*(<\\d+ x )?float", code)
    print(sum(map(bool, products)), len(products))
"""


def test_read_only_install(tmp_path):
    """No folder for compiled kernels: they are compiled in the process, and work.

    Half of the compiled products are of vectors; the other half is for the last channels.
    """
    package = tmp_path / "speechlab"
    shutil.copytree(ROOT / "speechlab", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "layers/kernels/__pycache__").touch()  # a file where the folder would be
    nowhere = "/dev/null/nowhere"
    out = run(COMPILED, tmp_path, HOME=nowhere, XDG_CACHE_HOME=nowhere, NUMBA_CACHE_DIR=nowhere)
    for n_vector, n_products in (map(int, line.split()) for line in out.splitlines()):
        assert n_vector >= 0.4 * n_products > 0
    assert len(out.splitlines()) == 2
