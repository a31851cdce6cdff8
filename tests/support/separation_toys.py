"""Test doubles for separation: speakers in separate bands, and a filter as the model."""

from dataclasses import dataclass
from itertools import pairwise, permutations

import torch
import torch.nn.functional as F
from torch import nn

from speechlab.models.base import ChunkedModel, Model

RATE = 1000  # Hz
N_TAPS = 101


@dataclass(frozen=True)
class SplitterConfig:
    n_sources: int = 2
    seed: int = 0
    sample_rate: int = RATE


def bands(n_sources):
    """Filters (S, 1, taps) for a band each, that together are one impulse."""
    time = torch.arange(N_TAPS) - N_TAPS // 2
    edges = torch.linspace(0, 1, n_sources + 1)  # of half the rate
    low = [edge * torch.sinc(edge * time) * torch.hann_window(N_TAPS, False) for edge in edges[:-1]]
    low.append((time == 0).float())
    return torch.stack([high - less for less, high in pairwise(low)])[:, None]


class Splitter(Model):
    """A speaker in each band of the spectrum, (B, 1, T) -> (B, S, T), in a new random order.

    swaps: False keeps the order. gains: the least and the most of a call's own gain. hiss: noise in
    each output, whoever's it is. door: samples beyond it go to the first output before the swap
    or the last, at random. inverts: each output is upside down or not, at random.
    leak: how much an output has of each of the others, give or take 4 dB (at random).
    """

    needs_whole = "it is a toy"

    def __init__(
        self,
        n_sources=2,
        swaps=True,
        gains=(1.0, 1.0),
        hiss=0.0,
        door=None,
        inverts=False,
        leak=0.0,
        seed=0,
    ):
        super().__init__(SplitterConfig(n_sources, seed))
        self.n_sources, self.swaps, self.gains, self.hiss = n_sources, swaps, gains, hiss
        self.door, self.inverts, self.leak = door, inverts, leak
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer("bands", bands(n_sources))
        self.orders, self.lengths, self.signs = [], [], []

    def forward(self, mixture):
        self.lengths.append(mixture.shape[-1])
        slam = torch.zeros_like(mixture)
        if self.door is not None:
            slam = mixture * (mixture.abs() > self.door)
        parts = F.conv1d(mixture - slam, self.bands, padding=N_TAPS // 2)
        parts[:, self._drawn(self.n_sources)] += slam[:, 0]
        if self.leak:
            each = torch.randn(self.n_sources, 1, generator=self.generator)
            others = parts.sum(1, keepdim=True) - parts
            parts = parts + self.leak * torch.exp(0.5 * each) * others
        parts = parts + self.hiss * torch.randn(parts.shape, generator=self.generator)
        low, high = self.gains
        parts = parts * low * (high / low) ** torch.rand((), generator=self.generator)
        if self.inverts:
            signs = 1 - 2 * torch.randint(2, (self.n_sources, 1), generator=self.generator)
            parts = parts * signs
            self.signs.append(tuple(signs[:, 0].tolist()))
        orders = list(permutations(range(self.n_sources)))
        self.orders.append(orders[self._drawn(len(orders)) if self.swaps else 0])
        return parts[:, self.orders[-1]]

    def _drawn(self, n):
        return int(torch.randint(n, (), generator=self.generator))


def talk(schedule, n_sources=2, seed=0):
    """(seconds, who talks as bits) -> sources (S, T): noise of each one's band, at 0.1 or so."""
    generator = torch.Generator().manual_seed(seed)
    n_samples = sum(round(seconds * RATE) for seconds, _ in schedule)
    noise = 0.2 * torch.randn(n_sources, 1, n_samples, generator=generator)
    sources = torch.cat(
        [F.conv1d(x, b[None], padding="same") for x, b in zip(noise, bands(n_sources), strict=True)]
    )
    who = torch.cat([torch.full((round(s * RATE),), bits) for s, bits in schedule])
    return sources * torch.stack([(who >> i) & 1 for i in range(n_sources)])


class Streamer(ChunkedModel):
    """A stream of two speakers who alternate every half second, each with its own noise.

    In all channels but the first they are exchanged.
    """

    n_sources, look_ahead = 2, 0

    def __init__(self, seed=0):
        super().__init__(SplitterConfig())
        self.generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.zeros(1))  # a stream has the type of the weights

    def padded_length(self, length):
        return length

    def network(self, x, state, last):
        n_before = state[0] if state else 0
        n_after = n_before + x.shape[-1]
        first = torch.arange(n_before, n_after) // (RATE // 2) % 2 == 0
        parts = torch.cat([x * first, x * ~first], 1)
        parts = parts + 1e-3 * torch.randn(parts.shape, generator=self.generator)
        return torch.cat([parts[:1], parts[1:, [1, 0]]]), (n_after,)


def flips(estimates, sources, window=RATE // 4):
    """How often the order of estimates (S, T) changes, from one time that tells it to the next."""
    n = sources.shape[-1] // window * window
    estimates, sources = (x[:, :n].unflatten(-1, (-1, window)) for x in (estimates, sources))
    agreement = torch.einsum("iln,jln->lij", estimates, sources)
    power = sources.square().sum(-1)  # (S, L)
    heard = (power > 0.05 * power.amax(-1, keepdim=True)).any(0)
    orders = list(permutations(range(len(sources))))
    totals = torch.stack(
        [sum(agreement[:, order[i], i] for i in range(len(order))) for order in orders]
    )
    best = totals.argmax(0)
    # where not all talk, several orders are as good: one that still holds is kept
    now, n_flips = None, 0
    for index in torch.nonzero(heard)[:, 0]:
        good = totals[:, index] > 0.9 * totals[best[index], index]
        still = good if now is None else now & good
        n_flips += not still.any()
        now = still if still.any() else good
    return n_flips
