"""The selective scan as fused CPU kernels: one pass over time, vectorised over channels by numba.

Letters as in `layers.scan` (Mamba, arXiv 2312.00752, section 3). A task is one example and a group
of blocks of channels. Per worker, of the current block and chunk (CHUNK steps):

| buffer       | shape                          | holds                                            |
|--------------|--------------------------------|--------------------------------------------------|
| rows         | (field, CHUNK, WIDTH)          | step, step u, read-out; gradients and their sums |
| memory       | (block, n, field, WIDTH)       | A log2(e), h, and the gradients of h and A       |
| leaks        | (CHUNK,), None without a leak  | leak log2(e) of each step                        |
| shared, sums | (tile, n, 2 TILE)              | B and C as the tiles read them; their gradients  |
| tape         | (tile, state, TILE + 1, WIDTH) | backward: the decay, and h before the tile       |

Steps run in tiles: one load of A and h serves TILE steps. The last tile is filled up with steps of
size zero without leak, which keep the state bit for bit: a sequence cut anywhere gives the same
numbers. The forward pass keeps the state every CHUNK steps; the backward pass replays one chunk at
a time from there. Sums over channels (of B and C) are made per block; the caller adds them in a
fixed order, so gradients do not depend on threads.

The kernels allocate nothing and count no references (`_nrt=False`): a count costs every view of a
row two atomic operations, together a third of the time.
"""

import numpy as np

from speechlab.layers.kernels import elementary
from speechlab.layers.kernels.elementary import (
    EXACT,
    SUMS,
    ZERO,
    exp2,
    inline,
    kernel,
    registers,
    silu,
    softplus,
    touch,
)

WIDTH = 128  # channels of a block at most
LINE = 16  # values of a cache line
TILE = 4  # steps per visit of a state
SPAN = 8  # steps that the forward pass prepares at once
CHUNK = 32  # steps between two kept states
BLOCK = 8  # states on the tape at once: 160 KiB of a core's second-level cache
FIELD = CHUNK * WIDTH + 48  # no multiple of a page, or all fields compete for the same cache lines
STEP, DRIVE, READ, GRAD, SUM_A, SUM_B, SLOPE, GATE = (i * FIELD for i in range(8))  # of rows
RATE, STATE, STATE_GRAD, RATE_GRAD = (i * WIDTH for i in range(4))  # of memory
START, ENTRY = TILE * WIDTH, (TILE + 1) * WIDTH  # of the tape: h before the tile; all

LOWEST = -np.finfo(np.float32).max


@inline(EXACT)
def _load(memory, fields, field, values, first, width):
    """Values (d, n) of a block into one row of channels per state."""
    for i in range(values.shape[1]):
        row = memory[i * fields * WIDTH + field :]
        for j in range(width):
            row[j] = values[first + j, i]


@inline(EXACT)
def _store(memory, fields, field, values, first, width):
    for i in range(values.shape[1]):
        row = memory[i * fields * WIDTH + field :]
        for j in range(width):
            values[first + j, i] = row[j]


@inline(EXACT)
def _load_rate(memory, fields, A, first, width, k):
    """A log2(e), finite: an infinite rate times a step of zero would be NaN. True where A > 0."""
    grows = False
    _load(memory, fields, RATE, A, first, width)
    for i in range(A.shape[1]):
        row = memory[i * fields * WIDTH + RATE :]
        for j in range(width):
            a = row[j] * k[0]
            grows = grows or a > ZERO
            row[j] = LOWEST if a < LOWEST else a
    return grows


@inline(EXACT)
def _copy_states(memory, fields, kept, first, width, keep):
    """The states of a block to their place in kept (n, d), or back."""
    for i in range(kept.shape[0]):
        h, place = memory[i * fields * WIDTH + STATE :], kept[i, first:]
        for j in range(width):
            if keep:
                place[j] = h[j]
            else:
                h[j] = place[j]


