"""What a selective scan works on; `layers.scan` explains each letter."""

from typing import NamedTuple

from torch import Tensor


class Operands(NamedTuple):
    """Arguments of a backend, of one type and on one device."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    state: Tensor | None
