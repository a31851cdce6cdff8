"""What a model costs on this machine: speed, latency and memory; sizes are from `models.macs`."""

import ctypes
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import nn

from speechlab.inference.stream import Stream
from speechlab.models.macs import count_macs, macs_per_second, n_params

PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Cost:
    """A row of a table: what a model costs on this machine."""

    n_params: int
    macs_per_second: float  # all
    scan_macs_per_second: float  # of these, the memory of the mixers
    latency_ms: float  # of the algorithm; infinite where the whole input is needed
    real_time_factor: float  # offline, on `threads` threads
    threads: int


def cost(model: nn.Module, seconds: float = 10.0, threads: int = 1) -> Cost:
    """All of it; the real-time factor on noise of so many seconds."""
    macs = count_macs(model)
    rtf = real_time_factor(model, seconds, threads)
    return Cost(n_params(model), macs.total, macs.memory, latency_ms(model), rtf, threads)


def cost_table(models: Mapping[str, nn.Module], seconds: float = 10.0) -> pd.DataFrame:
    """A row per model, named in the column `model`, and the fields of `Cost`."""
    return pd.DataFrame([{"model": k} | asdict(cost(m, seconds)) for k, m in models.items()])


@dataclass(frozen=True)
class StreamCost:
    """What one stream costs on this machine, in hops of the model's own length."""

    n_params: int
    macs_per_second: float
    latency_samples: int
    latency_ms: float
    state_bytes: int
    hop_ms: float  # length of a hop
    median_ms: float  # time that a hop takes
    p95_ms: float
    load: float  # median time over length: below 1 keeps up


def stream_cost(model: nn.Module, noisy: torch.Tensor, path: str | None = None) -> StreamCost:
    """Feed noisy (B, 1, T) to a stream on `path`, hop by hop, and time each; a quarter warms up."""
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
    """Milliseconds of future that an output sample needs; infinite where it needs the whole."""
    if model.look_ahead is None:
        return math.inf
    return 1000 * model.look_ahead / model.sample_rate


def real_time_factor(
    model: nn.Module, seconds: float = 10.0, threads: int = 1, repeats: int = 3
) -> float:
    """Time of one offline forward pass over the length of its input: below 1 is faster than it.

    The median of `repeats` passes on noise, after one that does not count. CPU time on one thread,
    where it is the wall time of a machine with nothing else to do; else wall time.
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


def peak_memory(function: Callable[..., Any], *arguments: Any) -> float:
    """Bytes that function(*arguments) adds at most to a fresh process, imports not counted.

    The highest resident set during the call less that before it. The process is `spawn`ed: the
    function must be importable, and a script must call this under `if __name__ == "__main__"`. NaN
    where the system does not tell (only Linux does).
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(added_memory, function, *arguments).result()


def added_memory(function: Callable[..., Any], *arguments: Any) -> float:
    """Bytes that function(*arguments) adds at most to this process.

    Memory that was freed before goes back to the system first, where its C library can do that
    (glibc); elsewhere a call that takes such memory again adds less. NaN where the system does not
    tell.
    """
    if not (PROCESS / "clear_refs").exists():
        return math.nan
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back:
        give_back(0)
    (PROCESS / "clear_refs").write_text("5")  # forgets the peak so far
    before = _resident("VmRSS")
    function(*arguments)
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """Bytes, of VmRSS (now) or VmHWM (at most)."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(field):
            return 1024.0 * int(line.split()[1])
    return math.nan
