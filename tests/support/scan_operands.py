"""Random operands of the selective scan, its gradients, and a comparison of results."""

import numpy as np
import torch
from torch import Tensor

from speechlab.layers.kernels.operands import Operands
from speechlab.layers.scan import selective_scan


def operands(
    b: int,
    L: int,
    d: int,
    n: int,
    dtype: torch.dtype = torch.float64,
    optional: bool = True,
    step: float = 0.1,
    grad: bool = False,
) -> Operands:
    """Random operands; `step`: about the size of softplus(dt + dt_bias)."""
    new = torch.Generator().manual_seed(b + 3 * L + 5 * d + 7 * n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=new, dtype=dtype)

    bias = torch.full((d,), float(np.log(np.expm1(step))), dtype=dtype) + 0.1 * normal(d)
    A = -0.1 - 4 * torch.rand(d, n, generator=new, dtype=dtype)
    dt = normal(b, L, d) if optional else normal(b, L, d) + bias
    extra = (normal(d), normal(b, L, d), bias, normal(b, d, n)) if optional else (None,) * 4
    x = Operands(normal(b, L, d), dt, A, normal(b, L, n), normal(b, L, n), *extra)
    return Operands(*(v if v is None else v.requires_grad_(grad) for v in x))


def with_gradients(x: Operands, backend: str, leak: float = 0.0) -> list[Tensor]:
    """y, last state and the gradients of a random function of both."""
    leaves = [v if v is None else v.detach().clone().requires_grad_() for v in x]
    y, last = selective_scan(*leaves, leak=leak, backend=backend)
    new = torch.Generator().manual_seed(1)
    dy, dlast = (torch.randn(v.shape, generator=new, dtype=torch.float64) for v in (y, last))
    present = [v for v in leaves if v is not None]
    return [y, last, *torch.autograd.grad((y * dy).sum() + (last * dlast).sum(), present)]


def assert_near(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    """Largest difference relative to the largest value, tensor by tensor."""
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape
        if b.numel():
            scale = b.detach().abs().max().item() + 1e-12
            assert (a.double() - b.double()).detach().abs().max().item() <= tolerance * scale, i
