"""Elementary functions that vectorise inside numba kernels, with no vector maths library: exp2, softplus, SiLU.

float32: polynomials, 1.7e-7 relative. float64: the library's functions, exact and slow, for gradient checks.
k is the tuple of CONSTANTS in the type of the kernel. It comes from an array, because literals would be loaded anew in
every turn of the inner loop (1.3x slower).
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

# No "nnan" and "ninf": NaN in is NaN out. No "arcp": a reciprocal estimate turns 1 / inf into NaN.
EXACT = {"contract", "nsz"}
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)  # the same number in both precisions
LOG2_E, LOW, HIGH, ROUND = 1 / math.log(2), -127.0, 128.0, 1.5 * 2**23
# 2^f for f in [-1/2, 1/2] from the highest power: least relative error, exactly 1 at 0
EXP2 = (1.3264653e-3, 9.671511e-3, 5.550734e-2, 2.4022242e-1, 6.9314700e-1, 1.0)
CONSTANTS = (LOG2_E, LOW, HIGH, ROUND, *EXP2)


def inline(flags: set[str]):
    """Decorator of a helper that disappears in its kernel; without reference counts, see `kernels.py`."""
    return njit(fastmath=flags, error_model="numpy", forceinline=True, _nrt=False)


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


def exp2(x, k):
    """2**x: 0 below -126.5, inf above 127.5, NaN for NaN."""


@overload(exp2, jit_options={"fastmath": EXACT, "forceinline": True})
def _exp2_by_type(x, k):
    def polynomial(x, k):
        _, low, high, magic, c5, c4, c3, c2, c1, c0 = k
        x = low if x < low else x
        x = high if x > high else x
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
    c13, c11, c9, c7, c5, c3 = (np.float32(1 / i) for i in (13, 11, 9, 7, 5, 3))

    def series(w):
        s = w / (TWO + w)  # log1p(w) = 2 atanh(s), s <= 1/3
        q = s * s
        return TWO * s * ((((((c13 * q + c11) * q + c9) * q + c7) * q + c5) * q + c3) * q + ONE)

    def library(w):
        return math.log1p(w)

    return series if w == types.float32 else library


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
    return c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9]
