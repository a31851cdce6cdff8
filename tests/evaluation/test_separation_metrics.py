"""Measures of separated speech: one order per mixture, failures with reasons, means over all."""

import json
from itertools import permutations

import fast_bss_eval
import numpy as np
import pytest

from speechlab.evaluation import metrics, separation_metrics
from speechlab.evaluation.separation_metrics import (
    ALONE,
    IMPROVEMENTS,
    METRICS,
    NO_OTHER,
    SILENT,
    mean,
    numbered,
    permutation,
    score,
    usual,
)
from tests.evaluation.conftest import read

RATE = 8000
QUICK = (*IMPROVEMENTS, *IMPROVEMENTS.values())


def drawn(n_sources, n_samples=3000, seed=0, error=0.1):
    """Estimates and sources (S, T), and the mixture (T,)."""
    rng = np.random.default_rng(seed)
    sources = rng.normal(size=(n_sources, n_samples))
    estimates = sources + error * rng.normal(size=sources.shape)
    return estimates, sources, sources.sum(0)


@pytest.mark.parametrize("n_sources", [2, 3, 4, 5])
def test_every_order_of_the_estimates_gives_the_same_numbers(n_sources):
    estimates, sources, mixture = drawn(n_sources)
    expected = score(estimates, sources, mixture, RATE, ("si_sdri",))
    for order in list(permutations(range(n_sources)))[::7]:
        found = score(estimates[list(order)], sources, mixture, RATE, ("si_sdri",))
        assert [order[speaker.estimate] for speaker in found] == list(range(n_sources))
        assert [speaker.values for speaker in found] == [speaker.values for speaker in expected]


@pytest.mark.parametrize("n_sources", [2, 3, 4])
def test_the_order_is_that_of_brute_force(n_sources):
    """Estimates that are anything, so that the best order is not a matter of course."""
    for seed in range(10):
        _, sources, _ = drawn(n_sources, 300, seed)
        estimates = np.random.default_rng(seed + 99).normal(size=(n_sources, n_sources)) @ sources
        orders = list(permutations(range(n_sources)))
        sums = [
            sum(metrics.si_sdr(estimates[e], sources[r], RATE) for r, e in enumerate(order))
            for order in orders
        ]
        assert permutation(estimates, sources) == orders[int(np.argmax(sums))]


def test_each_measure_is_the_tool_s_and_an_improvement_is_over_the_mixture():
    estimates, sources, mixture = drawn(2, 6000)
    found = score(estimates[::-1], sources, mixture, RATE, QUICK)
    assert numbered(speaker.estimate for speaker in found) == "2 1"
    sdr, sir, _, order = fast_bss_eval.bss_eval_sources(sources, estimates)
    with np.errstate(divide="ignore"):  # nothing but the sources is in the mixture: its SAR
        _, before, _, _ = fast_bss_eval.bss_eval_sources(sources, np.stack([mixture, mixture]))
    assert order.tolist() == [0, 1]
    for j, (speaker, source, estimate) in enumerate(zip(found, sources, estimates, strict=True)):
        values = speaker.values
        assert not speaker.reasons
        assert values["sdr"] == pytest.approx(sdr[j], abs=1e-6)
        assert values["sir"] == pytest.approx(sir[j], abs=1e-6)
        assert values["siri"] == pytest.approx(sir[j] - before[j], abs=1e-6)
        for name in ("si_snr", "si_sdr", "sdr"):
            gained = [metrics.METRICS[name](x, source, RATE) for x in (estimate, mixture)]
            assert values[name] == gained[0]
            assert values[f"{name}i"] == gained[0] - gained[1]


@pytest.mark.parametrize("name", usual(RATE))
def test_a_gain_or_sign_of_an_estimate_changes_nothing(name, shared):
    mixture, sources = real(shared, "libri2mix_dev_8k")
    estimates = sources + 0.3 * sources[::-1]
    gained = estimates * np.array([[-300.0], [1e-3]])
    one, other = (score(x, sources, mixture, RATE, (name,)) for x in (estimates, gained))
    assert mean(one, (name,))[name] == pytest.approx(mean(other, (name,))[name], abs=2e-4)


