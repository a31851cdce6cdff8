"""Laws of the compressed spectra: back and forth, loudness, silence, the published ones."""

import numpy as np
import pytest
import torch

from speechlab.audio.level import LEVELS
from speechlab.audio.spectrum import FrontEnd, Spectrum
from tests.support.signals import array, noise

OFFSETS = ("none", "mpsenet", "reanalysis")
PUBLISHED = {
    "semamba/small_h16_n2": "none",
    "mpsenet/small_c16": "mpsenet",
    "mpsenet_mamba/small_c16_1_2": "mpsenet",
}


def wrapped(phase):
    """The distance to the nearest whole turn, radians."""
    turns = phase / (2 * np.pi)
    return 2 * np.pi * (turns - turns.round()).abs()


@pytest.mark.parametrize("n_samples", [1, 99, 100, 101, 399, 401, 16_000])
def test_synthesis_gives_the_signal_back(n_samples):
    """In float32, a signal of unit level to 1e-6 of its largest sample, at every length."""
    waveform = noise(2, n_samples, seed=n_samples)
    spectrum = FrontEnd().analyse(waveform)
    assert spectrum.mag.shape == spectrum.phase.shape == (2, 201, 1 + n_samples // 100)
    again = FrontEnd().synthesise(spectrum, n_samples)
    assert (again - waveform).abs().max() <= 1e-6 * waveform.abs().max()


@pytest.mark.parametrize("offsets", OFFSETS)
def test_offsets_change_little(offsets):
    """They keep roots and arctangents apart from 0; a signal comes back all the same."""
    waveform, front_end = noise(1, 3000, dtype=torch.float64), FrontEnd(offsets=offsets)
    plain, spectrum = FrontEnd().analyse(waveform), front_end.analyse(waveform)
    assert (spectrum.mag - plain.mag).abs().max() <= 1e-6
    away = (spectrum.parts - plain.parts).norm(dim=-1)
    assert away[..., 1:].max() <= 1e-3  # the first frame's phases are 0 or π: an offset picks one
    assert (front_end.synthesise(spectrum, 3000) - waveform).abs().max() <= 1e-4


def test_without_a_length_it_is_that_of_the_hops():
    spectrum = FrontEnd().analyse(noise(1, 1050))
    assert FrontEnd().synthesise(spectrum).shape == (1, 1000)


def test_loudness_is_compressed():
    """Twice as loud is 2 ** 0.3 as much; the phase stays."""
    waveform = noise(1, 3000)
    soft, loud = FrontEnd().analyse(waveform), FrontEnd().analyse(2 * waveform)
    torch.testing.assert_close(loud.mag, 2**0.3 * soft.mag)
    assert torch.equal(loud.phase, soft.phase)


@pytest.mark.parametrize("offsets", OFFSETS)
def test_silence_has_a_spectrum_and_is_its_inverse(offsets):
    front_end, silence = FrontEnd(offsets=offsets), torch.zeros(1, 700)
    spectrum = front_end.analyse(silence)
    assert spectrum.mag.isfinite().all() and spectrum.phase.isfinite().all()
    assert front_end.synthesise(spectrum, 700).abs().max() <= 1e-5


@pytest.mark.parametrize("offsets", ["mpsenet", "reanalysis"])
def test_offsets_make_gradients_finite_on_silence(offsets):
    waveform = torch.zeros(1, 700, requires_grad=True)
    FrontEnd(offsets=offsets).analyse(waveform).parts.sum().backward()
    assert waveform.grad.isfinite().all()


def test_silent_estimates_have_gradients():
    mag = torch.zeros(1, 201, 8, requires_grad=True)
    spectrum = Spectrum(mag, torch.zeros(1, 201, 8))
    again = FrontEnd().reanalyse(spectrum, "reanalysis")
    (FrontEnd().synthesise(spectrum).sum() + again.mag.sum()).backward()
    assert mag.grad.isfinite().all()


def test_a_signal_has_the_spectrum_it_has_alone():
    """The sign of each π in the first frame, too: no phase is a turn off."""
    waveform = noise(3, 40_000)
    together = FrontEnd().analyse(waveform)
    for i, one in enumerate(waveform):
        alone = FrontEnd().analyse(one[None])
        torch.testing.assert_close(alone.mag[0], together.mag[i])
        torch.testing.assert_close(alone.phase[0], together.phase[i])


def test_a_signal_is_consistent_and_an_estimate_becomes_so():
    """Reanalysis keeps what a signal has; of a spectrum that none has, once is as good as twice."""
    front_end = FrontEnd()
    spectrum = front_end.analyse(noise(1, 3000, dtype=torch.float64))
    again = front_end.reanalyse(spectrum, "none")
    torch.testing.assert_close(again.parts, spectrum.parts, rtol=0, atol=1e-9)
    odd = Spectrum(spectrum.mag, spectrum.phase.flip(-1))
    once = front_end.reanalyse(odd, "none")
    assert (once.parts - odd.parts).abs().max() > 0.1
    twice = front_end.reanalyse(once, "none")
    torch.testing.assert_close(twice.parts, once.parts, rtol=0, atol=1e-9)


def test_parts_are_a_complex_number():
    spectrum = FrontEnd().analyse(noise(1, 900))
    wanted = torch.view_as_real(torch.polar(spectrum.mag, spectrum.phase))
    torch.testing.assert_close(spectrum.parts, wanted)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_spectra(shared, name):
    """At unit level; the complex spectrum, not compressed, to 1e-6 of its largest value."""
    folder = shared / "golden" / name
    noisy, mag, phase = (array(folder / f"{n}.npy") for n in ("wav_in", "noisy_mag", "noisy_pha"))
    unit = (noisy[:, None] * LEVELS["rms"].gain(noisy[:, None], 16000))[:, 0]
    found = FrontEnd(offsets=PUBLISHED[name]).analyse(unit)
    wanted = torch.polar(mag ** (1 / 0.3), phase).reshape(found.mag.shape)
    error = torch.polar(found.mag ** (1 / 0.3), found.phase) - wanted
    assert error.abs().max() <= 1e-6 * wanted.abs().max()


@pytest.mark.parametrize(
    ("offsets", "power", "phase"), [("mpsenet", 1e-9, 1e-5), ("reanalysis", 1e-10, np.pi / 4)]
)
def test_the_spectrum_of_silence_is_that_of_the_published_offsets(offsets, power, phase):
    """atan2(1e-10, 1e-5) and atan2(1e-10, 1e-10): offsets are too small to show elsewhere."""
    found = FrontEnd(offsets=offsets).analyse(torch.zeros(1, 700))
    wanted = torch.full_like(found.mag, power**0.15), torch.full_like(found.phase, phase)
    torch.testing.assert_close(tuple(found), wanted, rtol=1e-6, atol=0)


def test_other_sizes():
    front_end = FrontEnd(n_fft=512, hop_length=256, win_length=512, compress=0.5)
    waveform = noise(1, 2000, dtype=torch.float64)
    spectrum = front_end.analyse(waveform)
    assert front_end.n_freqs == 257 and spectrum.mag.shape == (1, 257, 8)
    assert (front_end.synthesise(spectrum, 2000) - waveform).abs().max() <= 1e-9
    assert wrapped(spectrum.phase - front_end.analyse(3 * waveform).phase).max() <= 1e-6
