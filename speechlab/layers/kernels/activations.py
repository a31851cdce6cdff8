# ruff: noqa: ANN001, ANN201
"""Activations, norms and residuals for the kernels of `step.py`.

All act on float32 rows; a flat array of rows comes with the distance between them, `width`.
k: the constants of `elementary`.
"""

import math

import numpy as np

from speechlab.layers.kernels.elementary import EXACT, ONE, SUMS, ZERO, exp2, inline, silu
from speechlab.layers.kernels.matmul import LANES


@inline(EXACT)
def width_of(n_out):
    """`matmul.padded`, for kernels."""
    return (n_out + LANES - 1) // LANES * LANES


@inline(EXACT)
def sigmoid(x, k):
    """1 / (1 + e^-x)"""
    w = exp2(-abs(x) * k[0], k)
    return (ONE if x >= ZERO else w) / (ONE + w)


@inline(EXACT)
def tanh(x, k):
    """1.2e-7 absolute."""
    w = exp2(-abs(x) * (k[0] + k[0]), k)
    y = (ONE - w) / (ONE + w)
    return y if x >= ZERO else -y


@inline(EXACT)
def relu(values):
    """In place; NaN stays NaN."""
    for j in range(values.size):
        x = values[j]
        values[j] = ZERO if x < ZERO else x


@inline(EXACT)
def glu(rows, width, y, k):
    """First half of each row times the sigmoid of the second."""
    n = y.shape[1]
    for t in range(y.shape[0]):
        a, b, target = rows[t * width :], rows[t * width + n :], y[t]
        for j in range(n):
            target[j] = a[j] * sigmoid(b[j], k)


@inline(SUMS)
def norm_frame(x, weight, bias, eps, y):
    """Layer normalisation of one frame; x and y may be the same."""
    n, share = weight.size, ONE / np.float32(weight.size)
    mean, spread = ZERO, ZERO
    for j in range(n):
        mean += x[j]
    mean *= share
    for j in range(n):
        spread += (x[j] - mean) * (x[j] - mean)
    scale = ONE / math.sqrt(spread * share + eps)
    for j in range(n):
        y[j] = (x[j] - mean) * scale * weight[j] + bias[j]


@inline(SUMS)
def norm_rows(x, weight, bias, eps, y):
    """Layer normalisation of x (L, d) into flat y."""
    for t in range(x.shape[0]):
        norm_frame(x[t], weight, bias, eps, y[t * weight.size :])


@inline(EXACT)
def add_rows(x, rows, width, y):
    """Residual: y = x + the first columns of rows."""
    for t in range(x.shape[0]):
        source, row, target = x[t], rows[t * width :], y[t]
        for j in range(x.shape[1]):
            target[j] = source[j] + row[j]


@inline(EXACT)
def copy_rows(source, target):
    """Two-dimensional, of the same shape or target with more rows."""
    for i in range(source.shape[0]):
        row, copied = source[i], target[i]
        for j in range(source.shape[1]):
            copied[j] = row[j]


@inline(EXACT)
def gate(y, z, k):
    """y times SiLU(z), in place."""
    for j in range(y.size):
        factor, _ = silu(z[j], k)
        y[j] *= factor