def test_the_mixture_improves_on_nothing():
    _, sources, mixture = drawn(3)
    found = score(np.stack([mixture] * 3), sources, mixture, RATE, QUICK)
    assert numbered(speaker.estimate for speaker in found) == "1 2 3"
    assert all(speaker.values[name] == 0 for speaker in found for name in IMPROVEMENTS)


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_a_silent_source_is_left_out_with_its_reason(silent):
    estimates, sources, mixture = drawn(3, 4000)
    mixture = mixture - sources[silent]
    sources[silent] = 0
    estimates = estimates[[2, 0, 1]]
    found = score(estimates, sources, mixture, RATE, QUICK)
    assert [speaker.estimate for speaker in found] == [1, 2, 0]
    assert found[silent].reasons == {"all": SILENT}
    others = [speaker for j, speaker in enumerate(found) if j != silent]
    assert not any(speaker.reasons for speaker in others)
    means = mean(found, QUICK)
    for name in QUICK:
        assert np.isnan(found[silent].values[name])
        assert means[name] == np.mean([speaker.values[name] for speaker in others])


@pytest.mark.parametrize("broken", [0.0, np.nan, np.inf])
def test_a_silent_or_broken_estimate_fails_alone_and_is_not_averaged_away(broken):
    """The other speaker keeps the right estimate; the mean of the mixture would flatter."""
    estimates, sources, mixture = drawn(2)
    estimates = estimates[::-1].copy()
    estimates[0] = broken
    found = score(estimates, sources, mixture, RATE, QUICK)
    assert numbered(speaker.estimate for speaker in found) == "2 1"
    assert not found[0].reasons and found[0].values["si_sdr"] > 15
    assert found[1].reasons.keys() == set(QUICK) and not found[1].is_left_out
    assert all(np.isnan(value) for value in mean(found, QUICK).values())


def test_nothing_to_hear_has_an_order_and_no_value():
    silence = np.zeros((2, 3000))
    found = score(silence, silence, silence[0], RATE, QUICK)
    assert [speaker.estimate for speaker in found] == [0, 1]
    assert all(speaker.reasons == {"all": SILENT} for speaker in found)
    assert all(np.isnan(value) for value in mean(found, QUICK).values())


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_one_speaker_has_no_measure_alone_and_all_but_sir_in_noise(noise):
    """Alone the mixture's scores are infinite: left out of all, so that means are over the same."""
    estimates, sources, mixture = drawn(2)
    sources[1] = 0
    first = score(estimates, sources, sources[0] + noise * mixture, RATE, QUICK)[0]
    if noise:
        assert first.reasons == {"sir": NO_OTHER, "siri": NO_OTHER}
        assert not first.is_left_out and np.isfinite(first.values["si_sdri"])
    else:
        assert first.is_left_out and first.reasons == {"all": ALONE}
        assert all(np.isnan(value) for value in first.values.values())


@pytest.mark.parametrize("n_samples", [600, 800, 1024, 1025])
def test_sdr_and_sir_have_one_limit(n_samples):
    has = n_samples > 1024
    for speaker in score(*drawn(2, n_samples), RATE, (*QUICK, "stoi", "pesq_nb", "pesq_wb")):
        for name in ("sdr", "sdri", "sir", "siri"):
            assert np.isfinite(speaker.values[name]) == has
            assert has or speaker.reasons[name] == "too short: 512 taps fit anything"
        assert np.isfinite(speaker.values["si_sdri"]) and "too short" in speaker.reasons["stoi"]
        assert "8000 Hz" in speaker.reasons["pesq_wb"]


def test_speakers_who_never_overlap_are_distinguished():
    """An estimate with nothing of the source is the worst, not an unknown."""
    sources = np.zeros((2, 2000))
    rng = np.random.default_rng(0)
    sources[0, :1000], sources[1, 1000:] = rng.normal(size=(2, 1000))
    noisy = sources + 3 * np.where(sources == 0, 0, rng.normal(size=sources.shape))
    assert permutation(noisy[::-1], sources) == (1, 0)


def test_signals_of_other_shapes_are_refused():
    estimates, sources, mixture = drawn(2)
    for wrong in (estimates[:1], estimates[:, :-1], estimates[0]):
        with pytest.raises(ValueError, match="shapes"):
            score(wrong, sources, mixture, RATE, QUICK)


