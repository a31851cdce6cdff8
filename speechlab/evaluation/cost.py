"""Time that a model takes on this machine, offline and as a stream; counts are in `models.macs`."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import pandas as pd
import torch
from torch import nn

from speechlab.inference.stream import Stream
from speechlab.models.macs import macs_per_second, n_params


@dataclass(frozen=True)
class StreamCost:
    """The cost of one stream on this machine, in hops of the model's own length."""

    n_params: int
    macs_per_second: float
    latency_samples: int
    latency_ms: float
    state_bytes: int
    hop_ms: float  # length of a hop
    median_ms: float  # time that a hop takes
    p95_ms: float
    load: float  # median time over length: below 1 is real time


def stream_cost(model: nn.Module, noisy: torch.Tensor, path: str | None = None) -> StreamCost:
    """Feed noisy (B, 1, T) to a stream on `path` and time each hop after the first quarter."""
    stream, spent = Stream(model, path), []
    for hop in noisy.split(model.hop_length, -1):
        start = time.perf_counter()
        stream.feed(hop)
        spent.append(1000 * (time.perf_counter() - start))
    settled = pd.Series(spent[len(spent) // 4 :])
    hop_ms = 1000 * model.hop_length / model.sample_rate
    return StreamCost(
        n_params=n_params(model),
        macs_per_second=macs_per_second(model),
        latency_samples=stream.latency,
        latency_ms=stream.latency_ms,
        state_bytes=stream.state_bytes,
        hop_ms=hop_ms,
        median_ms=float(settled.median()),
        p95_ms=float(settled.quantile(0.95)),
        load=float(settled.median()) / hop_ms,
    )


def latency_ms(model: nn.Module) -> float:
    """Milliseconds of future that an output sample needs; infinite where it needs all of them."""
    if model.look_ahead is None:
        return math.inf
    return 1000 * model.look_ahead / model.sample_rate


def real_time_factor(
    model: nn.Module, seconds: float = 10.0, threads: int = 1, repeats: int = 3
) -> float:
    """Time of one offline forward pass over the length of its input: below 1 is real time.

    The median of `repeats` passes on noise, after one warm-up pass. On one thread it is CPU time,
    which is the wall time of an idle machine; else wall time.
    """
    parameter = next(model.parameters())
    noise = 0.05 * torch.randn(1, 1, round(seconds * model.sample_rate))
    noise = noise.to(parameter)
    clock = time.perf_counter if threads > 1 or noise.is_cuda else time.process_time
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times = [_seconds_of(model, noise, clock) for _ in range(repeats + 1)]
    finally:
        torch.set_num_threads(before)
    return median(times[1:]) / seconds


@torch.inference_mode()
def _seconds_of(model: nn.Module, noise: torch.Tensor, clock: Callable[[], float]) -> float:
    start = clock()
    model(noise)
    if noise.is_cuda:
        torch.cuda.synchronize()
    return clock() - start
