"""Laws of the losses: per example, of the published values, safe where nothing sounds."""

from functools import partial

import fast_bss_eval
import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.evaluation import metrics
from speechlab.losses import waveform
from speechlab.losses.waveform import BANDS, l1, multi_resolution_stft, si_sdr, si_snr, snr

STFT = {band: partial(multi_resolution_stft, band=band) for band in BANDS}
LOSSES = {"l1": l1, "snr": snr, "si_sdr": si_sdr, "si_snr": si_snr, **STFT}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
ratio = pytest.mark.parametrize("loss", [si_sdr, si_snr])


def signals(*shape, seed=0, snr_db=6.0):
    """An estimate with noise in it and its reference, both float64 of this shape."""
    generator = torch.Generator().manual_seed(seed)
    reference, noise = 0.1 * torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    return 0.9 * reference + 10 ** (-snr_db / 20) * noise, reference


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 10.0, 20.0])
def test_snr_is_the_ratio_up_to_its_soft_end(snr_db):
    _, reference = signals(2, 1, 4000)
    noise = torch.randn_like(reference)
    share = 10 ** (-snr_db / 20) * reference.norm(dim=-1, keepdim=True)
    noise *= share / noise.norm(dim=-1, keepdim=True)
    expected = 10 * np.log10(10 ** (-snr_db / 10) + 1e-3)
    found = snr(reference + noise, reference)
    assert torch.allclose(found, torch.full_like(found, expected), atol=1e-4)
    louder = snr(100 * (reference + noise), 100 * reference)
    assert torch.allclose(louder, found, atol=1e-4)


def test_snr_counts_gain_and_sign():
    _, reference = signals(1, 1, 4000)
    assert snr(reference, reference).item() == pytest.approx(-30, abs=1e-3)
    assert snr(-reference, reference).item() == pytest.approx(6.02, abs=0.01)
    assert snr(0 * reference, reference).item() == pytest.approx(0, abs=0.01)


@every_loss
@given(seed=st.integers(0, 99), n_sources=st.integers(1, 3), n_samples=st.integers(200, 3000))
@settings(max_examples=6, deadline=None, derandomize=True)
def test_an_example_has_the_value_it_has_alone(loss, seed, n_sources, n_samples):
    estimate, reference = signals(3, n_sources, n_samples, seed=seed)
    together = loss(estimate, reference)
    assert together.shape == (3,)
    alone = [loss(estimate[i : i + 1], reference[i : i + 1]) for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-12)
    by_source = [loss(*(x[:, j : j + 1] for x in (estimate, reference))) for j in range(n_sources)]
    assert torch.allclose(together, torch.stack(by_source).mean(0), rtol=1e-12)


@every_loss
def test_gradients_are_those_of_finite_differences(loss):
    estimate, reference = signals(1, 2, 90)
    given = (estimate.requires_grad_(), reference)
    step = 1e-8  # so short that it crosses no kink of an absolute value
    assert torch.autograd.gradcheck(loss, given, eps=step, atol=1e-5, rtol=1e-5)