def test_a_table_has_the_pesq_of_its_rate():
    assert usual(8000)[-1] == "pesq_nb" and usual(16000)[-1] == "pesq_wb"
    assert "pesq" not in " ".join(usual(44100))
    assert set(usual(8000)) <= set(METRICS)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_rates_of_the_metrics(rate):
    """Where a metric is defined it has a value, and elsewhere none."""
    for speaker in score(*drawn(2, rate), rate, METRICS):
        defined = {name: np.isfinite(value) for name, value in speaker.values.items()}
        assert defined == {name: metrics.defined_at(name, rate) for name in METRICS}


def test_published_si_sdri(shared):
    """SepMamba's loss and improvement on fixed tensors."""
    folder = shared / "golden/sepmamba/loss"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["outputs"]["si_sdri"]["shape"] == [3, 2]
    names = ("src", "gen", "mix", "reordered", "si_sdri", "loss")
    src, gen, mix, ordered, si_sdri, loss = (np.load(folder / f"{name}.npy") for name in names)
    values = []
    for sources, estimates, mixture, best, known in zip(
        src, gen, mix, ordered, si_sdri, strict=True
    ):
        speakers = score(estimates, sources, mixture, RATE, ("si_sdri", "si_sdr"))
        chosen = [speaker.estimate for speaker in speakers]
        np.testing.assert_array_equal(estimates[chosen], best)
        np.testing.assert_allclose([s.values["si_sdri"] for s in speakers], known, atol=1e-4)
        values.append(mean(speakers, ("si_sdr",))["si_sdr"])
    assert -np.mean(values) == pytest.approx(float(loss), abs=1e-5)


def real(shared, name):
    """The first mixture (T,) of a set, and its sources (2, T)."""
    folder = shared / "audio/mix2" / name
    file = sorted((folder / "mix").iterdir())[0].name
    mixture, *sources = (read(folder / part / file) for part in ("mix", "s1", "s2"))
    return mixture, np.stack(sources)


@pytest.mark.parametrize(
    ("name", "rate"), [("libri2mix_dev_8k", 8000), ("echo2mix_spmamba", 16000)]
)
def test_real_mixtures(shared, name, rate):
    """Almost the sources are almost perfect, the mixture is where it begins."""
    (mixture, sources), names = real(shared, name), usual(rate)
    oracle = sources[::-1] + 1e-4 * np.random.default_rng(0).normal(size=sources.shape)
    best, none = (
        mean(score(estimates, sources, mixture, rate, names), names)
        for estimates in (oracle, np.stack([mixture] * 2))
    )
    assert best["si_sdri"] > 30 and best["sdri"] > 30 and best["siri"] > 30
    assert best["stoi"] > 0.99 and best[names[-1]] > 4
    assert all(none[gain] == 0 for gain in IMPROVEMENTS)
    assert abs(none["si_sdr"]) < 6 and none["stoi"] < 0.9 and none[names[-1]] < 2.5


def test_sir_is_brute_force(monkeypatch):
    """Projections on all delays of the sources by least squares; three sources, one silent."""
    n_taps = 16
    monkeypatch.setattr(separation_metrics, "SDR_TAPS", n_taps)
    estimates, sources, _ = drawn(3, 600)
    estimates += 0.3 * np.roll(sources, 1, axis=0)
    sources[1] = 0

    def part(estimate, heard):
        delayed = [np.roll(np.pad(x, (0, n_taps)), d) for x in heard for d in range(n_taps)]
        basis, padded = np.stack(delayed, 1), np.pad(estimate, (0, n_taps))
        return basis @ np.linalg.lstsq(basis, padded, rcond=None)[0]

    found = separation_metrics.sir(estimates, sources)
    assert found[1][1] == SILENT
    for j in (0, 2):
        own, every = part(estimates[j], sources[[j]]), part(estimates[j], sources[[0, 2]])
        expected = 10 * np.log10(np.sum(own**2) / np.sum((every - own) ** 2))
        assert found[j] == (pytest.approx(expected, abs=1e-6), "")
