"""Laws of the Wiener filter: its recursions by hand, its bounds, noise, speech and silence."""

import numpy as np
import pytest
import torch

from speechlab.audio import files
from speechlab.config import override
from speechlab.evaluation.metrics import si_sdr
from speechlab.models.baselines.wiener import WienerConfig, WienerFilter, gain, noise_power
from tests.support.signals import noise

CONFIG = WienerConfig()
FLOOR = 10 ** (CONFIG.gain_floor_db / 20)


def spoken(n_samples=48000, rate=16000):
    """(1, 1, T): harmonics of a gliding voice, in syllables with pauses between them."""
    seconds = torch.arange(n_samples) / rate
    phase = 2 * torch.pi * (120 * seconds + 20 * torch.sin(3 * seconds))
    voice = sum(torch.sin(k * phase) / k for k in range(1, 30))
    syllables = torch.sin(2 * torch.pi * 1.5 * seconds).clamp_min(0) ** 0.5
    return (0.1 * voice * syllables)[None, None]


def at_snr(clean, noisy, snr_db):
    return clean + noisy * clean.std() / noisy.std() * 10 ** (-snr_db / 20)


def db(wave, reference):
    return 10 * (wave.square().mean() / reference.square().mean()).log10().item()


def score(estimate, clean):
    return si_sdr(estimate.numpy().ravel(), clean.numpy().ravel(), 16000)


def mcra_by_hand(power, below, above, config):
    """One bin with its two neighbours, frame by frame, in floats."""
    hop_s = config.hop_length / config.sample_rate
    smooth, presence, noise_keep = (
        alpha ** (hop_s / 0.008)
        for alpha in (config.power_smoothing, config.presence_smoothing, config.noise_smoothing)
    )
    n_window = round(config.minimum_s / hop_s)
    around = below / 4 + power / 2 + above / 4
    estimate, level = np.mean(power[:n_window]), np.mean(around[:n_window])
    least = recent = level
    p, estimates = 0.0, []
    frames = [*range(n_window - 1, 0, -1), *range(len(power))]  # the first window backwards, all
    for i, frame in enumerate(frames, start=1):
        now = power[frame]
        estimates.append(estimate)
        level = smooth * level + (1 - smooth) * around[frame]
        least, recent = min(least, level), min(recent, level)
        if i % n_window == 0:
            least, recent = min(recent, level), level
        p = presence * p + (1 - presence) * (level > config.presence_ratio * least)
        keep = noise_keep + (1 - noise_keep) * p
        estimate = keep * estimate + (1 - keep) * now
    return estimates[-len(power) :]


@pytest.mark.parametrize("changes", [{}, {"hop_length": 256, "minimum_s": 0.2}])
def test_the_noise_estimate_is_the_papers_recursion(changes):
    """In a middle bin, and in the lowest, which is its own neighbour below."""
    config = override(CONFIG, **changes)
    power = np.random.default_rng(0).exponential(size=(3, 400))
    power[:, 150:230] *= np.array([[2], [100], [9]])  # speech
    power[:, 300:] *= 4  # another noise
    found = noise_power(torch.from_numpy(power).expand(2, -1, -1), config).numpy()
    low, middle, high = power
    wanted = [mcra_by_hand(low, low, middle, config), mcra_by_hand(middle, low, high, config)]
    np.testing.assert_allclose(found[1, :2], wanted, rtol=1e-12)


def test_the_gain_is_the_papers_recursion():
    posterior = np.random.default_rng(0).exponential(size=300)
    posterior[100:200] *= 30
    wanted, before = [], 1.0  # A^2 / lambda of the frame before the first
    for i, value in enumerate(posterior):
        if i == 0:
            before = max(value - 1, 0)
        prior = 0.92 * before + 0.08 * max(value - 1, 0)
        wanted.append(max(prior / (1 + prior), FLOOR))
        before = wanted[-1] ** 2 * value
    found = gain(torch.from_numpy(posterior)[None, None], CONFIG)
    np.testing.assert_allclose(found.numpy()[0, 0], wanted, rtol=1e-12)


def test_gains_lie_between_the_floor_and_one():
    posterior = noise(2, 7, 200, dtype=torch.float64).abs().exp() ** 5
    posterior[0, :, ::3] = 0
    posterior[1, 2, 50] = 1e280
    gains = gain(posterior, CONFIG)
    assert gains.min() >= FLOOR and gains.max() <= 1


