"""Laws of the spectral losses: the published values, per example, safe where nothing sounds."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.audio.spectrum import FrontEnd, Spectrum
from speechlab.losses import spectral as losses
from tests.support.signals import arrays

FRONT = FrontEnd()
# system: edges, offsets of the consistency, name of the consistency in the golden files
PUBLISHED = {"semamba": ("raw", "reanalysis", "con"), "mpsenet": ("differences", "mpsenet", "stft")}
every_convention = pytest.mark.parametrize("name", PUBLISHED)


def spectra(n=3, n_frames=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 2, n, FRONT.n_freqs, n_frames)
    (one, two), (three, four) = torch.rand(shape, generator=generator, dtype=dtype)
    turn = 2 * math.pi
    return Spectrum(2 * one, turn * two - math.pi), Spectrum(2 * three, turn * four - math.pi)


def terms(name, estimate, reference):
    edges, offsets, _ = PUBLISHED[name]
    waves = [FRONT.synthesise(x) for x in (estimate, reference)]
    return {
        "magnitude": losses.magnitude(estimate, reference),
        "ip": losses.instantaneous_phase(estimate, reference),
        "gd": losses.group_delay(estimate, reference, edges),
        "iaf": losses.angular_frequency(estimate, reference, edges),
        "phase": losses.phase(estimate, reference, edges),
        "complex": losses.complex_spectrum(estimate, reference),
        "time": losses.time(*waves),
        "consistency": losses.consistency(estimate, FRONT, offsets),
    }


@every_convention
def test_published_terms(shared, name):
    folder = shared / "golden" / name / "losses"
    parts = ("mag", "pha")
    gen, clean = (Spectrum(*arrays(folder, *(f"{w}_{x}" for x in parts))) for w in ("gen", "clean"))
    known = json.loads((folder / "manifest.json").read_text())["extra"]
    found = {k: v.mean().item() for k, v in terms(name, gen, clean).items()}
    short = {"magnitude": "mag", "complex": "com", "consistency": PUBLISHED[name][2]}
    for term in ("magnitude", "ip", "gd", "iaf", "complex", "time", "consistency"):
        assert found[term] == pytest.approx(known[short.get(term, term)], abs=1e-5), term
    assert found["phase"] == pytest.approx(known["ip"] + known["gd"] + known["iaf"], abs=1e-5)


@every_convention
def test_a_loss_is_of_its_example_alone(name):
    estimate, reference = spectra()
    together = terms(name, estimate, reference)
    for i in range(3):
        alone = terms(name, *(Spectrum(*(x[i : i + 1] for x in s)) for s in (estimate, reference)))
        for term, values in together.items():
            assert values.shape == (3,)
            assert values[i].item() == pytest.approx(alone[term].item(), rel=1e-12), term


@every_convention
def test_a_nan_stays_in_its_example(name):
    estimate, reference = spectra()
    estimate.mag[1] = estimate.phase[1] = math.nan
    for values in terms(name, estimate, reference).values():
        assert values.isnan().tolist() == [False, True, False]


@every_convention
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silence_and_zero_bins_have_finite_gradients(name, dtype):
    """A silent estimate, a silent reference, both, and single bins that are exactly zero."""
    estimate, reference = spectra(4, dtype=dtype)
    for mag, silent in ((estimate.mag, (0, 2)), (reference.mag, (1, 2))):
        mag[list(silent)] = 0
        mag[3, ::3, ::2] = 0
    estimate = Spectrum(*(x.clone().requires_grad_() for x in estimate))
    for term, values in terms(name, estimate, reference).items():
        found = torch.autograd.grad(values.sum(), [*estimate], allow_unused=True)
        assert values.isfinite().all(), term
        assert all(g is None or g.isfinite().all() for g in found), term


@given(angle=st.floats(-50, 50), turns=st.integers(-5, 5))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_phase_does_not_know_whole_turns(angle, turns):
    one, two = torch.tensor([angle, angle + 2 * math.pi * turns], dtype=torch.float64)
    found, turned = losses.anti_wrapped(one).item(), losses.anti_wrapped(two).item()
    assert turned == pytest.approx(found, abs=1e-9)
    assert found == pytest.approx(abs(math.remainder(angle, math.tau)))


def test_what_a_phase_offset_costs():
    """One of all bins and frames is seen by the phase itself, and by the raw edges alone."""
    reference, _ = spectra()
    estimate = reference._replace(phase=reference.phase + 0.5)
    found = losses.instantaneous_phase(estimate, reference)
    assert torch.allclose(found, torch.tensor(0.5).double())
    for loss, n in ((losses.group_delay, 201), (losses.angular_frequency, 7)):
        assert loss(estimate, reference, "differences").abs().max() < 1e-12
        expected = torch.full((3,), 0.5 / n, dtype=torch.float64)
        assert torch.allclose(loss(estimate, reference, "raw"), expected)


def test_equal_spectra_cost_nothing():
    estimate, _ = spectra()
    found = terms("semamba", estimate, estimate)
    assert all(values.abs().max() == 0 for term, values in found.items() if term != "consistency")
    waveform = torch.randn(2, 1200, generator=torch.Generator().manual_seed(1)).double()
    real = FRONT.analyse(waveform)  # of a signal, so consistent
    assert losses.consistency(real, FRONT, "reanalysis").max() < 1e-6


def test_one_frame_and_half_precision():
    estimate, reference = spectra(n_frames=1)
    assert losses.angular_frequency(estimate, reference, "differences").tolist() == [0, 0, 0]
    half = Spectrum(*(300 * x.half() for x in estimate))
    assert losses.magnitude(half, reference).isfinite().all()


def test_shapes_that_would_broadcast_are_refused():
    estimate, reference = spectra()
    with pytest.raises(ValueError, match="are not equal"):
        losses.magnitude(estimate, Spectrum(*(x[:1] for x in reference)))
    with pytest.raises(ValueError, match="no edges 'soft'"):
        losses.phase(estimate, reference, "soft")


def test_the_metric_term_is_zero_at_the_best_score():
    assert losses.metric(torch.tensor([1.0, 0.0, 0.5])).tolist() == [0, 1, 0.25]
