"""Laws of the short-time Fourier transform: its definition, its inverse, every length."""

from functools import partial

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.audio.stft import istft, stft
from tests.support import signals
from tests.support.signals import array

FRAMES = [(512, 50, 240), (1024, 120, 600), (400, 100, 400), (512, 256, 512)]


noise = partial(signals.noise, dtype=torch.float64)


@given(
    frames=st.sampled_from(FRAMES),
    n_samples=st.one_of(st.integers(1, 600), st.integers(600, 5000)),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_inverse_gives_the_signal_back_at_every_length(frames, n_samples, seed):
    waveform = noise(2, 3, n_samples, seed=seed)
    spec = stft(waveform, *frames)
    assert spec.shape == (2, 3, frames[0] // 2 + 1, 1 + n_samples // frames[1])
    assert torch.allclose(istft(spec, *frames, n_samples), waveform, rtol=0, atol=1e-10)


@pytest.mark.parametrize("frames", FRAMES, ids=str)
def test_three_implementations_agree(frames):
    """torch, the definition frame by frame in NumPy, and SciPy (its phase counts otherwise)."""
    n_fft, hop_length, win_length = frames
    waveform = noise(3001)
    spec = stft(waveform, *frames).numpy()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    left = (n_fft - win_length) // 2
    mirrored = np.pad(waveform.numpy(), n_fft // 2, mode="reflect")
    for index in (0, 1, 7, spec.shape[1] - 1):
        frame = mirrored[index * hop_length :][:n_fft].copy()
        frame[left : left + win_length] *= window
        frame[:left] = frame[left + win_length :] = 0
        assert np.allclose(spec[:, index], np.fft.rfft(frame), rtol=0, atol=1e-10)
    scaled = scipy.signal.stft(
        waveform.numpy(),
        window="hann",
        nperseg=win_length,
        noverlap=win_length - hop_length,
        nfft=n_fft,
        boundary="even",
        padded=False,
    )[2]
    assert np.allclose(np.abs(spec), np.abs(scaled) * window.sum(), rtol=0, atol=1e-10)


def test_published_spectra(shared):
    """MP-SENet's resynthesis and the spectrum of it, n_fft 400, with MP-SENet's offsets.

    The complex spectrum, not compressed, to 1e-6 of its largest value.
    """
    folder = shared / "golden/mpsenet/losses"
    names = ("gen_mag", "gen_pha", "gen_wav", "hat_mag", "hat_com")
    mag, phase, waveform, again, com = (array(folder / f"{n}.npy") for n in names)
    spec = torch.polar(mag ** (1 / 0.3), phase)
    made = istft(spec, 400, 100, 400, waveform.shape[-1])
    assert torch.allclose(made, waveform, rtol=0, atol=1e-6)
    spec = stft(waveform, 400, 100, 400)
    found = torch.polar((spec.abs().square() + 1e-9).sqrt(), (spec + (1e-5 + 1e-10j)).angle())
    wanted = torch.polar(again ** (1 / 0.3), torch.view_as_complex(com).angle())
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_a_signal_has_the_spectrum_it_has_alone():
    waveform = noise(3, 1000)
    together = stft(waveform, 400, 100, 400)
    for one, spec in zip(waveform, together, strict=True):
        assert torch.equal(stft(one, 400, 100, 400), spec)


def test_a_batch_of_none_has_a_gradient_of_none():
    waveform = torch.zeros(0, 1, 500, requires_grad=True)
    spec = stft(waveform, 400, 100, 400)
    assert spec.shape == (0, 1, 201, 6) and spec.is_complex()
    again = istft(spec, 400, 100, 400, 500)
    assert again.shape == waveform.shape
    again.sum().backward()
    assert waveform.grad.shape == waveform.shape
