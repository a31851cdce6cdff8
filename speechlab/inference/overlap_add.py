"""Cut a long signal into overlapping chunks, and join their estimates.

    blocks ─► pieces: the last `overlap` samples of each start the next ─► estimates ─► joined

In the middle of an overlap, one estimate is cross-faded into the other. So an estimate is used
neither at the very start nor at the very end of its chunk.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

OVERLAP_S = 4.0  # seconds that two chunks share
FADE_S = 0.5  # seconds of the cross-fade, in the middle of the overlap


class Piece(NamedTuple):
    samples: Tensor  # (C, n)
    is_first: bool
    is_last: bool
    n_shared: int  # samples that it shares with each neighbour


def pieces(blocks: Iterable[Tensor], length: int, overlap: int) -> Iterator[Piece]:
    """Blocks (C, n) -> pieces of `length` that share `overlap` samples; the last is shorter."""
    held, is_first = None, True
    for block in blocks:
        held = block if held is None else torch.cat([held, block], -1)
        while held.shape[-1] > length:
            yield Piece(held[:, :length], is_first, False, overlap)
            held, is_first = held[:, length - overlap :], False
    if held is not None and held.shape[-1]:
        yield Piece(held, is_first, True, overlap)


def joined(estimates: Iterable[tuple[Tensor, bool]], overlap: int, fade: int) -> Iterator[Tensor]:
    """Estimates (..., n) of pieces, each with its `is_last` -> one signal, in blocks.

    fade: samples of the cross-fade, at most a quarter of the overlap.
    """
    ramp = tail = None
    for chunk, is_last in estimates:
        if tail is not None:
            ramp = _ramp(overlap, fade, chunk) if ramp is None else ramp
            shared = torch.lerp(tail, chunk[..., :overlap], ramp)
            chunk = torch.cat([shared, chunk[..., overlap:]], -1)
        n_settled = chunk.shape[-1] - (0 if is_last else overlap)
        settled, tail = chunk.tensor_split([n_settled], -1)
        yield settled


def _ramp(overlap: int, fade: int, like: Tensor) -> Tensor:
    """From 0 to 1 in the middle of an overlap, (overlap,)."""
    place = torch.arange(overlap, device=like.device) - overlap / 2 + 0.5
    return (0.5 + place / min(fade, overlap // 4)).clamp(0, 1).to(like.dtype)
