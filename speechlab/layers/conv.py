"""Strided convolutions of a signal in chunks (B, C, n), with the numbers of the whole signal.

The state is passed to the next chunk: samples of unfinished frames for a convolution, samples to
which later frames add for a transposed one. They are copies, so that a state does not keep its
chunk in memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def strided(conv: nn.Conv1d, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
    """x: the next samples. Returns the completed frames and the remaining samples.

    All frames together are those of `conv` for the whole: 1 + (L - k) / s frames, L >= k.
    """
    x = x if tail is None else torch.cat([tail, x], -1)
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    n_frames = max(0, 1 + (x.shape[-1] - kernel) // stride)
    tail = x[..., n_frames * stride :].clone()
    if n_frames == 0:
        return x.new_zeros(x.shape[0], conv.out_channels, 0), tail
    return conv(x), tail


def transposed(
    conv: nn.ConvTranspose1d, x: Tensor, overlap: Tensor | None, last: bool
) -> tuple[Tensor, Tensor]:
    """x: the next frames. Returns the samples that are final; with `last`, all.

    All samples together are those of `conv` for the whole: (L - 1) s + k samples.
    """
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    n_over = kernel - stride
    y = x.new_zeros(x.shape[0], conv.out_channels, n_over) if overlap is None else overlap
    if x.shape[-1]:
        y = F.conv_transpose1d(x, conv.weight, None, stride)
    if x.shape[-1] and overlap is not None:
        y = torch.cat([y[..., :n_over] + overlap, y[..., n_over:]], -1)
    settled = y.shape[-1] - (0 if last else n_over)
    y, overlap = y[..., :settled], y[..., settled:].clone()
    return y + conv.bias[:, None], overlap
