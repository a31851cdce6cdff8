"""Laws of levels: in blocks as of the whole; the running one is causal and does not drift."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.audio.level import BLOCK_S, GAIN, LEAST_RMS, LEVELS, MEMORY_S
from speechlab.errors import UserError

RATE = 16000
running = LEVELS["running"]
BLOCK = round(BLOCK_S * RATE)


def signal(seconds: float, rms: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = round(seconds * RATE)
    return rms * torch.randn(1, 1, n, dtype=torch.float64, generator=generator)


def in_chunks(noisy: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    state, levels = None, []
    for chunk in noisy.split(sizes, -1):
        level, state = running.step(chunk, RATE, state)
        levels.append(level)
    return torch.cat(levels, -1)


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, 4999), max_size=12, unique=True))
def test_chunks_have_the_levels_of_the_whole(cuts):
    noisy = signal(5000 / RATE, 0.1).repeat(2, 1, 1) * torch.tensor([1, 0.01])[:, None, None]
    edges = [0, *sorted(cuts), 5000]
    sizes = [b - a for a, b in itertools.pairwise(edges)]
    whole = running.of(noisy, RATE)
    torch.testing.assert_close(in_chunks(noisy, sizes), whole, rtol=1e-12, atol=0)


def test_a_batch_is_each_signal_alone():
    noisy = torch.cat([signal(0.3, 0.1), signal(0.3, 0.001, seed=1)])
    together = running.of(noisy, RATE)
    for i in range(2):
        alone = running.of(noisy[i : i + 1], RATE)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=0)


def expected(rms: float) -> float:
    return math.hypot(GAIN * rms, LEAST_RMS)


@pytest.mark.parametrize("rms", [1.0, 0.1, 0.005])
def test_of_a_steady_signal_it_is_its_rms_turned_down(rms):
    level = running.of(signal(10, rms), RATE)
    after = level[..., 3 * RATE :]
    assert (20 * torch.log10(after / expected(rms))).abs().max() < 0.5


@pytest.mark.parametrize("seconds", [1, 60])
@pytest.mark.parametrize("silence_rms", [0.0, 1e-3])
def test_after_silence_of_any_length_it_is_there_within_two_blocks(seconds, silence_rms):
    noisy = torch.cat([signal(seconds, silence_rms), signal(1, 0.1, seed=1)], -1)
    level = running.of(noisy, RATE)
    there = level[..., seconds * RATE + 2 * BLOCK :]
    assert there.min() > 0.5 * GAIN * 0.1  # 6 dB below, at most


def test_of_soft_input_the_prior_is_gone_within_two_seconds():
    level = running.of(signal(3, 0.01), RATE)
    assert level[..., 2 * RATE :].max() < 1.2 * expected(0.01)


def test_it_follows_a_speaker_who_becomes_softer():
    noisy = torch.cat([signal(20, 0.2), signal(12 * MEMORY_S, 0.01, seed=1)], -1)
    level = running.of(noisy, RATE)
    assert level[..., -1] < 1.5 * expected(0.01)


def test_silence_has_a_level():
    level = running.of(torch.zeros(1, 1, 5 * RATE), RATE)
    assert level.dtype == torch.float32
    assert level.min().item() == pytest.approx(LEAST_RMS)
    assert level[..., -1].item() == pytest.approx(LEAST_RMS)


def test_the_level_of_a_day_does_not_drift():
    """Its state fast-forwarded by a day, beyond the integers of 31 bits, gives the same levels."""
    noisy = signal(5, 0.05)
    _, state = running.step(noisy, RATE)
    days = tuple(BLOCK * math.ceil(n / BLOCK) for n in (24 * 3600 * RATE, 2**31, 2**32))
    expected, _ = running.step(noisy, RATE, state)
    for n in days:
        level, after = running.step(noisy, RATE, (state[0] + n, *state[1:]))
        torch.testing.assert_close(level, expected, rtol=1e-9, atol=0)
        assert after[0] - state[0] - n == noisy.shape[-1]


def test_no_gradient_passes_and_the_input_is_left_alone():
    noisy = signal(0.1, 0.1).requires_grad_()
    before = noisy.detach().clone()
    level = running.of(noisy, RATE)
    assert not level.requires_grad
    torch.testing.assert_close(noisy.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["utterance", "rms"])
@pytest.mark.parametrize("offset", [0.0, 1.0, -1000.0])
@pytest.mark.parametrize("size", [7, 997, 40000])
def test_the_level_in_blocks_is_that_of_the_whole(name, offset, size):
    noisy = 0.1 * torch.randn(3, 40000, generator=torch.Generator().manual_seed(0)) + offset
    level = LEVELS[name].of_blocks(noisy.split(size, -1))
    exact = LEVELS[name].of(noisy.double()[:, None], RATE)
    assert level.shape == (3, 1, 1) and (level / exact - 1).abs().max() < 1e-6
    if not offset:
        theirs = LEVELS[name].of(noisy[:, None], RATE)
        assert (level / theirs - 1).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["utterance", "rms", "none"])
def test_the_level_of_a_single_sample(name):
    level = LEVELS[name]
    assert torch.equal(level.of_blocks([torch.ones(1, 1)]), level.of(torch.ones(1, 1, 1), RATE))


@pytest.mark.parametrize("name", ["utterance", "rms"])
def test_blocks_that_come_once_are_refused(name):
    assert not LEVELS[name].causal
    with pytest.raises(UserError, match="twice; pass them as a list"):
        LEVELS[name].of_blocks(iter([torch.ones(1, 10)]))