@every_loss
@pytest.mark.parametrize("which", ["estimate", "reference", "both", "equal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silence_and_equality_are_finite(loss, which, dtype):
    estimate, reference = (x.to(dtype) for x in signals(2, 1, 1500))
    if which in ("estimate", "both"):
        estimate = torch.zeros_like(estimate)
    if which in ("reference", "both"):
        reference = torch.zeros_like(reference)
    if which == "equal":
        estimate = reference.clone()
    estimate.requires_grad_()
    value = loss(estimate, reference)
    value.sum().backward()
    assert value.isfinite().all() and estimate.grad.isfinite().all()


@every_loss
def test_nan_stays_in_its_example(loss):
    """Seen, not hidden; its neighbours keep their values and gradients."""
    estimate, reference = signals(3, 1, 1200)
    clean = estimate.clone().requires_grad_()
    loss(clean, reference)[[0, 2]].sum().backward()
    broken = estimate.clone()
    broken[1, 0, 600] = torch.nan
    broken.requires_grad_()
    values = loss(broken, reference)
    values[[0, 2]].sum().backward()
    assert values.isnan().tolist() == [False, True, False]
    assert torch.equal(broken.grad[[0, 2]], clean.grad[[0, 2]])


@every_loss
def test_a_rank_without_examples_takes_part(loss):
    estimate = torch.zeros(0, 2, 800, requires_grad=True)
    value = loss(estimate, torch.zeros(0, 2, 800))
    assert value.shape == (0,)
    value.sum().backward()
    assert estimate.grad.shape == estimate.shape


@every_loss
@pytest.mark.parametrize("n_samples", [1, 2, 50, 1024, 1025])
def test_short_signals_have_a_value(loss, n_samples):
    assert loss(*signals(2, 1, n_samples)).isfinite().all()


@every_loss
def test_half_precision_counts_as_single(loss):
    """Energies of a second would overflow in float16."""
    estimate, reference = (x.float() for x in signals(1, 1, 16000))
    for dtype in (torch.float16, torch.bfloat16):
        rounded = (100 * estimate).to(dtype)
        value = loss(rounded, 100 * reference)
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(rounded.float(), 100 * reference))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(loss(rounded, 100 * reference), value)


@every_loss
def test_other_shapes_are_refused_not_broadcast(loss):
    estimate, reference = signals(2, 2, 300)
    for wrong in (reference[:1], reference[:, :1], reference[..., :1]):
        with pytest.raises(ValueError, match="are not both"):
            loss(estimate, wrong)
    with pytest.raises(ValueError, match="are not both"):
        loss(estimate[0], reference[0])


@pytest.mark.parametrize("loss", [l1, *STFT.values()])
def test_zero_at_equality_and_only_there(loss):
    estimate, reference = signals(2, 1, 4000)
    assert torch.equal(loss(reference, reference), torch.zeros(2, dtype=torch.float64))
    assert (loss(estimate, reference) > 0).all()


def test_l1_is_the_mean_distance_and_symmetric():
    estimate, reference = signals(2, 2, 100)
    expected = np.abs(estimate.numpy() - reference.numpy()).mean((1, 2))
    assert np.allclose(l1(estimate, reference), expected, rtol=1e-14)
    assert torch.equal(l1(estimate, reference), l1(reference, estimate))


def test_the_stft_loss_is_not_symmetric():
    """The reference, second, is what the error is measured by: a law on the order of arguments."""
    _, loud = signals(1, 1, 4000)
    quiet = 0.01 * loud
    assert multi_resolution_stft(quiet, loud) < multi_resolution_stft(loud, quiet)


def magnitude(waveform, n_fft, hop_length, win_length):
    """(T,) -> (F, L) by SciPy."""
    lengths = {"nperseg": win_length, "noverlap": win_length - hop_length, "nfft": n_fft}
    scaled = scipy.signal.stft(waveform, **lengths, boundary="even", padded=False)[2]
    power = np.abs(scaled * win_length / 2) ** 2
    return np.sqrt(np.maximum(power, 1e-7))


CUTS = {
    "full": lambda mag: mag,
    "high_as_published": lambda mag: mag[:, mag.shape[1] // 2 :],
    "high": lambda mag: mag[mag.shape[0] // 2 :],
}


@pytest.mark.parametrize("band", BANDS)
def test_stft_loss_is_its_definition_by_scipy(band):
    estimate, reference = signals(2, 1, 5000)
    expected = []
    for pair in zip(estimate[:, 0].numpy(), reference[:, 0].numpy(), strict=True):
        terms = []
        for resolution in waveform.RESOLUTIONS:
            est, ref = (CUTS[band](magnitude(x, *resolution)) for x in pair)
            convergence = np.linalg.norm(ref - est) / np.linalg.norm(ref)
            terms.append(0.5 * convergence + 0.5 * np.abs(np.log(ref / est)).mean())
        expected.append(np.mean(terms))
    assert np.allclose(STFT[band](estimate, reference), expected, rtol=1e-10)


def test_frozen_values_of_a_published_implementation():
    """Half of auraloss 0.4.0's MultiResolutionSTFTLoss(eps=1e-7) in float64, example by example."""
    pairs = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        reference = 0.1 * rng.standard_normal(8000)
        pairs.append((0.9 * reference + 0.05 * rng.standard_normal(8000), reference))
    estimate, reference = (torch.from_numpy(np.stack(x))[:, None] for x in zip(*pairs, strict=True))
    frozen = [0.3732452047274708, 0.37250468571745593]
    assert np.allclose(multi_resolution_stft(estimate, reference), frozen, rtol=1e-9)


def test_each_band_hears_its_part():
    """A tone of 1 kHz or of 6 kHz, in the first half or in the second, at 16 kHz."""
    seconds = torch.arange(16000, dtype=torch.float64) / 16000
    reference = 0.01 * signals(1, 1, 16000)[1]
    hears = {}
    for hertz in (1000, 6000):
        for half in (0, 1):
            swell = torch.exp(-200 * (seconds - 0.25 - half / 2).square())  # no click, no overlap
            tone = 0.1 * swell * torch.sin(2 * torch.pi * hertz * seconds)
            values = {band: float(loss(reference + tone, reference)) for band, loss in STFT.items()}
            hears[hertz, half] = {band for band, value in values.items() if value > 0.1}
    assert hears == {
        (1000, 0): {"full"},
        (1000, 1): {"full", "high_as_published"},
        (6000, 0): {"full", "high"},
        (6000, 1): {"full", "high", "high_as_published"},
    }


@ratio
@given(seed=st.integers(0, 99), snr_db=st.floats(-30, 60))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_minus_the_metric(loss, seed, snr_db):
    estimate, reference = signals(1, 1, 2000, seed=seed, snr_db=snr_db)
    estimate += 0.02  # a mean: what the two differ by
    expected = -getattr(metrics, loss.__name__)(estimate.flatten(), reference.flatten(), 16000)
    assert float(loss(estimate, reference)) == pytest.approx(expected, abs=2e-3)
    single = loss(estimate.float(), reference.float())
    assert float(single) == pytest.approx(expected, abs=5e-3)


@ratio
def test_three_implementations_agree(loss):
    """Torch here, NumPy in metrics, and fast_bss_eval's."""
    estimate, reference = signals(3, 2, 4000)
    zero_mean = loss is si_snr
    theirs = fast_bss_eval.si_sdr_loss(estimate, reference, zero_mean=zero_mean)
    assert torch.allclose(loss(estimate, reference), theirs.mean(-1), atol=1e-5)


@ratio
@pytest.mark.parametrize("gain", [1e-3, -1.0, 0.5, 300.0])
def test_gains_change_nothing(loss, gain):
    estimate, reference = signals(2, 2, 2000)
    value = loss(estimate, reference)
    assert torch.allclose(loss(gain * estimate, reference), value, atol=1e-5)
    assert torch.allclose(loss(estimate, gain * reference), value, atol=1e-5)


def test_si_snr_ignores_means_and_si_sdr_does_not():
    estimate, reference = signals(1, 1, 2000)
    assert torch.allclose(si_snr(estimate + 0.3, reference - 0.2), si_snr(estimate, reference))
    assert si_sdr(estimate + 0.3, reference) > si_sdr(estimate, reference) + 5


@ratio
def test_bounds_are_100_db(loss):
    """A perfect estimate, and one at right angles to its reference."""
    angle = 2 * torch.pi * torch.arange(1600, dtype=torch.float64) / 160
    sine, cosine = angle.sin()[None, None], angle.cos()[None, None]
    assert float(loss(sine, sine)) == pytest.approx(-100, abs=1e-3)
    assert float(loss(cosine, sine)) == pytest.approx(100, abs=1e-3)
