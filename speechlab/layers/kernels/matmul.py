# ruff: noqa: ANN001, ANN201, ANN202
"""Products of a few rows with packed weights, inside numba kernels.

One hop of a stream has 1 to 128 rows per layer. BLAS is made for large matrices: for these it takes
twice the time and starts threads. Here a tile of the result, ROWS x LANES, stays in vector
registers while the sums run over the inputs. LLVM does not do that for loops over arrays, so
`_tile` writes out the instructions.

A sum runs over the inputs in order, for any number of rows: so a row has the same bits in a chunk
of any length.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from speechlab.layers.kernels.elementary import EXACT, inline

ROWS = 4
# A tile of 4 x 32 takes 8 of the 32 registers of AVX-512; elsewhere 4 x 16 takes 8 of the 16.
LANES = 32 if binding.get_host_cpu_features().get("avx512f") else 16

_FLOATS = types.CPointer(types.float32)
_INDEX = ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), LANES)


def pack(weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """weight (n_in, n_out), bias (n_out,) -> flat (panel, 1 + n_in, LANES), the bias first.

    float32; the last panel is filled up with zeros.
    """
    n_in, n_out = weight.shape
    rows = np.zeros((1 + n_in, padded(n_out)), np.float32)
    rows[0, :n_out] = 0 if bias is None else bias
    rows[1:, :n_out] = weight
    return np.ascontiguousarray(rows.reshape(1 + n_in, -1, LANES).swapaxes(0, 1)).ravel()


def padded(n_out: int) -> int:
    """Width of a row of results: n_out filled up to whole panels."""
    return -(-n_out // LANES) * LANES


@intrinsic
def _at(context, array, index):
    """Address of an element of a flat array."""

    def generate(cgctx, builder, signature, arguments):
        data = make_array(signature.args[0])(cgctx, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return _FLOATS(array, types.intp), generate


def _load(builder, pointer, offset):
    address = builder.bitcast(builder.gep(pointer, [offset]), _VECTOR.as_pointer())
    vector = builder.load(address)
    vector.align = 4
    return vector


def _spread(builder, scalar):
    """The scalar in every lane."""
    empty = ir.Constant(_VECTOR, ir.Undefined)
    vector = builder.insert_element(empty, scalar, ir.Constant(ir.IntType(32), 0))
    first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(vector, empty, first)


def _generate_tile(builder, rows, panels, x, step, weight, panel, n_in, out, width):
    """out[r, p] = weight[p, 0] + sum over i of x[r, i] weight[p, 1 + i], a vector of LANES each."""
    one = _INDEX(1)
    xs = [builder.gep(x, [builder.mul(step, _INDEX(r))]) for r in range(rows)]
    weights = [builder.gep(weight, [builder.mul(panel, _INDEX(p))]) for p in range(panels)]
    bias = [_load(builder, pointer, _INDEX(0)) for pointer in weights]
    before, loop = builder.block, builder.append_basic_block("inputs")
    after = builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    i = builder.phi(_INDEX)
    sums = [[builder.phi(_VECTOR) for _ in range(panels)] for _ in range(rows)]
    following = builder.add(i, one)
    i.add_incoming(_INDEX(0), before)
    i.add_incoming(following, loop)
    offset = builder.mul(following, _INDEX(LANES))
    columns = [_load(builder, pointer, offset) for pointer in weights]
    for r in range(rows):
        factor = _spread(builder, builder.load(builder.gep(xs[r], [i])))
        for p in range(panels):
            term = builder.fmul(columns[p], factor, flags=("contract",))
            total = builder.fadd(sums[r][p], term, flags=("contract",))
            sums[r][p].add_incoming(bias[p], before)
            sums[r][p].add_incoming(total, loop)
            sums[r][p] = total
    builder.cbranch(builder.icmp_signed("<", following, n_in), loop, after)
    builder.position_at_end(after)
    for r in range(rows):
        for p in range(panels):
            place = builder.add(builder.mul(width, _INDEX(r)), _INDEX(p * LANES))
            address = builder.bitcast(builder.gep(out, [place]), _VECTOR.as_pointer())
            builder.store(sums[r][p], address).align = 4


def _tile(rows: int, panels: int) -> Callable:
    """The tile of so many rows and neighbouring panels as a function for kernels."""

    @intrinsic
    def tile(context, x, step, weight, panel, n_in, out, width):
        def generate(cgctx, builder, signature, arguments):
            _generate_tile(builder, rows, panels, *arguments)
            return cgctx.get_dummy_value()

        indices = types.intp
        return types.void(_FLOATS, indices, _FLOATS, indices, indices, _FLOATS, indices), generate

    return tile


_block, _row, _row_pair = _tile(ROWS, 1), _tile(1, 1), _tile(1, 2)


@inline(EXACT)
def product(x, step, n_rows, weight, n_in, out):
    """Row m of out becomes bias + x[m step : m step + n_in] weight; n_in >= 1, steps may overlap.

    x, out: flat; weight: of `pack`. Rows of out are `padded(n_out)` apart, zeros at their end.
    """
    panel = (n_in + 1) * LANES
    n_panels = weight.size // panel
    width = n_panels * LANES
    m = 0
    while m + ROWS <= n_rows:
        for p in range(n_panels):
            target = _at(out, m * width + p * LANES)
            _block(_at(x, m * step), step, _at(weight, p * panel), panel, n_in, target, width)
        m += ROWS
    while m < n_rows:
        p = 0
        while p + 2 <= n_panels:  # two at once: a sum waits for its own last addition
            target = _at(out, m * width + p * LANES)
            _row_pair(_at(x, m * step), step, _at(weight, p * panel), panel, n_in, target, width)
            p += 2
        if p < n_panels:
            target = _at(out, m * width + p * LANES)
            _row(_at(x, m * step), step, _at(weight, p * panel), panel, n_in, target, width)
        m += 1
