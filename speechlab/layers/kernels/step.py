# ruff: noqa: ANN001, ANN201, ANN202
"""One hop of a stream: a numba kernel for each layer of `models.cleanumamba`.

A kernel reads the next L frames of one signal, channels last, and the state before them. It writes
`y` and the new state (`new_*`, `after`), and nothing else. All arrays are contiguous;
weights are packed (`matmul.pack`), `scratch` is flat and large enough (see the callers in
`inference.fused`). Letters are those of `layers.mixers`; e is d_inner, n is d_state.

The kernels allocate nothing and run without the interpreter's lock.
"""

import math

import numpy as np

from speechlab.layers.kernels import activations, elementary
from speechlab.layers.kernels import matmul as products
from speechlab.layers.kernels.activations import (
    add_rows,
    copy_rows,
    gate,
    glu,
    norm_frame,
    norm_rows,
    relu,
    sigmoid,
    tanh,
    width_of,
)
from speechlab.layers.kernels.elementary import (
    ONE,
    SUMS,
    ZERO,
    exp2,
    inline,
    kernel,
    registers,
    silu,
    softplus,
)
from speechlab.layers.kernels.matmul import product

_kernel = kernel(elementary, activations, products)


@inline(SUMS)
def _convolve(rows, width, tail, conv, joined, u, new_tail, k):
    """Causal depthwise convolution of the first columns of rows, then SiLU -> u (L, columns).

    conv (1 + d_conv, columns): the taps, oldest first, then the bias. joined: room for L + tail.
    """
    n_past, n = tail.shape
    length = u.size // n
    for t in range(n_past + length):
        target = joined[t * n :]
        source = tail[t] if t < n_past else rows[(t - n_past) * width :]
        for j in range(n):
            target[j] = source[j]
    for t in range(n_past):
        source, target = joined[(length + t) * n :], new_tail[t]
        for j in range(n):
            target[j] = source[j]
    for t in range(length):
        target, bias = u[t * n :], conv[n_past + 1]
        for j in range(n):
            target[j] = bias[j]
        for shift in range(n_past + 1):
            source, tap = joined[(t + shift) * n :], conv[shift]
            for j in range(n):
                target[j] += tap[j] * source[j]
        for j in range(n):
            target[j], _ = silu(target[j], k)


@inline(SUMS)
def _advance(u, step, B, C, A, leak, D, h, y, k):
    """One frame of the selective scan; u becomes u step.

    step: after softplus. A and leak: times log2(e).
    """
    n, e = A.shape
    for j in range(e):
        y[j] = D[j] * u[j]
        u[j] *= step[j]
    for i in range(n):
        rate, state, b, c = A[i], h[i], B[i], C[i]
        for j in range(e):
            value = exp2(step[j] * rate[j] - leak, k) * state[j] + u[j] * b
            state[j] = value
            y[j] += value * c


@_kernel
def norm(x, weight, bias, eps, y):
    """Layer normalisation, (L, d) -> (L, d)."""
    for t in range(x.shape[0]):
        norm_frame(x[t], weight, bias, eps, y[t])


@_kernel
def linear(x, weight, scratch, y):
    """x (L, n_in) -> y (L, n_out)."""
    width = width_of(y.shape[1])
    product(x, x.shape[1], x.shape[0], weight, x.shape[1], scratch)
    for t in range(y.shape[0]):
        row, target = scratch[t * width :], y[t]
        for j in range(y.shape[1]):
            target[j] = row[j]


@_kernel
def encode(x, step, n_window, n_down, down, mix, scratch, y, constants):
    """Strided conv, ReLU, 1x1 conv, GLU: windows of flat x, a step apart -> y (L, H)."""
    n_frames, n_out = y.shape
    width = width_of(n_down)
    middle, halves = scratch[: n_frames * width], scratch[n_frames * width :]
    product(x, step, n_frames, down, n_window, middle)
    relu(middle)
    product(middle, width, n_frames, mix, n_down, halves)
    glu(halves, width_of(2 * n_out), y, registers(constants))


