"""Long streams for development: recordings one after another, with other levels and with pauses.

A stream joins mixtures of held-out recordings (`mixing.Mixtures`): each has its own speaker, noise,
SNR and level. A pause follows, in which the noise of the mixture continues: backwards and forwards
again, so that no edge is heard. A stream is a pure function of (seed, index).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from speechlab.data.mixing import Mixtures, generator

PAUSES = 2  # stream of random numbers: examples have 0, the order of an epoch 1


class LongStream(NamedTuple):
    noisy: Tensor  # (1, T) float32
    clean: Tensor  # (S, T), silent in pauses
    clips: list[tuple[int, int]]  # begin and end of each mixture, samples


def long_stream(
    mixtures: Mixtures,
    seconds: float,
    seed: int = 0,
    index: int = 0,
    pause_s: tuple[float, float] = (0.0, 4.0),
) -> LongStream:
    """A stream of so many seconds or somewhat more: it ends after a whole mixture and its pause.

    seconds: its length.
    index: of the stream.
    pause_s: range of the pauses, s.
    """
    rate, parts, clips, begin = mixtures.sample_rate, [], [], 0
    while not clips or clips[-1][1] < seconds * rate:
        key = seed, index, len(clips)
        mixture = mixtures.mixture(*key)
        n_pause = round(generator(*key, PAUSES).uniform(*pause_s) * rate)
        parts += [(mixture.noisy, mixture.clean)]
        parts += [(_continued(mixture.noise, n_pause), torch.zeros(mixtures.n_sources, n_pause))]
        clips.append((begin, begin + mixture.noisy.shape[-1]))
        begin = clips[-1][1] + n_pause
    return _stream(parts, clips)


def joined(pairs: Iterable[tuple[Tensor, Tensor]], n_samples: int) -> Iterator[LongStream]:
    """Ready pairs (noisy (1, T), clean (S, T)) one after another, in streams of about n_samples.

    A stream ends with the pair that makes it long enough; the last one has what is left.
    """
    parts, clips = [], []
    for noisy, clean in pairs:
        begin = clips[-1][1] if clips else 0
        parts.append((noisy, clean))
        clips.append((begin, begin + noisy.shape[-1]))
        if clips[-1][1] >= n_samples:
            yield _stream(parts, clips)
            parts, clips = [], []
    if parts:
        yield _stream(parts, clips)


def _stream(parts: Sequence[tuple[Tensor, Tensor]], clips: list[tuple[int, int]]) -> LongStream:
    noisy, clean = (torch.cat(of, -1) for of in zip(*parts, strict=True))
    return LongStream(noisy, clean, clips)


def _continued(noise: Tensor, length: int) -> Tensor:
    """The next samples (1, length) of noise (1, T): it is played backwards and forwards."""
    n = noise.shape[-1]
    at = torch.arange(length) % (2 * n)
    return noise[:, torch.where(at < n, n - 1 - at, at - n)]
