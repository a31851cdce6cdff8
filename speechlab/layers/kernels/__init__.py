"""CPU kernels compiled by numba.

operands     what a selective scan works on
elementary   exp, log and sigmoid that numba vectorises
activations  activations over arrays
matmul       matrix products of few rows
scan         the selective scan, forward and backward
scan_torch   the scan kernels on torch tensors: views, buffers, threads, gradients
step         one hop of a stream: convolutions, mixers, norms
"""
