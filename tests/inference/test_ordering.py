"""Chunks of several sources: none changes its place at a seam, whatever the speakers do there."""

import pytest
import torch

from speechlab.inference.ordering import (
    MARGIN_S,
    Cut,
    across_channels,
    along_time,
    in_order,
    unmixed,
)
from speechlab.inference.overlap_add import joined
from speechlab.inference.separate import separate_blocks
from tests.support.separation_toys import RATE, Splitter, Streamer, flips, talk

SECOND = RATE


def separated(model, sources, chunk_s=8.0, block=997):
    """(C, S, T) or (S, T) of sources -> estimates of their mixture, through chunks."""
    sources = sources[None] if sources.dim() == 2 else sources
    cut = Cut.of(chunk_s, RATE)
    blocks = sources.sum(1).split(block, -1)
    estimates = in_order(
        lambda x: torch.cat([model(channel[None, None]) for channel in x]), blocks, cut
    )
    return torch.cat(list(joined(estimates, cut.overlap, RATE // 2)), -1)


def upright(estimates, sources):
    """Estimates (S, T) in the order of the sources, each with its sign."""
    agreement = estimates @ sources.T
    order = agreement.abs().argmax(0)
    places = range(len(sources))
    assert sorted(order.tolist()) == list(places)
    return estimates[order] * agreement[order, places].sign()[:, None]


SCHEDULES = {  # seconds, and who talks: 1 the first, 2 the second, 3 both, 0 nobody
    "both": [(60, 3)],
    "one after the other": [(5, 1), (5, 2)] * 6,
    "a monologue, then the other": [(4, 3), (30, 1), (10, 2), (20, 3)],
    "pauses as long as an overlap": [(5, 3), (2, 0), (5, 1), (2, 0), (5, 2), (2, 0)] * 3,
    "pauses longer than an overlap": [(4, 3), (3.5, 0), (3, 2), (3, 0), (3, 1)] * 4,
    "pauses longer than a chunk": [(6, 3), (25, 0), (5, 1), (40, 0), (5, 2), (17, 0), (6, 3)],
    "a pause at the beginning": [(30, 0), (5, 1), (9, 0), (5, 2), (9, 0), (5, 3)],
    "a few words in long pauses": [(1, 1), (13, 0), (1, 2), (14, 0), (1, 3), (20, 0)] * 2,
}


@pytest.mark.parametrize("hiss", [0.0, 0.01], ids=["digital silence", "hiss"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_source_changes_its_place_or_its_sign(schedule, hiss):
    """By a model that swaps and, with hiss, inverts, as a training by SI-SDR allows it."""
    sources = talk(SCHEDULES[schedule])
    model = Splitter(hiss=hiss, inverts=hiss > 0)
    estimates = separated(model, sources)[0]
    assert len(set(model.orders)) == 2  # the model did swap them
    assert estimates.shape == sources.shape
    estimates = upright(estimates, sources)
    assert flips(estimates, sources) == 0
    assert ((estimates * sources).sum(-1) > 0.95 * sources.square().sum(-1)).all()


def test_a_model_that_swaps_makes_flips_without_order():
    """The law above tells something: chunks that are just joined flip."""
    sources = talk(SCHEDULES["both"])
    model = Splitter()
    chunks = [model(x[None, None])[0] for x in sources.sum(0).split(8 * SECOND)]
    assert flips(torch.cat(chunks, -1), sources) > 0


@pytest.mark.parametrize("soft", [0.1, 0.02])
def test_levels_that_differ(soft):
    """Between speakers, and of the model from chunk to chunk, up to 20 dB."""
    sources = talk([(5, 3), (5, 0), (5, 1), (5, 3)] * 4) * torch.tensor([[1.0], [soft]])
    estimates = separated(Splitter(gains=(0.3, 3.0)), sources)[0]
    assert flips(estimates, sources) == 0


def test_a_slammed_door_decides_nothing():
    """50 ms, 20 times as loud as speech, in the place of whoever the model likes, at each seam."""
    sources = talk([(60, 3)])
    doors = torch.zeros_like(sources)
    for second in range(5, 60, 2):
        doors[0, second * SECOND : second * SECOND + SECOND // 20] = 4.0
    model = Splitter(door=2.0)
    estimates = separated(model, sources + doors)[0]
    quiet = doors[0] == 0
    assert flips(estimates * quiet, sources * quiet) == 0


@pytest.mark.parametrize("leak", [0.1, 0.2])
@pytest.mark.parametrize("n_sources", [2, 3])
def test_estimates_with_something_of_the_others(n_sources, leak):
    """A speaker who is heard in the estimates of the others does not pass for them."""
    turns = [(9, 2**n_sources - 1)] + [(12, 1 << i % n_sources) for i in range(4 * n_sources)]
    sources = talk(turns, n_sources)
    model = Splitter(n_sources, hiss=0.003, inverts=True, leak=leak)
    estimates = separated(model, sources)[0]
    assert flips(upright(estimates, sources), sources) == 0


def test_unmixed_estimates_are_those_without_the_others():
    """At their level, in their order; what is silent or the same stays finite."""
    sources = talk([(20, 7)], 3)[None]
    leaky = 0.3 * sources.sum(1, keepdim=True) + 0.7 * sources
    apart = unmixed(leaky)
    assert ((apart - sources).square().sum(-1) < 0.01 * sources.square().sum(-1)).all()
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(unmixed(leaky[:, order]), apart[:, order], atol=1e-5)
    for x in (0 * leaky, leaky[:, [0, 0, 1]], 1e-30 * leaky):
        assert unmixed(x).isfinite().all()


@pytest.mark.parametrize("n_sources", [3, 4])
def test_more_sources(n_sources):
    generator = torch.Generator().manual_seed(0)
    active = torch.randint(0, 2, (n_sources, 80), generator=generator).float()
    active[:, ::20] = 1
    sources = talk([(80, 2**n_sources - 1)], n_sources) * active.repeat_interleave(SECOND, -1)
    model = Splitter(n_sources)
    estimates = separated(model, sources)[0]
    assert len(set(model.orders)) > 3
    assert flips(estimates, sources) == 0


@pytest.mark.parametrize("inverts", [False, True], ids=["upright", "upside down"])
def test_what_a_perfect_model_gives_is_joined_without_a_trace(inverts):
    """Each estimate has one sign throughout, and none is faded into its own opposite."""
    sources = talk(SCHEDULES["pauses longer than a chunk"])
    wanted = Splitter(swaps=False)(sources.sum(0)[None, None])[0]
    model = Splitter(inverts=inverts)
    estimates = separated(model, sources)[0]
    assert len(set(model.signs)) == (4 if inverts else 0)
    assert (upright(estimates, wanted) - wanted).abs().max() < 1e-5


def test_the_cut_of_the_blocks_does_not_matter():
    sources = talk(SCHEDULES["pauses longer than an overlap"])
    one, other = (separated(Splitter(), sources, block=n) for n in (101, 10**6))
    assert torch.equal(one, other)


def test_a_chunk_is_never_longer_and_reaches_back_no_more_than_half():
    model = Splitter()
    separated(model, talk(SCHEDULES["a monologue, then the other"]))
    assert max(model.lengths) == 8 * SECOND
    assert len(model.lengths) <= 1 + 2 * 64 // 8  # 64 s, and each chunk has 4 s of its own


def test_a_chunk_begins_with_the_last_speech_of_both():
    """The second has been silent for 7 s: a chunk of 16 s hears him once more, and no more."""
    sources = talk([(9, 3), (7, 1), (30, 3)])
    whole, heard = sources.sum(0), []

    def model(x):
        heard.append(x[0])
        return Splitter(swaps=False)(x[:, None])

    cut = Cut.of(16.0, RATE)
    list(in_order(model, [whole[None]], cut))
    began = whole.unfold(-1, 100, 1).eq(heard[1][:100]).all(-1).nonzero().item()
    assert 8 * SECOND < began < 9 * SECOND
    n_again = heard[1].tolist().index(whole[16 * SECOND].item())
    assert n_again <= 8 * SECOND
    assert torch.equal(
        heard[1][n_again - cut.overlap :],
        whole[16 * SECOND - cut.overlap :][: 16 * SECOND - n_again + cut.overlap],
    )


def test_a_silent_mixture_stays_as_the_model_has_it():
    estimates = separated(Splitter(swaps=False), torch.zeros(2, 30 * SECOND))
    assert not estimates.any()


@pytest.mark.parametrize("chunk_s", [1.0, 4.0, 30.0])
@pytest.mark.parametrize("n", [1, 2, 31, 999, 1001, 4001, 30001])
def test_every_length(chunk_s, n):
    sources = talk([(31, 3)])[:, :n]
    estimates = separated(Splitter(), sources, chunk_s)
    assert estimates.shape == (1, 2, n)
    assert estimates.isfinite().all()


def test_channels_have_the_same_order():
    """Two microphones, one late and soft: in each the model swaps as it likes."""
    sources = talk(SCHEDULES["pauses longer than an overlap"])
    late = 0.3 * sources.roll(3, -1)
    estimates = separated(Splitter(), torch.stack([sources, late]))
    assert flips(estimates[0], sources) == flips(estimates[1], late) == 0
    agreement = (estimates[0] * estimates[1].roll(-3, -1)).sum(-1)
    assert (agreement > 0.9 * 0.3 * sources.square().sum(-1)).all()


def test_a_channel_that_is_silent_at_first_takes_the_order_of_the_other():
    sources = talk([(60, 3)])
    late = sources * (torch.arange(sources.shape[-1]) > 25 * SECOND)
    estimates = separated(Splitter(hiss=0.01), torch.stack([sources, late]))
    assert flips(estimates[0], sources) == flips(estimates[1], late) == 0
    assert ((estimates[0] * estimates[1]).sum(-1) > 0.9 * late.square().sum(-1)).all()


@pytest.mark.parametrize("silent_s", [0, 25, 31, 70])
def test_a_channel_of_a_stream_has_its_order_when_it_is_first_heard(silent_s):
    """From there on it has the order of the other; and chunks are no matter."""
    torch.manual_seed(0)
    mixture = 0.1 * torch.randn(1, 120 * RATE).repeat(2, 1) * torch.tensor([[1.0], [0.3]])
    mixture[1, : silent_s * RATE] = 0
    for seed in range(3):
        estimates = [
            torch.cat(list(separate_blocks(Streamer(seed), [mixture], chunk_s)), -1)
            for chunk_s in (1.0, 30.0, 100.0)
        ]
        assert torch.equal(estimates[0], estimates[1])
        assert torch.equal(estimates[0], estimates[2])
        first, second = estimates[0][..., silent_s * RATE :].unflatten(-1, (-1, RATE))
        assert ((first * second).sum(-1) > (first * second[[1, 0]]).sum(-1)).all()
        level = estimates[0][:, :, : RATE // 2].square().mean(-1)[0]
        assert level[0] > 1000 * level[1]  # the first channel is as the model has it


def test_channels_of_different_speakers_are_carried_on_their_own():
    """A speaker on either side: nothing tells an order across, and none flips."""
    first, second = talk([(30, 3), (10, 0), (30, 3)])
    nobody = torch.zeros_like(first)
    sources = torch.stack([torch.stack([first, nobody]), torch.stack([nobody, second])])
    estimates = separated(Splitter(hiss=0.01), sources)
    assert flips(estimates[0], sources[0]) == flips(estimates[1], sources[1]) == 0


def test_orders_of_what_says_nothing_stay():
    nothing = torch.zeros(2, 3, 200)
    order, sign = along_time(nothing, nothing, 32)
    assert order.tolist() == [[0, 1, 2]] * 2
    assert sign.tolist() == [[1, 1, 1]] * 2
    assert across_channels(nothing, 32).tolist() == [[0, 1, 2]] * 2
    assert across_channels(torch.ones(1, 2, 5), 32).tolist() == [[0, 1]]


def test_margins_are_part_of_an_overlap():
    for chunk_s in (1.0, 3.3, 30.0):
        cut = Cut.of(chunk_s, 8000)
        assert cut.overlap % cut.frame == 0
        assert 2 * cut.overlap <= cut.length
        assert cut.margin <= MARGIN_S * 8000
