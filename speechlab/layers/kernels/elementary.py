# ruff: noqa: ANN001, ANN201, ANN202
"""Elementary functions that vectorise inside numba kernels: exp2, softplus, SiLU.

float32: polynomials, 1.7e-7 relative, no vector maths library needed. float64: the functions of the
library, exact and slow, for gradient checks. k is the tuple of CONSTANTS in the type of the kernel;
it comes from an array, because literals are reloaded in every iteration of the inner loop (1.3
times slower).
"""

import hashlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

# No "nnan" and "ninf": NaN in is NaN out. No "arcp": a reciprocal estimate turns 1 / inf into NaN.
EXACT = {"contract", "nsz"}
SUMS = EXACT | {"reassoc"}  # sums over channels may be reordered, or they would not vectorise
ZERO, ONE = np.float32(0), np.float32(1)  # the same number in both precisions
LOG2_E, LOW, ROUND = 1 / math.log(2), -127.0, 1.5 * 2**23
# 2^f for f in [-1/2, 1/2] from the highest power: least relative error, exactly 1 at 0
EXP2 = (1.3264653e-3, 9.671511e-3, 5.550734e-2, 2.4022242e-1, 6.9314700e-1, 1.0)
# log(1 + w) / w for w in [0, 1]: least relative error, exactly 1 at 0
LOG1P = (5.3648246e-3, -3.0065795e-2, 7.9204445e-2, -1.3753803e-1, 1.9153656e-1)
LOG1P += (-2.4857163e-1, 3.3321324e-1, -4.9999648e-1, 1.0)
CONSTANTS = (LOG2_E, LOW, ROUND, *EXP2)


def inline(flags: set[str]):
    """Decorator of a helper that is inlined into its kernel; no reference counts, see there."""
    return njit(fastmath=flags, error_model="numpy", forceinline=True, _nrt=False)


def kernel(*modules: ModuleType):
    """Decorator that compiles a kernel; with a cache on disk if a folder for it is writable.

    modules: those with functions that are compiled in. Numba's cache watches the kernel's file
    only, so the kernel's name changes with them.
    """
    parts = b"".join(Path(module.__file__).read_bytes() for module in modules)

    def compiled(function):
        options = {"fastmath": SUMS, "error_model": "numpy", "nogil": True, "_nrt": False}
        function.__qualname__ += hashlib.sha256(parts).hexdigest()[:8]
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no folder for the cache
            return njit(**options)(function)

    return compiled


@intrinsic
def _bits(context, x):
    def convert(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), convert


@intrinsic
def _float(context, x):
    def convert(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), convert


@intrinsic
def touch(context, x, at):
    """Ask for the cache line of x[at], which may lie beyond the end."""

    def ask(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        flag, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [address, flag(0), flag(2), flag(1)])  # read, to the second level
        return context.get_dummy_value()

    return types.void(x, types.int64), ask


def exp2(x, k):
    """2**x for x up to 127: 0 below -126.5, NaN for NaN."""


@overload(exp2, jit_options={"fastmath": EXACT, "forceinline": True})
def _exp2_by_type(x, k):
    def polynomial(x, k):
        _, low, magic, c5, c4, c3, c2, c1, c0 = k
        x = low if x < low else x
        shifted = x + magic  # rounds x to an integer and leaves it in the low bits
        f = x - (shifted - magic)
        p = ((((c5 * f + c4) * f + c3) * f + c2) * f + c1) * f + c0
        return p * _float((_bits(shifted) + np.int32(127 - 0x4B400000)) << np.int32(23))

    def library(x, k):
        return np.exp2(x)

    return polynomial if x == types.float32 else library


def _log1p(w):
    """log(1 + w) for w in [0, 1]."""


@overload(_log1p, jit_options={"fastmath": EXACT, "forceinline": True, "error_model": "numpy"})
def _log1p_by_type(w):
    c8, c7, c6, c5, c4, c3, c2, c1, c0 = (np.float32(c) for c in LOG1P)

    def polynomial(w):
        p = (((c8 * w + c7) * w + c6) * w + c5) * w + c4
        return w * ((((p * w + c3) * w + c2) * w + c1) * w + c0)

    def library(w):
        return math.log1p(w)

    return polynomial if w == types.float32 else library


@inline(EXACT)
def softplus(x, k):
    """log(1 + e^x) and its slope, the logistic function."""
    w = exp2(-abs(x) * k[0], k)
    return (x if x > ZERO else ZERO) + _log1p(w), (ONE if x >= ZERO else w) / (ONE + w)


@inline(EXACT)
def silu(x, k):
    """x sigmoid(x) and its slope."""
    w = exp2(-abs(x) * k[0], k)
    s = (ONE if x >= ZERO else w) / (ONE + w)
    return x * s, s * (ONE + x * (ONE - s))


@inline(EXACT)
def registers(constants):
    """The array of CONSTANTS as k."""
    c = constants
    return c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8]