def test_noise_alone_sinks_to_about_the_floor():
    """White and stationary, in all of the file, its first frames included."""
    noisy = 0.1 * noise(4, 1, 48000)
    estimate = WienerFilter()(noisy)
    assert CONFIG.gain_floor_db - 0.1 < db(estimate, noisy) < CONFIG.gain_floor_db + 3
    for part in (slice(0, 4000), slice(24000, 28000), slice(44000, 48000)):
        assert db(estimate[..., part], noisy[..., part]) < CONFIG.gain_floor_db + 6


def test_a_louder_noise_is_learnt():
    """Twice the window of the minimum after noise rises by 20 dB, it is noise again."""
    noisy = 0.01 * noise(1, 1, 80000)
    noisy[..., 16000:] *= 10
    later = slice(16000 + int(2.5 * CONFIG.minimum_s * 16000), None)
    assert db(WienerFilter()(noisy)[..., later], noisy[..., later]) < CONFIG.gain_floor_db + 6


def test_speech_at_high_snr_is_nearly_untouched():
    clean = spoken()
    noisy = at_snr(clean, noise(1, 1, 48000), 40)
    assert score(WienerFilter()(noisy), clean) > 25
    assert score(WienerFilter()(clean), clean) > 25


@pytest.mark.parametrize("snr_db", [-5, 0, 5, 10, 15])
def test_speech_in_white_noise_gains_si_sdr(snr_db):
    clean = spoken()
    noisy = at_snr(clean, noise(1, 1, 48000), snr_db)
    assert score(WienerFilter()(noisy), clean) > score(noisy, clean) + 3


def test_real_clean_speech_is_nearly_untouched(shared):
    path = shared / "audio/pairs/voicebank_demand_train/clean/p226_002.flac"
    clean, rate = files.load(path, 16000)
    assert score(WienerFilter()(clean[None]), clean) > 20
    assert rate == CONFIG.sample_rate


def test_silence_stays_silent():
    model = WienerFilter()
    assert torch.equal(model(torch.zeros(2, 1, 5000)), torch.zeros(2, 1, 5000))
    late = torch.cat([torch.zeros(1, 1, 16000), noise(1, 1, 16000)], -1)
    estimate = model(late)
    assert estimate.isfinite().all() and not estimate[..., : 16000 - CONFIG.n_fft].any()


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-10, 2.0**20, 2.0**50])
def test_a_louder_input_is_the_same_output_louder(scale):
    """Powers of two change no bit."""
    model, noisy = WienerFilter(), 0.1 * noise(1, 1, 9000)
    assert torch.equal(model(scale * noisy), scale * model(noisy))
    torch.testing.assert_close(model(0.3 * noisy), 0.3 * model(noisy), rtol=1e-4, atol=1e-6)


def test_examples_are_independent_and_the_input_is_left_alone():
    model = WienerFilter()
    noisy = noise(3, 1, 7000) * torch.tensor([1e-4, 1.0, 100.0])[:, None, None]
    kept = noisy.clone()
    together = model(noisy)
    assert torch.equal(noisy, kept)
    for i in range(3):
        torch.testing.assert_close(model(noisy[i : i + 1]), together[i : i + 1])


def test_a_nan_stays_in_its_example():
    model, noisy = WienerFilter(), noise(3, 1, 7000)
    whole = model(noisy)
    noisy[1, 0, 3000] = torch.nan
    estimate = model(noisy)
    assert torch.equal(estimate[::2], whole[::2])
    assert estimate[1].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 2, 127, 128, 255, 256, 257, 511, 512, 513, 3001])
def test_every_length_keeps_its_length(length, dtype):
    estimate = WienerFilter()(noise(2, 1, length, dtype=dtype))
    assert estimate.shape == (2, 1, length) and estimate.dtype == dtype
    assert estimate.isfinite().all()


def test_a_batch_of_none():
    assert WienerFilter()(torch.zeros(0, 1, 900)).shape == (0, 1, 900)


def test_with_a_floor_of_one_it_is_the_identity():
    noisy = noise(1, 1, 3001, dtype=torch.float64)
    torch.testing.assert_close(WienerFilter(override(CONFIG, gain_floor_db=0.0))(noisy), noisy)


def test_the_constants_mean_the_same_at_another_rate_and_hop():
    """32 ms windows at 8 kHz: about as much noise goes."""
    config = override(CONFIG, sample_rate=8000, n_fft=256, hop_length=64, win_length=256)
    noisy = noise(1, 1, 24000)
    assert db(WienerFilter(config)(noisy), noisy) == pytest.approx(CONFIG.gain_floor_db, abs=3)
    clean = spoken(24000, 8000)
    noisy = at_snr(clean, noisy, 5)
    assert score(WienerFilter(config)(noisy), clean) > score(noisy, clean) + 3
