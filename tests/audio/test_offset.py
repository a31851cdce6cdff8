"""Laws of the offset: the high-pass is causal, the same in chunks, and as its head states."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.audio.offset import CEILING, CUTOFF_HZ, Filtered, high_pass
from speechlab.errors import UserError
from tests.support.signals import noise

RATE = 16000


def whole(x):
    return high_pass(x, RATE)[0]


@settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.integers(1, 2999), max_size=10, unique=True))
def test_chunk_law_and_prefix_law(cuts):
    x, state, parts = noise(2, 1, 3000, dtype=torch.float64) + 0.5, None, []
    for begin, end in itertools.pairwise([0, *sorted(cuts), 3000]):
        part, state = high_pass(x[..., begin:end], RATE, state)
        parts.append(part)
    assert isinstance(state, tuple) and state[0].dtype == torch.float64
    torch.testing.assert_close(torch.cat(parts, -1), whole(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(whole(x[..., :700]), whole(x)[..., :700], rtol=0, atol=0)


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
@pytest.mark.parametrize("hertz", [CUTOFF_HZ, 100.0, 3999.0])
def test_gain_and_phase_are_as_stated(rate, hertz):
    seconds = torch.arange(2 * rate, dtype=torch.float64) / rate
    tone = torch.exp(2j * math.pi * hertz * seconds)
    parts = [high_pass(x[None, None], rate)[0] for x in (tone.real.clone(), tone.imag.clone())]
    response = (torch.complex(*parts) / tone)[0, 0, rate:].mean()
    assert abs(response) == pytest.approx(1 / math.hypot(1, CUTOFF_HZ / hertz), abs=2e-3)
    if hertz < 200:
        assert response.angle() == pytest.approx(math.atan(CUTOFF_HZ / hertz), abs=3e-3)


def test_an_offset_fades_within_53_ms_and_silence_stays_silence():
    step = whole(torch.full((1, 1, RATE), 0.05, dtype=torch.float64))[0, 0]
    assert step[round(0.053 * RATE)] == pytest.approx(0.05 / math.e, rel=0.01)
    assert step[-1].abs() < 1e-9
    assert not whole(torch.zeros(1, 1, 100)).any()


def test_the_state_does_not_drift():
    """With an offset of full scale, the thousandth part equals the tenth."""
    second, state, seen = 0.1 * noise(1, 1, 4000) + 1, None, []
    for _ in range(1000):
        part, state = high_pass(second, RATE, state)
        seen.append(part)
    torch.testing.assert_close(seen[-1], seen[9], rtol=0, atol=1e-6)
    assert seen[-1].mean().abs() < 1e-6


def test_blocks_are_clamped_and_filtered_and_another_scale_is_refused():
    x = 0.9 * CEILING * noise(2, 5000).clamp(-1, 1)
    x[:, 100:200] *= 1e8
    blocks = joined(Filtered(x.split(77, -1), RATE, "x"))
    assert (blocks - whole(x.clamp(-CEILING, CEILING)[:, None])[:, 0]).abs().max() < 1e-6
    with pytest.raises(UserError, match=r"x: \d+ of 10000 samples are beyond 2 times full scale"):
        joined(Filtered((2**15 * x).split(77, -1), RATE, "x"))


def joined(blocks):
    return torch.cat(list(blocks), -1)