@_kernel
def decode(x, skip, before, mix, up, stride, activate, scratch, frames, y, constants):
    """Skip, 1x1 convolution, GLU, transposed convolution (, ReLU): x (L, H) -> y (samples, C).

    A transposed convolution is a convolution over J = ceil(kernel / stride) frames whose output
    row is `stride` samples. frames (rows + J - 1, U): `before`, the J - 1 frames of the last call,
    in front, then the new ones; rows beyond L are the silence after the end.
    """
    (length, n_in), (n_before, n_up), n_out = x.shape, before.shape, y.shape[1]
    rows, width = frames.shape[0] - n_before, width_of(stride * n_out)
    total, out = scratch[: length * n_in], scratch[length * n_in :]
    for t in range(length):
        a, b, target = x[t], skip[t], total[t * n_in :]
        for j in range(n_in):
            target[j] = a[j] + b[j]
    product(total, n_in, length, mix, n_in, out)
    copy_rows(before, frames)
    glu(out, width_of(2 * n_up), frames[n_before : n_before + length], registers(constants))
    frames[n_before + length :] = ZERO
    product(frames, n_up, rows, up, (n_before + 1) * n_up, out)
    if activate:
        relu(out[: rows * width])
    for t in range(y.shape[0]):
        source, target = out[t // stride * width + t % stride * n_out :], y[t]
        for j in range(n_out):
            target[j] = source[j]


@_kernel
def mamba(x, tail, h, norm_weight, norm_bias, eps, w_in, conv, w_x, w_dt, A, leak, D, w_out,
          scratch, y, new_tail, new_h, constants):  # fmt: skip
    """x + Mamba(norm(x)): x, y (L, d), tail (d_conv - 1, e), h (n, e)."""
    (length, d), (n, e) = x.shape, A.shape
    k, rank = registers(constants), w_dt.size // width_of(e) - 1
    wide, narrow, width = width_of(2 * e), width_of(rank + 2 * n), width_of(e)
    rows, rest = scratch[: length * wide], scratch[length * wide :]
    u, joined = rest[: length * e], rest[length * e :]
    norm_rows(x, norm_weight, norm_bias, eps, joined)
    product(joined, d, length, w_in, d, rows)
    _convolve(rows, wide, tail, conv, joined, u, new_tail, k)
    select, steps = joined[: length * narrow], joined[length * narrow :]
    product(u, e, length, w_x, e, select)
    product(select, narrow, length, w_dt, rank, steps)
    copy_rows(h, new_h)
    for t in range(length):
        step, drive, out = steps[t * width :], u[t * e :], rows[t * wide :]
        for j in range(e):
            step[j], _ = softplus(step[j], k)
        chosen = select[t * narrow + rank :]
        _advance(drive, step, chosen, chosen[n:], A, leak, D, new_h, out, k)
        gate(out[:e], out[e:], k)
    product(rows, wide, length, w_out, e, joined)
    add_rows(x, joined, width_of(d), y)


@_kernel
def mamba2(x, tail, h, norm_weight, norm_bias, eps, w_in, conv, dt_bias, A, leak, D, inner,
           inner_eps, w_out, scratch, y, new_tail, new_h, constants):  # fmt: skip
    """x + Mamba2(norm(x)): tail (d_conv - 1, e + 2 n), h (n, e); A and D repeated per channel.

    w_in gives u, B, C, z and a step per head.
    """
    (length, d), (n, e) = x.shape, A.shape
    k, n_heads, mixed = registers(constants), dt_bias.size, e + 2 * n
    wide, d_head = width_of(mixed + e + n_heads), e // n_heads
    rows, rest = scratch[: length * wide], scratch[length * wide :]
    u, joined = rest[: length * mixed], rest[length * mixed :]
    norm_rows(x, norm_weight, norm_bias, eps, joined)
    product(joined, d, length, w_in, d, rows)
    _convolve(rows, wide, tail, conv, joined, u, new_tail, k)
    copy_rows(h, new_h)
    for t in range(length):
        out, drive, step = rows[t * wide :], u[t * mixed :], joined
        raw = out[mixed + e :]
        for j in range(e):
            step[j], _ = softplus(raw[j // d_head] + dt_bias[j // d_head], k)
        _advance(drive, step, drive[e:], drive[e + n :], A, leak, D, new_h, out, k)
        gate(out[:e], out[mixed:], k)
        power = ZERO
        for j in range(e):
            power += out[j] * out[j]
        scale = ONE / math.sqrt(power / np.float32(e) + inner_eps)
        for j in range(e):
            out[j] *= scale * inner[j]
    product(rows, wide, length, w_out, e, joined)
    add_rows(x, joined, width_of(d), y)


@inline(SUMS)
def _recur(v, A_bar, b, c, state, after):
    """One step of one S4 system in float64: after = A state + b v; returns c after.

    A_bar is transposed: its rows are the columns of A.
    """
    n = b.size
    for m in range(n):
        after[m] = b[m] * v
    for i in range(n):
        row, value = A_bar[i], state[i]
        for m in range(n):
            after[m] += row[m] * value
    total = 0.0
    for m in range(n):
        total += c[m] * after[m]
    return total


@_kernel
def mamba_s4(x, tail, h, norm_weight, norm_bias, eps, w_in, conv, s4_in, A_bar, b, c, D, s4_out,
             w_out, scratch, y, new_tail, new_h, constants):  # fmt: skip
    """x + MambaS4(norm(x)); A_bar (systems, n, n) transposed, h (systems + 1, n), both float64.

    The last row of h is scratch: it holds the previous state of a system.
    """
    (length, d), e = x.shape, tail.shape[1]
    k, n_systems = registers(constants), b.shape[0]
    wide, narrow = width_of(2 * e), width_of(n_systems)
    rows, rest = scratch[: length * wide], scratch[length * wide :]
    u, joined = rest[: length * e], rest[length * e :]
    norm_rows(x, norm_weight, norm_bias, eps, joined)
    product(joined, d, length, w_in, d, rows)
    _convolve(rows, wide, tail, conv, joined, u, new_tail, k)
    systems, halves = joined[: length * narrow], joined[length * narrow :]
    product(u, e, length, s4_in, e, systems)
    copy_rows(h, new_h)
    for s in range(n_systems):
        after, before = new_h[s], new_h[n_systems]
        for t in range(length):
            for m in range(before.size):
                before[m] = after[m]
            v = systems[t * narrow + s]
            out = np.float32(_recur(v, A_bar[s], b[s], c[s], before, after) + v * D[s])
            gelu = np.float32(0.5) * out * (ONE + math.erf(out * np.float32(math.sqrt(0.5))))
            systems[t * narrow + s] = gelu
    product(systems, narrow, length, s4_out, n_systems, halves)
    for t in range(length):
        a, out = halves[t * wide :], rows[t * wide :]
        for j in range(e):
            gate, _ = silu(out[e + j], k)
            out[j] = a[j] * sigmoid(a[e + j], k) * gate
    product(rows, wide, length, w_out, e, halves)
    add_rows(x, halves, width_of(d), y)


@_kernel
def lstm(x, h, cell, w_in, w_hidden, scratch, y, new_h, new_cell, constants):
    """One layer of LSTM: x, y (L, d), h and cell (1, d); gates in torch's order i, f, g, o."""
    length, d = x.shape
    k, width = registers(constants), width_of(4 * d)
    rows, gates = scratch[: length * width], scratch[length * width :]
    product(x, d, length, w_in, d, rows)
    copy_rows(h, new_h)
    copy_rows(cell, new_cell)
    memory, hidden = new_cell[0], new_h[0]
    for t in range(length):
        row, target = rows[t * width :], y[t]
        product(hidden, d, 1, w_hidden, d, gates)
        for j in range(d):
            kept = sigmoid(row[d + j] + gates[d + j], k) * memory[j]
            new = sigmoid(row[j] + gates[j], k) * tanh(row[2 * d + j] + gates[2 * d + j], k)
            memory[j] = kept + new
        for j in range(d):
            out = sigmoid(row[3 * d + j] + gates[3 * d + j], k) * tanh(memory[j], k)
            hidden[j] = out
            target[j] = out


@inline(SUMS)
def _attend(q, keys, values, first, end, scores, y, k):
    """One query (d_head,) on columns first to end of keys and values (d_head, frames)."""
    count, scale = end - first, k[0] / math.sqrt(np.float32(q.size))
    for j in range(count):
        scores[j] = ZERO
    for i in range(q.size):
        factor, row = q[i] * scale, keys[i, first:end]
        for j in range(count):
            scores[j] += factor * row[j]
    top, total = scores[0], ZERO
    for j in range(count):
        top = max(top, scores[j])
    for j in range(count):
        scores[j] = exp2(scores[j] - top, k)
    for j in range(count):
        total += scores[j]
    for i in range(q.size):
        row, out = values[i, first:end], ZERO
        for j in range(count):
            out += scores[j] * row[j]
        y[i] = out / total


@_kernel
def attend(x, start, end, keys, values, window, n_heads, w_qkv, w_out, norm1, norm2, eps, w1, w2,
           n_hidden, scratch, y, constants):  # fmt: skip
    """Post-norm transformer layer, x (L, d) -> y (L, d).

    keys, values (e, capacity), e of all heads: columns start to end hold the past; the new ones go
    behind them, which no older state reads. norm1, norm2 (2, d): weight and bias.
    """
    (length, d), e = x.shape, len(keys)
    k, d_head = registers(constants), e // n_heads
    wide, width, hidden = width_of(3 * e), width_of(d), width_of(n_hidden)
    n_rows = length * max(wide, hidden)
    rows, out = scratch[:n_rows], scratch[n_rows:]
    product(x, d, length, w_qkv, d, rows)
    for t in range(length):
        row = rows[t * wide :]
        for j in range(e):
            keys[j, end + t], values[j, end + t] = row[e + j], row[2 * e + j]
    for t in range(length):
        first = max(start, end + t + 1 - window)
        row = rows[t * wide :]
        for i in range(0, e, d_head):
            q = row[i : i + d_head]
            _attend(q, keys[i:], values[i:], first, end + t + 1, out, q, k)
    product(rows, wide, length, w_out, e, out)
    add_rows(x, out, width, y)
    for t in range(length):
        norm_frame(y[t], norm1[0], norm1[1], eps, y[t])
    product(y, d, length, w1, d, rows)
    relu(rows[: length * hidden])
    product(rows, hidden, length, w2, n_hidden, out)
    add_rows(y, out, width, y)
    for t in range(length):
        norm_frame(y[t], norm2[0], norm2[1], eps, y[t])
