"""Perceptual contrast stretching: raise log magnitudes, most of all between 0.4 and 5 kHz.

    waveform ─ stft ─► log(1 + |F|) * g(bin), phase as it is ─► exp(.) - 1 ─ istft ─► level

Chao et al. 2022, arXiv 2203.17152: g is 1 to 1.4 by the importance of a band for intelligibility.
It raises PESQ, both as post-processing and as a target of training. The logarithm makes the result
depend on the level of the input: use samples at the scale of the file, full scale 1. It is defined
at 16 kHz only.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from speechlab.audio.files import rechunk
from speechlab.audio.stft import istft, stft
from speechlab.errors import UserError
from speechlab.storage.kept import KeptSignal

SAMPLE_RATE = 16000  # Hz
BLOCK_S = 10.0  # seconds of a block
GAINS = (
    *(1.0, 1.070175439, 1.182456140, 1.287719298, 1.4),
    *(1.322807018, 1.238596491, 1.161403509, 1.077192982),
)


class Version(NamedTuple):
    n_fft: int  # and window, samples
    hop_length: int
    edges: tuple[int, ...]  # first bin of each of GAINS; gain 1 after the last edge
    n_freqs: int


VERSIONS = {
    "pcs400": Version(400, 100, (0, 3, 5, 8, 10, 110, 130, 160, 190, 201), 201),
    "pcs512": Version(512, 256, (0, 3, 6, 9, 12, 138, 166, 200, 241, 256), 257),
}


def _peak(stretched: Tensor, waveform: Tensor) -> Tensor:
    return stretched.abs().amax(-1, keepdim=True).reciprocal()


def _input(stretched: Tensor, waveform: Tensor) -> Tensor:
    before, after = (x.square().mean(-1, keepdim=True) for x in (waveform, stretched))
    return (before / after).sqrt()


LEVELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "peak": _peak,  # the largest sample becomes 1, as published
    "input": _input,  # the RMS of the input; samples may exceed full scale
}


def pcs(waveform: Tensor, version: str = "pcs400", level: str = "input") -> Tensor:
    """(..., T) at 16 kHz, full scale 1 -> the same shape and type; silence stays silent.

    version: in VERSIONS; SEMamba uses "pcs400". level: in LEVELS. Computed in float64.
    """
    if not waveform.numel():
        return waveform
    signal = waveform.double()
    stretched = _stretched(signal, VERSIONS[version])
    audible = stretched.abs().amax(-1, keepdim=True) > 0
    gain = torch.where(audible, LEVELS[level](stretched, signal), 0.0)
    return (gain * stretched).to(waveform.dtype)


def pcs_blocks(
    blocks: Iterable[Tensor], sample_rate: int, version: str = "pcs400"
) -> Iterator[Tensor]:
    """Blocks (C, n) -> `pcs` of the whole in blocks, each channel at its own level of the input.

    The level is known only at the end: until then a temporary file keeps the samples, 64 KB per
    second. UserError for a rate other than 16 kHz and for a full disk.
    """
    check_rate(sample_rate)
    before = after = torch.zeros(1, dtype=torch.float64)
    with KeptSignal() as kept:
        for samples, stretched in _in_blocks(blocks, VERSIONS[version]):
            before, after = (
                e + x.square().sum(-1) for e, x in ((before, samples), (after, stretched))
            )
            kept.append(stretched.float())
        gain = torch.where(after > 0, (before / after).sqrt(), 0.0).float()[:, None]
        yield from (gain * block for block in kept)


def check_rate(sample_rate: int) -> None:
    """UserError for a rate at which PCS is undefined."""
    if sample_rate != SAMPLE_RATE:
        raise UserError(f"PCS is defined at {SAMPLE_RATE} Hz, this model works at {sample_rate} Hz")


def _in_blocks(blocks: Iterable[Tensor], version: Version) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a signal and of the stretched signal, (C, n) each, float64.

    A sample depends on the frames that contain it: it needs one frame before and one after it.
    """
    margin = version.n_fft // version.hop_length * version.hop_length
    margin += version.hop_length  # a whole number of hops, more than a frame
    length = round(BLOCK_S * SAMPLE_RATE / version.hop_length) * version.hop_length
    known, waiting = None, None  # the samples before, and the block that waits for the next
    for block in rechunk(iter(blocks), length):
        block = block.double()
        if waiting is not None:
            yield waiting, _middle(known, waiting, block[..., :margin], version)
            known = waiting[..., -margin:]
        else:
            known = block[..., :0]
        waiting = block
    if waiting is not None and waiting.shape[-1]:
        yield waiting, _middle(known, waiting, waiting[..., :0], version)


def _middle(before: Tensor, samples: Tensor, after: Tensor, version: Version) -> Tensor:
    whole = _stretched(torch.cat([before, samples, after], -1), version)
    return whole[..., before.shape[-1] :][..., : samples.shape[-1]]


def _stretched(signal: Tensor, version: Version) -> Tensor:
    """(..., T) in float64 -> (..., T), before any level is set."""
    n_fft, hop_length, *_ = version
    extended = torch.nn.functional.pad(signal, (0, n_fft // 2))
    window = "hamming_symmetric"
    spec = stft(extended, n_fft, hop_length, n_fft, window, "constant")  # (..., F, L)
    gains = _gains(version).to(signal.device)
    spec = torch.polar(torch.expm1(spec.abs().log1p() * gains), spec.angle())
    return istft(spec, n_fft, hop_length, n_fft, signal.shape[-1], window)


def _gains(version: Version) -> Tensor:
    """g of every bin, (F, 1)."""
    gains = torch.ones(version.n_freqs, 1, dtype=torch.float64)
    for (first, end), gain in zip(pairwise(version.edges), GAINS, strict=True):
        gains[first:end] = gain
    return gains
