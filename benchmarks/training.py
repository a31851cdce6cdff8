"""Training steps per second on a CPU: the fused scan and the plain loop, in one run.

    python benchmarks/training.py [--threads 1 2] [--quick] [--output FILE.csv]

The 442K CleanUMamba with L1 and multi-resolution STFT losses, on mixtures of sound files, with the
batches and steps of `fit`. The two scans alternate in one process, each on its own copy of the
model and on the same batches. The parts of a step, in CPU time: `data` makes the batch, `forward`
is the model, `loss` the losses, `backward` the gradients, `optimizer` clips and steps. Times are
medians over steps: CPU time on one thread, wall time on several.
"""

import argparse
import copy
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import soundfile
import torch
from torch import nn
from tqdm import tqdm

from speechlab.data.loader import Batch, batches
from speechlab.data.manifest import Item
from speechlab.data.mixing import MixtureConfig, Mixtures
from speechlab.data.recordings import Source
from speechlab.layers.scan import backend_status
from speechlab.losses import waveform
from speechlab.models.cleanumamba import CleanUMamba, ablation_config
from speechlab.models.macs import n_params
from speechlab.storage.atomic import write
from speechlab.training.distributed import World
from speechlab.training.loop import Supervised
from speechlab.training.schedule import TrainingConfig
from speechlab.training.state import State, take_step

PORTIONS = [(4, 4.0), (2, 10.0)]  # (examples in a batch, seconds of each): ours, published
BACKENDS = ("numba", "reference")
PARTS = ("data", "forward", "loss", "backward", "optimizer")
ROUNDS = 5  # timed steps of each backend
RESULTS = Path("results/benchmarks/training.csv")
LOSSES = {"l1": waveform.l1, "stft": waveform.multi_resolution_stft}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--quick", action="store_true", help="a tenth of the length, two steps")
    parser.add_argument("--output", type=Path, help="default: only a full run is saved")
    arguments = parser.parse_args()
    if not backend_status()["numba"].startswith("available"):
        sys.exit(f"benchmarks/training.py: numba: {backend_status()['numba']}")
    quick = arguments.quick
    portions = [(size, seconds / 10) for size, seconds in PORTIONS] if quick else PORTIONS
    rows = run(portions, arguments.threads, 2 if quick else ROUNDS)
    if output := arguments.output or (None if quick else RESULTS):
        write(output, rows.to_csv(index=False))
    report(rows, quick)


def run(portions: list[tuple], threads: list[int], rounds: int) -> pd.DataFrame:
    """One row per portion, number of threads and backend."""
    torch.manual_seed(0)
    model = CleanUMamba(ablation_config())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        speech, noise = (recordings(Path(folder), kind) for kind in ("speech", "noise"))
        bar = tqdm(total=len(portions) * len(threads) * (rounds + 1), disable=None, unit="round")
        for size, seconds in portions:
            examples = Mixtures(speech, noise, [], MixtureConfig(segment_s=seconds), 1000)
            for count in threads:
                torch.set_num_threads(count)
                times = measure(model, examples, size, rounds, bar.update)
                for backend, parts in times.items():
                    row = {"batch": size, "seconds": seconds, "threads": count, "backend": backend}
                    row |= {"n_params": n_params(model), "steps": rounds}
                    rows.append(row | {name: median(values) for name, values in parts.items()})
        bar.close()
    return pd.DataFrame(rows)


def recordings(folder: Path, kind: str) -> list[Source]:
    """Eight sound files of 12 s of noise; the content does not affect the speed."""
    found = []
    for i in range(8):
        path = folder / f"{kind}_{i}.wav"
        samples = 0.1 * np.random.default_rng(i).normal(size=12 * 16000)
        soundfile.write(path, samples, 16000)
        item = Item(path.stem, kind, path.name, len(samples), 16000, speakers=(str(i),))
        found.append(Source(folder, item))
    return found


def measure(
    model: nn.Module, examples: Mixtures, size: int, rounds: int, tick: Callable
) -> dict[str, dict[str, list[float]]]:
    """Backend -> CPU ms of each part; CPU and wall ms of a whole step; one of each per round."""
    config = TrainingConfig(batch_size=size, clip_norm=10.0)
    states = {name: State(Supervised(copy.deepcopy(model), LOSSES), config) for name in BACKENDS}
    sources = {name: batches(examples, size, config.seed) for name in BACKENDS}
    names = [*(f"{part}_ms" for part in PARTS), "step_cpu_ms", "step_wall_ms"]
    times = {name: {column: [] for column in names} for name in BACKENDS}
    before = os.environ.get("SPEECHLAB_SCAN")
    try:
        for number in range(rounds + 1):
            for name in BACKENDS:
                os.environ["SPEECHLAB_SCAN"] = name
                found = (*by_part(states[name], sources[name]), *whole(states[name], sources[name]))
                for column, value in zip(names, found, strict=True):
                    if number:  # the first compiles and fills caches
                        times[name][column].append(1e3 * value)
            tick()
    finally:
        os.environ.pop("SPEECHLAB_SCAN")
        os.environ |= {} if before is None else {"SPEECHLAB_SCAN": before}
    return times


def whole(state: State, source: Iterator[Batch]) -> tuple[float, float]:
    """CPU and wall seconds of a step of `fit`, with its batch."""
    cpu, wall = time.process_time(), time.perf_counter()
    assert take_step(state, [next(source)], 1.0, World(torch.device("cpu"))) is not None
    return time.process_time() - cpu, time.perf_counter() - wall


def by_part(state: State, source: Iterator[Batch]) -> list[float]:
    """CPU seconds of the PARTS of a step: the work of `take_step`, part by part."""
    objective, [phase], [optimizer] = state.objective, state.phases, state.optimizers
    at = [time.process_time()]
    batch = next(source)
    at.append(time.process_time())
    estimate = objective.model(batch.noisy)
    at.append(time.process_time())
    loss = sum(term(estimate, batch.clean).mean() for term in objective.losses.values())
    at.append(time.process_time())
    loss.backward(inputs=phase.parameters)
    at.append(time.process_time())
    nn.utils.clip_grad_norm_(phase.parameters, state.config.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    at.append(time.process_time())
    return [later - earlier for earlier, later in pairwise(at)]


def report(rows: pd.DataFrame, quick: bool) -> None:
    """A Markdown table: steps per second, their ratio, and the time of each part."""
    versions = f"torch {torch.__version__}, numba: {backend_status()['numba']}"
    print(f"\n{platform.machine()}, {versions}, {rows['n_params'].iloc[0]:,} parameters\n")
    parts = [f"{part} ms" for part in PARTS]
    heads = ["batch x s", "threads", "scan", "steps/s", "x reference", "step ms", *parts]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for (size, seconds, threads), group in rows.groupby(["batch", "seconds", "threads"]):
        clock = "step_cpu_ms" if threads == 1 else "step_wall_ms"
        plain = group.set_index("backend").loc["reference", clock]
        for _, row in group.iterrows():
            cells = [f"{size} x {seconds:g}", threads, row["backend"], f"{1e3 / row[clock]:.3g}"]
            cells += [f"{plain / row[clock]:.1f}", f"{row[clock]:.0f}"]
            cells += [f"{row[f'{part}_ms']:.1f}" for part in PARTS]
            print(f"| {' | '.join(map(str, cells))} |")
    print("\nParts: CPU time. One thread: steps per second of CPU time; more: of wall time.")
    print("Not run: GPUs, autocast, several processes, other models.")
    if quick:
        print("A tenth of each length, two steps. Do not quote it.")


if __name__ == "__main__":
    main()
