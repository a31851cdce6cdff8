"""The short-time Fourier transform: of losses, of spectral models, of pictures.

There is one in the house. Frames of n_fft samples are centred on sample 0 and every hop_length-th
after it, the signal mirrored at its ends; the periodic Hann window of win_length lies in the middle
of a frame. n_fft is even, win_length at most n_fft.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def stft(waveform: Tensor, n_fft: int, hop_length: int, win_length: int) -> Tensor:
    """(..., T) -> complex spectrum (..., F, L): F = n_fft // 2 + 1, L = 1 + T // hop_length.

    A signal of half a frame or less, which cannot be mirrored, goes on with zeros.
    """
    *lead, n_samples = waveform.shape
    n_frames = 1 + n_samples // hop_length
    window = torch.hann_window(win_length, dtype=waveform.dtype, device=waveform.device)
    if not waveform.numel():  # a batch of none, which torch refuses; its gradient is one of none
        empty = waveform.new_zeros(*lead, n_fft // 2 + 1, n_frames)
        return torch.complex(empty, empty) * waveform.sum()
    waveform = F.pad(waveform, (0, max(0, n_fft // 2 + 1 - n_samples)))
    spec = torch.stft(
        waveform.reshape(-1, waveform.shape[-1]),
        n_fft,
        hop_length,
        win_length,
        window,
        return_complex=True,
    )[..., :n_frames]
    return spec.reshape(*lead, *spec.shape[1:])


def istft(spec: Tensor, n_fft: int, hop_length: int, win_length: int, n_samples: int) -> Tensor:
    """Complex spectrum (..., F, L) -> (..., T) with T = n_samples: the inverse of `stft`.

    Of a spectrum that no signal has, the signal whose spectrum is nearest (least squares).
    """
    *lead, n_freqs, n_frames = spec.shape
    if not spec.numel():
        return spec.real.new_zeros(*lead, n_samples) * spec.real.sum()
    window = torch.hann_window(win_length, dtype=spec.real.dtype, device=spec.device)
    waveform = torch.istft(
        spec.reshape(-1, n_freqs, n_frames),
        n_fft,
        hop_length,
        win_length,
        window,
        length=n_samples,
    )
    return waveform.reshape(*lead, n_samples)
