"""CleanUMamba on one CPU thread: speed offline and hop by hop, and memory over hours.

    python benchmarks/cleanumamba.py [--quick] [--checkpoints DIR] [--output FILE.csv]

A hop is one frame of the bottleneck: 256 samples (16 ms), for E6 64 samples (4 ms). Three paths
alternate on the same hops: `stream`, a Stream on the step kernels; `stepped`, the network of these
kernels alone; `modules`, the model's own network with conv1d and torch operations. Times are CPU
time of the process, which depends least on other programs; wall time is in the CSV. Memory is what
a fresh process adds while it streams noise in chunks of a second and keeps no output. A model
without its weights is measured with random ones; the speed is the same.
"""

import argparse
import platform
import sys
import time
from functools import partial
from itertools import cycle, permutations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

import speechlab
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.evaluation.cost import latency_ms, real_time_factor
from speechlab.evaluation.memory import peak_memory
from speechlab.inference.fused import fuse
from speechlab.inference.stream import Stream
from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig, ablation_config
from speechlab.models.macs import macs_per_second, n_params
from speechlab.storage.atomic import write

ABLATION = "Experiment_CleanU_Mamba"  # 442K
HALF_MILLION = "CleanUMamba-3N-E8_pruned-500K"
MODELS = [ABLATION, *(f"CleanUMamba-3N-E8_pruned-{size}" for size in ("200K", "500K", "1M", "2M"))]
MODELS += ["CleanUMamba-3N-E6_pruned-500k"]
KNOWN = {  # configurations that need no file
    ABLATION: ablation_config("mamba"),
    HALF_MILLION: CleanUMambaConfig(
        down_channels=(56, 74, 32, 35, 41, 66, 51, 61),
        skip_channels=(53, 111, 96, 102, 87, 107, 105, 85),
        up_channels=(63, 107, 43, 59, 52, 52, 38, 54),
        d_model=114,
        layers=tuple({"d_inner": e, "d_conv": 4, "d_state": 8, "dt_rank": 32} for e in (8, 8, 48)),
    ),
}
RESULTS = Path("results/benchmarks/cleanumamba.csv")
WAYS = ("stream", "stepped", "modules")
HOPS, WARM, ROUNDS = 600, 50, 20  # timed hops of a model, hops before them, first frames
DURATIONS, QUICK_DURATIONS = (10, 600, 3600), (10, 60, 180)  # seconds, for the memory
FASTER, ALIKE = 2, 1.10  # goals: speed over modules; largest over smallest peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer hops, minutes for hours")
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="folder of the weights")
    parser.add_argument("--output", type=Path, help="default: only a full run is saved")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, missing = [], []
    for name in tqdm(MODELS, disable=None, unit="model"):
        model, weights = build(name, arguments.checkpoints)
        if model is None:
            missing.append(name)
            continue
        rows.append({"model": name, "weights": weights} | measure(model, arguments.quick))
    table = pd.DataFrame(rows)
    durations = QUICK_DURATIONS if arguments.quick else DURATIONS
    peaks = memory(HALF_MILLION, arguments.checkpoints, durations)
    for seconds, peak in peaks.items():
        table.loc[table["model"] == HALF_MILLION, f"peak_mb_{seconds}s"] = peak
    is_full = arguments.checkpoints and not arguments.quick
    if output := arguments.output or (RESULTS if is_full else None):
        write(output, table.to_csv(index=False))
    report(table, peaks, missing, arguments.quick)


def build(name: str, folder: Path | None) -> tuple[nn.Module | None, str]:
    """The published model; without its file, the same widths with random weights; else None."""
    path = name + ".pkl" if folder is None else folder / f"{name}.pkl"
    try:
        return speechlab.load(path, normalize="running"), "published"
    except UserError as error:
        instead = "random weights" if name in KNOWN else "left out"
        tqdm.write(f"{name}: {instead}: {error}", file=sys.stderr)
        if name not in KNOWN:
            return None, "none"
    torch.manual_seed(0)
    return CleanUMamba(override(KNOWN[name], normalize="running")).eval(), "random"


