"""The one short-time Fourier transform, for losses, spectral models and figures.

Frames of n_fft samples are centred on sample 0 and every hop_length-th sample after it. The signal
is mirrored at its ends; the periodic Hann window of win_length is in the middle of a frame. n_fft
is even, win_length at most n_fft. `window` and `padding` select the variants of other packages.

A signal in chunks has no ends to mirror: `whole_frames` and `overlap_add` are the same transform
and its inverse for the frames within a chunk.
"""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOWS = {
    "hann": torch.hann_window,
    "hamming_symmetric": partial(torch.hamming_window, periodic=False),  # equal ends
}
Padding = Literal["reflect", "constant"]  # beyond the ends: mirrored, or zeros


def stft(
    waveform: Tensor,
    n_fft: int,
    hop_length: int,
    win_length: int,
    window: str = "hann",
    padding: Padding = "reflect",
) -> Tensor:
    """(..., T) -> complex spectrum (..., F, L): F = n_fft // 2 + 1, L = 1 + T // hop_length.

    A signal of half a frame or less cannot be mirrored and is padded with zeros.
    window: a name in WINDOWS.
    """
    *lead, n_samples = waveform.shape
    n_frames = 1 + n_samples // hop_length
    taps = WINDOWS[window](win_length, dtype=waveform.dtype, device=waveform.device)
    if not waveform.numel():  # torch refuses an empty batch; the gradient is empty, too
        empty = waveform.new_zeros(*lead, n_fft // 2 + 1, n_frames)
        return torch.complex(empty, empty) * waveform.sum()
    waveform = F.pad(waveform, (0, max(0, n_fft // 2 + 1 - n_samples)))
    spec = torch.stft(
        waveform.reshape(-1, waveform.shape[-1]),
        n_fft,
        hop_length,
        win_length,
        taps,
        pad_mode=padding,
        return_complex=True,
    )[..., :n_frames]
    return spec.reshape(*lead, *spec.shape[1:])


def istft(
    spec: Tensor, n_fft: int, hop_length: int, win_length: int, n_samples: int, window: str = "hann"
) -> Tensor:
    """Complex spectrum (..., F, L) -> (..., T) with T = n_samples: the inverse of `stft`.

    For an inconsistent spectrum: the signal with the nearest spectrum (least squares).
    """
    *lead, n_freqs, n_frames = spec.shape
    if not spec.numel():
        return spec.real.new_zeros(*lead, n_samples) * spec.real.sum()
    taps = WINDOWS[window](win_length, dtype=spec.real.dtype, device=spec.device)
    waveform = torch.istft(
        spec.reshape(-1, n_freqs, n_frames), n_fft, hop_length, win_length, taps, length=n_samples
    )
    return waveform.reshape(*lead, n_samples)


def whole_frames(waveform: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """(..., T) -> complex spectrum (..., F, L) of the L frames within the signal.

    The first starts at sample 0, L = 1 + (T - n_fft) // hop_length, or 0 where T < n_fft. The
    window is as long as a frame.
    """
    *lead, n_samples = waveform.shape
    if n_samples < n_fft or not waveform.numel():
        empty = waveform.new_zeros(*lead, n_fft // 2 + 1, 0)
        return torch.complex(empty, empty)
    window = torch.hann_window(n_fft, dtype=waveform.dtype, device=waveform.device)
    flat = waveform.reshape(-1, n_samples)
    spec = torch.stft(flat, n_fft, hop_length, window=window, center=False, return_complex=True)
    return spec.reshape(*lead, *spec.shape[1:])


def overlap_add(spec: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """Complex spectrum (..., F, L) -> the samples that r = n_fft / hop_length frames share.

    They are (..., T) with T = max(0, L - r + 1) * hop_length; the first is the sample
    n_fft - hop_length of the first frame. For a result of `whole_frames` they are the signal's,
    else as of `istft`. hop_length is n_fft / 2 or divides that.
    """
    n_shared = n_fft // hop_length
    n_blocks = max(0, spec.shape[-1] - n_shared + 1)
    if not n_blocks or not spec.numel():  # FFT libraries refuse empty input
        return spec.real.new_zeros(*spec.shape[:-2], n_blocks * hop_length)
    window = torch.hann_window(n_fft, dtype=spec.real.dtype, device=spec.device)
    frames = torch.fft.irfft(spec.transpose(-1, -2), n_fft) * window  # (..., L, n_fft)
    parts = frames.unflatten(-1, (n_shared, hop_length))  # (..., L, r, hop)
    total = sum(parts[..., i : i + n_blocks, n_shared - 1 - i, :] for i in range(n_shared))
    weight = window.square().unflatten(0, (n_shared, hop_length)).sum(0)  # (hop,)
    return (total / weight).flatten(-2)