@inline(EXACT)
def _share(leaks, shared, x, batch, t0, m):
    """Leak, B and C of a chunk, in the order in which tiles read them; zero beyond its end."""
    n = x.A.shape[1]
    B_b, B_t, C_b, C_t = x.strides[6], x.strides[7], x.strides[8], x.strides[9]
    for t in range((m + TILE - 1) // TILE * TILE):
        row = shared[t // TILE * n * 2 * TILE + t % TILE :]
        if leaks is not None:
            leaks[t] = x.leak if t < m else ZERO
        if t < m:
            B = x.B[batch * B_b + (t0 + t) * B_t :]
            C = x.C[batch * C_b + (t0 + t) * C_t :]
            for i in range(n):
                row[i * 2 * TILE] = B[i]
                row[i * 2 * TILE + TILE] = C[i]
        else:
            for i in range(n):
                row[i * 2 * TILE] = ZERO
                row[i * 2 * TILE + TILE] = ZERO


@inline(EXACT)
def _unshare(sums, dB, dC, t0, m):
    n = dB.shape[1]
    for t in range(m):
        row = sums[t // TILE * n * 2 * TILE + t % TILE :]
        for i in range(n):
            dB[t0 + t, i] = row[i * 2 * TILE]
            dC[t0 + t, i] = row[i * 2 * TILE + TILE]


@inline(EXACT)
def _fetch(x, batch, first, t, i):
    """Ask for the i-th cache line of TILE rows of u, dt and z ahead of their use."""
    for array, s in ((x.u, 0), (x.dt, 2), (x.z, 4)):
        for q in range(TILE):
            at = batch * x.strides[s] + (t + q) * x.strides[s + 1]
            touch(array, at + first + i * LINE)


@inline(SUMS)
def _prepare(row, u, dt, D, bias, sloped, k):
    """One step: its size, its drive, and D u as the start of the read-out."""
    for j in range(D.size):
        step, slope = softplus(dt[j] + bias[j], k)
        row[j + STEP] = step
        row[j + DRIVE] = step * u[j]
        row[j + READ] = D[j] * u[j]
        if sloped:
            row[j + SLOPE] = slope


@inline(SUMS)
def _prepare_chunk(rows, x, batch, first, width, t0, m, sloped, k):
    """Steps t0 to t0 + m of a block, and steps of size zero up to the end of the last tile."""
    u_b, u_t, dt_b, dt_t = x.strides[0], x.strides[1], x.strides[2], x.strides[3]
    D, bias = x.D[first : first + width], x.bias[first : first + width]
    for t in range(m):
        u = x.u[batch * u_b + (t0 + t) * u_t + first :]
        dt = x.dt[batch * dt_b + (t0 + t) * dt_t + first :]
        _prepare(rows[t * WIDTH :], u, dt, D, bias, sloped, k)
    for t in range(m, (m + TILE - 1) // TILE * TILE):
        for start in range(t * WIDTH, rows.size, FIELD):
            row = rows[start:]
            for j in range(WIDTH):
                row[j] = ZERO


@inline(EXACT)
def _leak(leaks, t):
    """Of a step; without a leak a constant, so that the kernel is none the slower."""
    if leaks is None:
        return ZERO
    return leaks[t]


@inline(SUMS)
def _advance(row, q, a, leak, h, b, c, tape, taped, k):
    """h_t = decay h_{t-1} + step u B and the read-out C h_t; one step, state and channel."""
    decay = exp2(row[q + STEP] * a - leak, k)
    h = decay * h + row[q + DRIVE] * b
    row[q + READ] += h * c
    if taped:
        tape[q] = decay
    return h


@inline(SUMS)
def _advance_tile(row, leaks, t, memory, shared, tape, taped, width, k):
    """TILE steps from t of one state; `row` begins at the first step, the others at the state."""
    l0, l1, l2, l3 = _leak(leaks, t), _leak(leaks, t + 1), _leak(leaks, t + 2), _leak(leaks, t + 3)
    b0, b1, b2, b3 = shared[0], shared[1], shared[2], shared[3]
    c0, c1, c2, c3 = shared[4], shared[5], shared[6], shared[7]
    for j in range(width):
        a = memory[j + RATE]
        h = memory[j + STATE]
        if taped:
            tape[j + START] = h
        h = _advance(row, j, a, l0, h, b0, c0, tape, taped, k)
        h = _advance(row, j + WIDTH, a, l1, h, b1, c1, tape, taped, k)
        h = _advance(row, j + 2 * WIDTH, a, l2, h, b2, c2, tape, taped, k)
        h = _advance(row, j + 3 * WIDTH, a, l3, h, b3, c3, tape, taped, k)
        memory[j + STATE] = h


@inline(SUMS)
def _finish(read, z, y, gated, width, k):
    for j in range(width):
        y[j] = read[j] * silu(z[j], k)[0] if gated else read[j]


@inline(SUMS)
def _forward_block(x, y, scratch, memory, batch, first, width, t0, m, k):
    """SPAN steps of a block: its states advance in `memory`, the output goes to y (L, d)."""
    n, rows, leaks, shared = x.A.shape[1], scratch.rows, scratch.leaks, scratch.shared
    z_b, z_t, gated = x.strides[4], x.strides[5], x.z.size > 0
    _prepare_chunk(rows, x, batch, first, width, t0, m, False, k)
    for t in range(0, m, TILE):
        row, tile = rows[t * WIDTH :], shared[t * n * 2 :]
        for i in range(n):
            if i < WIDTH // LINE:
                _fetch(x, batch, first, t0 + t + SPAN, i)
            h, bc = memory[i * 2 * WIDTH :], tile[i * 2 * TILE :]
            _advance_tile(row, leaks, t, h, bc, rows, False, width, k)
    for t in range(m):
        z = x.z[batch * z_b + (t0 + t) * z_t + first :]
        _finish(rows[t * WIDTH + READ :], z, y[t0 + t, first:], gated, width, k)


@kernel(elementary)
def forward(worker, workers, lanes, group, x, state, y, last, kept, scratch):
    """Tasks worker, worker + workers, ...: y (b, L, d), last (b, d, n), kept (b, chunks, n, d).

    `kept` may be empty. Returns True if A is positive anywhere, where exp2 is not valid.
    """
    b, L, d = y.shape
    size, span, k = x.A.shape[1] * 2 * WIDTH, group * lanes, registers(scratch.constants)
    groups = (d + span - 1) // span
    grows = False
    for task in range(worker, b * groups, workers):
        batch, begin = task // groups, task % groups * span
        end = min(begin + span, d)
        for first in range(begin, end, lanes):
            memory, width = scratch.memory[(first - begin) // lanes * size :], min(lanes, d - first)
            if task == worker or groups > 1:  # else still there
                grows = _load_rate(memory, 2, x.A, first, width, k) or grows
            _load(memory, 2, STATE, state[batch], first, width)
        for t0 in range(0, L, SPAN):
            m = min(SPAN, L - t0)
            _share(scratch.leaks, scratch.shared, x, batch, t0, m)
            for first in range(begin, end, lanes):
                memory = scratch.memory[(first - begin) // lanes * size :]
                width = min(lanes, d - first)
                if kept.size and t0 % CHUNK == 0:
                    _copy_states(memory, 2, kept[batch, t0 // CHUNK], first, width, True)
                _forward_block(x, y[batch], scratch, memory, batch, first, width, t0, m, k)
        for first in range(begin, end, lanes):
            memory = scratch.memory[(first - begin) // lanes * size :]
            _store(memory, 2, STATE, last[batch], first, min(lanes, d - first))
    return grows


@inline(SUMS)
def _prepare_gradient(row, dy, z, gated, width, k):
    """Gradient of the read-out and of the gate before its read-out, at one step; empty sums."""
    for j in range(width):
        g = dy[j]
        if gated:
            gate, slope = silu(z[j], k)
            row[j + GATE] = g * slope
            g = g * gate
        row[j + GRAD] = g
        row[j + SUM_A] = ZERO
        row[j + SUM_B] = ZERO


@inline(SUMS)
def _finish_gradient(row, u, D, dD, dbias, du, ddt, dz, gated, k):
    for j in range(D.size):
        g, of_input = row[j + GRAD], row[j + SUM_B]
        of_dt = (row[j + SUM_A] / k[0] + u[j] * of_input) * row[j + SLOPE]
        du[j] = D[j] * g + row[j + STEP] * of_input
        ddt[j] = of_dt
        dD[j] += g * u[j]
        dbias[j] += of_dt
        if gated:
            dz[j] = row[j + READ] * row[j + GATE]


@inline(SUMS)
def _retreat(row, q, a, g, ga, b, c, decay, carry):
    """Back over one step, with carry = decay h_{t-1}: g is the gradient of h_t on entry.

    Returns the gradient of h_{t-1}, that of A so far, and the channel's shares for B and C.
    """
    read = row[q + GRAD]
    drive = row[q + DRIVE]
    g += read * c
    of_rate = g * carry
    row[q + SUM_A] += of_rate * a
    row[q + SUM_B] += g * b
    return g * decay, ga + of_rate * row[q + STEP], g * drive, read * (carry + drive * b)


@inline(SUMS)
def _retreat_tile(row, memory, shared, sums, tape, width):
    """The tile backwards; leaves the gradients of B and C at its steps in `sums`."""
    b0, b1, b2, b3 = shared[0], shared[1], shared[2], shared[3]
    c0, c1, c2, c3 = shared[4], shared[5], shared[6], shared[7]
    db0 = db1 = db2 = db3 = dc0 = dc1 = dc2 = dc3 = ZERO
    for j in range(width):
        a = memory[j + RATE]
        g = memory[j + STATE_GRAD]
        ga = memory[j + RATE_GRAD]
        d0, d1, d2, d3 = tape[j], tape[j + WIDTH], tape[j + 2 * WIDTH], tape[j + 3 * WIDTH]
        h0 = d0 * tape[j + START]
        h1 = d1 * (h0 + row[j + DRIVE] * b0)
        h2 = d2 * (h1 + row[j + WIDTH + DRIVE] * b1)
        h3 = d3 * (h2 + row[j + 2 * WIDTH + DRIVE] * b2)
        g, ga, db, dc = _retreat(row, j + 3 * WIDTH, a, g, ga, b3, c3, d3, h3)
        db3, dc3 = db3 + db, dc3 + dc
        g, ga, db, dc = _retreat(row, j + 2 * WIDTH, a, g, ga, b2, c2, d2, h2)
        db2, dc2 = db2 + db, dc2 + dc
        g, ga, db, dc = _retreat(row, j + WIDTH, a, g, ga, b1, c1, d1, h1)
        db1, dc1 = db1 + db, dc1 + dc
        g, ga, db, dc = _retreat(row, j, a, g, ga, b0, c0, d0, h0)
        db0, dc0 = db0 + db, dc0 + dc
        memory[j + STATE_GRAD] = g
        memory[j + RATE_GRAD] = ga
    sums[0], sums[1], sums[2], sums[3] = db0, db1, db2, db3
    sums[4], sums[5], sums[6], sums[7] = dc0, dc1, dc2, dc3


@inline(SUMS)
def _retreat_chunk(scratch, memory, m, n, width, k):
    """Replay a chunk onto the tape and go back over it, BLOCK states at a time."""
    rows, leaks, shared, sums = scratch.rows, scratch.leaks, scratch.shared, scratch.sums
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        for t in range(0, m, TILE):
            for i in range(begin, end):
                tape = scratch.tape[(t // TILE * BLOCK + i - begin) * ENTRY :]
                bc, h = shared[(t * n + i * TILE) * 2 :], memory[i * 4 * WIDTH :]
                _advance_tile(rows[t * WIDTH :], leaks, t, h, bc, tape, True, width, k)
        for t in range((m - 1) // TILE * TILE, -1, -TILE):
            for i in range(begin, end):
                tape = scratch.tape[(t // TILE * BLOCK + i - begin) * ENTRY :]
                at, h = (t * n + i * TILE) * 2, memory[i * 4 * WIDTH :]
                _retreat_tile(rows[t * WIDTH :], h, shared[at:], sums[at:], tape, width)


@inline(SUMS)
def _backward_block(x, dy, dy_strides, out, scratch, memory, batch, first, width, t0, m, k):
    """A chunk of a block: gradients of h and A go back in `memory`, those of u, dt, z are made."""
    n, rows = x.A.shape[1], scratch.rows
    u_b, u_t, z_b, z_t = x.strides[0], x.strides[1], x.strides[4], x.strides[5]
    gated, D = x.z.size > 0, x.D[first : first + width]
    _prepare_chunk(rows, x, batch, first, width, t0, m, True, k)
    for t in range(m):
        dy_row = dy[batch * dy_strides[0] + (t0 + t) * dy_strides[1] + first :]
        z_row = x.z[batch * z_b + (t0 + t) * z_t + first :]
        _prepare_gradient(rows[t * WIDTH :], dy_row, z_row, gated, width, k)
    _retreat_chunk(scratch, memory, m, n, width, k)
    for t in range(m):
        u = x.u[batch * u_b + (t0 + t) * u_t + first :]
        dD, dbias = out.D[batch, first:], out.bias[batch, first:]
        du, ddt = out.u[batch, t0 + t, first:], out.dt[batch, t0 + t, first:]
        dz = out.z[batch, t0 + t, first:]
        _finish_gradient(rows[t * WIDTH :], u, D, dD, dbias, du, ddt, dz, gated, k)


@kernel(elementary)
def backward(worker, workers, lanes, group, x, dy, dy_strides, dlast, kept, out, scratch):
    """Tasks worker, worker + workers, ... of the gradient; fills `out`.

    dy: flat, with strides in b and L; dlast: (b, d, n); kept: of `forward`.
    """
    b, L, d = out.u.shape
    size, span, k = x.A.shape[1] * 4 * WIDTH, group * lanes, registers(scratch.constants)
    groups = (d + span - 1) // span
    for task in range(worker, b * groups, workers):
        batch, begin = task // groups, task % groups * span
        end = min(begin + span, d)
        for first in range(begin, end, lanes):
            memory, width = scratch.memory[(first - begin) // lanes * size :], min(lanes, d - first)
            _load_rate(memory, 4, x.A, first, width, k)
            _load(memory, 4, STATE_GRAD, dlast[batch], first, width)
            _load(memory, 4, RATE_GRAD, out.A[batch], first, width)
        for t0 in range((L - 1) // CHUNK * CHUNK, -1, -CHUNK):
            m = min(CHUNK, L - t0)
            _share(scratch.leaks, scratch.shared, x, batch, t0, m)
            for first in range(begin, end, lanes):
                memory = scratch.memory[(first - begin) // lanes * size :]
                width, part = min(lanes, d - first), first // lanes
                _copy_states(memory, 4, kept[batch, t0 // CHUNK], first, width, False)
                where = memory, batch, first, width, t0, m
                _backward_block(x, dy, dy_strides, out, scratch, *where, k)
                _unshare(scratch.sums, out.B[part, batch], out.C[part, batch], t0, m)
        for first in range(begin, end, lanes):
            memory, width = scratch.memory[(first - begin) // lanes * size :], min(lanes, d - first)
            _store(memory, 4, STATE_GRAD, out.state[batch], first, width)
            _store(memory, 4, RATE_GRAD, out.A[batch], first, width)