def measure(model: nn.Module, quick: bool) -> dict[str, float]:
    """A row: cost, hops, first frame."""
    row = {
        "n_params": n_params(model),
        "macs_per_second": macs_per_second(model),
        "hop_samples": model.hop_length,
        "hop_ms": 1000 * model.hop_length / model.sample_rate,
        "real_time_factor": real_time_factor(model, seconds=2 if quick else 10),
        "latency_ms": latency_ms(model),
        "first_frame_ms": first_frame(model),
    }
    for way, times in hops(model, HOPS // 10 if quick else HOPS).items():
        for clock, values in zip(("", "_wall"), times, strict=True):
            row[f"{way}_ms{clock}"] = np.median(values)
            row[f"{way}_p95_ms{clock}"] = np.percentile(values, 95)
    return row | {"speedup": row["modules_ms"] / row["stepped_ms"]}


@torch.inference_mode()
def hops(model: nn.Module, count: int) -> dict[str, tuple[list[float], list[float]]]:
    """(CPU, wall) milliseconds of every hop; each path follows every other one equally often."""
    stream, states = Stream(model, path="fused"), {"stepped": None, "modules": None}
    networks = {"stepped": fuse(model).network, "modules": model.network}
    times = {way: ([], []) for way in WAYS}
    orders = cycle(permutations(WAYS))
    for i, chunk in enumerate(noise(WARM + count, model.hop_length)):
        for way in next(orders):
            cpu, wall = times[way]
            begin = time.process_time(), time.perf_counter()
            if way == "stream":
                stream.feed(chunk)
            else:
                _, states[way] = networks[way](chunk, states[way], False)
            if i >= WARM:
                cpu.append(1e3 * (time.process_time() - begin[0]))
                wall.append(1e3 * (time.perf_counter() - begin[1]))
    return times


def first_frame(model: nn.Module) -> float:
    """Milliseconds from the first input sample to the first output: a frame and its computation.

    Median of ROUNDS new streams, fed hop by hop.
    """
    works = []
    for _ in range(ROUNDS):
        stream, fed, n_out = Stream(model, path="fused"), 0, 0
        for chunk in noise(100, model.hop_length):
            chunk = chunk[..., : min(model.hop_length, model.frame_length - fed)]
            begin = time.process_time()
            n_out, fed = stream.feed(chunk).shape[-1], fed + chunk.shape[-1]
            work = time.process_time() - begin
            if n_out:
                break
        works.append(1e3 * work)
    return 1e3 * fed / model.sample_rate + float(np.median(works))


def noise(count: int, length: int) -> list[torch.Tensor]:
    """`count` chunks (1, 1, length) at the level of speech."""
    generator = torch.Generator().manual_seed(0)
    return [0.05 * torch.randn(1, 1, length, generator=generator) for _ in range(count)]


def memory(name: str, folder: Path | None, durations: tuple[int, ...]) -> dict[int, float]:
    """Largest increase in memory (MB) while streaming that many seconds."""
    bar = tqdm(durations, disable=None, unit="recording")
    return {s: peak_memory(partial(enhance_noise, name, folder, s)) / 1e6 for s in bar}


def enhance_noise(name: str, folder: Path | None, seconds: int) -> None:
    """Stream noise in chunks of a second and keep no output."""
    torch.set_num_threads(1)
    model, _ = build(name, folder)
    stream, (chunk,) = Stream(model, path="fused"), noise(1, model.sample_rate)
    for _ in range(seconds):
        stream.feed(chunk)
    stream.flush()


def report(table: pd.DataFrame, peaks: dict[int, float], missing: list[str], quick: bool) -> None:
    """The table in Markdown, and whether the goals are met."""
    print(f"\n{platform.machine()}, one thread, torch {torch.__version__}; ms are CPU time\n")
    heads = ["model", "weights", "parameters", "M MACs/s", "RTF offline", "hop ms"]
    heads += ["stream ms (p95)", "stepped ms (p95)", "modules ms (p95)", "modules / stepped"]
    heads += ["latency ms", "first frame ms"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in table.to_dict("records"):
        ways = (f"{row[f'{w}_ms']:.2f} ({row[f'{w}_p95_ms']:.2f})" for w in WAYS)
        cells = [row["model"], row["weights"], f"{row['n_params']:,}"]
        cells += [f"{row['macs_per_second'] / 1e6:.1f}", f"{row['real_time_factor']:.4f}"]
        cells += [f"{row['hop_ms']:.0f}", *ways, f"{row['speedup']:.1f}x"]
        cells += [f"{row['latency_ms']:.1f}", f"{row['first_frame_ms']:.1f}"]
        print(f"| {' | '.join(cells)} |")
    speedup = table.set_index("model")["speedup"][HALF_MILLION]
    verdict = "met" if speedup >= FASTER else "missed"
    print(f"\nGoal: {HALF_MILLION} steps {FASTER}x faster than its modules: ", end="")
    print(f"{speedup:.1f}x, {verdict}.")
    listed = ", ".join(f"{peak:.1f} MB over {seconds} s" for seconds, peak in peaks.items())
    print(f"Memory of streaming with {HALF_MILLION}: {listed}.")
    spread = max(peaks.values()) / min(peaks.values())
    verdict = "met" if spread <= ALIKE else "missed" if spread > ALIKE else "not measured"
    print(f"Goal: within {ALIKE - 1:.0%} of each other: {spread - 1:.1%}, {verdict}.")
    if missing:
        print(f"Skipped, without weights and widths: {', '.join(missing)}.")
    if quick:
        print("Quick run: a tenth of the hops, minutes for hours. Do not quote it.")


if __name__ == "__main__":
    main()
