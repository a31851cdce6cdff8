"""Speed and memory of the selective scan on a CPU: `numba` and the other backends, as ratios.

    python benchmarks/scan.py [--threads 1 2] [--quick] [--output results/benchmarks/scan.csv]

Time: the backends alternate in one process, with skip, gate and bias, as a Mamba block calls the
scan. The result is the median of CPU time on one thread, of wall time on several. Memory: the peak
resident set of a fresh process per backend, shape and pass, minus that just before the call. Inputs
exist and the backend is warm by then; outputs, gradients and all temporaries count.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from speechlab.layers.scan import backend_status, selective_scan
from speechlab.storage.atomic import write

SHAPES = [(1, 128, 2500, 64), (4, 512, 1000, 16), (1, 1024, 625, 64), (64, 128, 250, 16)]
SHAPES += [(1, 128, 32000, 16)]  # (B, D, L, N)
BACKENDS = ("numba", "parallel", "reference")
PASSES = ("forward", "forward+backward")
CALLS = {"numba": 5, "parallel": 1, "reference": 1}  # per round: short calls are repeated
ROUNDS = 3
RESULTS = Path("results/benchmarks/scan.csv")
FASTER, SMALLER = 25, 20  # goals of numba against the reference loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="a tenth of the length, one round")
    parser.add_argument("--output", type=Path, help="default: only a full run is saved")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)  # of one pass, see below
    arguments = parser.parse_args()
    if arguments.memory:
        backend, name, shape = arguments.memory
        print(measure_memory(backend, name, json.loads(shape)))
        return
    if not backend_status()["numba"].startswith("available"):
        sys.exit(f"benchmarks/scan.py: numba: {backend_status()['numba']}")
    shapes = [(b, d, L // 10, n) for b, d, L, n in SHAPES] if arguments.quick else SHAPES
    rows = run(shapes, arguments.threads, 1 if arguments.quick else ROUNDS)
    if output := arguments.output or (None if arguments.quick else RESULTS):
        write(output, rows.to_csv(index=False))
    report(rows, arguments.quick)


def run(shapes: list[tuple], threads: list[int], rounds: int) -> pd.DataFrame:
    """One row per shape, pass, number of threads and backend."""
    rows = []
    kinds = [(name, backend) for name in PASSES for backend in BACKENDS]
    bar = tqdm(total=len(shapes) * (len(threads) * rounds + len(kinds)), disable=None, unit="step")
    for shape in shapes:
        memory = {}
        for name, backend in kinds:
            memory[name, backend] = spawn_memory(backend, name, shape)
            bar.update()
        for count in threads:
            torch.set_num_threads(count)
            for (name, backend), times in measure_time(shape, rounds, bar.update).items():
                cpu, wall = (median(values) * 1e3 for values in zip(*times, strict=True))
                row = dict(zip(("batch", "d", "length", "n"), shape, strict=True))
                row |= {"pass": name, "threads": count, "backend": backend}
                row |= {"cpu_ms": cpu, "wall_ms": wall, "calls": len(times)}
                rows.append(row | {"peak_mb": memory[name, backend]})
    bar.close()
    return pd.DataFrame(rows)


def measure_time(shape: tuple, rounds: int, tick: Callable) -> dict[tuple, list[tuple]]:
    """(pass, backend) -> (CPU, wall) seconds of every call; the backends alternate."""
    inputs = make_inputs(shape)
    calls = {
        (name, backend): prepare(name, backend, inputs) for name in PASSES for backend in BACKENDS
    }
    for key in calls:
        if key[1] == "numba":  # compiled on first use
            calls[key]()
    times = {key: [] for key in calls}
    for _ in range(rounds):
        for kind, call in calls.items():
            for _ in range(CALLS[kind[1]]):
                cpu, wall = time.process_time(), time.perf_counter()
                call()
                times[kind].append((time.process_time() - cpu, time.perf_counter() - wall))
        tick()
    return times


def make_inputs(shape: tuple) -> list[Tensor]:
    """u, dt, A, B, C, D, z, dt_bias and the gradient of y, at magnitudes of a training."""
    b, d, L, n = shape
    new = torch.Generator().manual_seed(0)
    u, dt, z, dy = (torch.randn(b, L, d, generator=new) for _ in range(4))
    B, C = (torch.randn(b, L, n, generator=new) for _ in range(2))
    A = -torch.arange(1.0, n + 1).repeat(d, 1)
    return [u, dt, A, B, C, torch.ones(d), z, torch.full((d,), -4.6), dy]


def prepare(name: str, backend: str, inputs: list[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """One pass as a call without arguments; gradients are returned, never accumulated."""
    *tensors, dy = inputs
    leaves = [x.detach().requires_grad_(name != "forward") for x in tensors]

    def call() -> tuple[Tensor, ...]:
        y, _ = selective_scan(*leaves, backend=backend)
        return (y,) if name == "forward" else (y, *torch.autograd.grad(y, leaves, dy))

    return call


def spawn_memory(backend: str, name: str, shape: tuple) -> float | None:
    if platform.system() != "Linux":  # other systems do not report it
        return None
    command = [sys.executable, __file__, "--memory", backend, name, json.dumps(shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure_memory(backend: str, name: str, shape: list[int]) -> float:
    """MB that one pass adds to this fresh process at its peak."""
    torch.set_num_threads(1)
    prepare(name, backend, make_inputs((2, 3, 5, 2)))()  # imports and compiles
    call = prepare(name, backend, make_inputs(tuple(shape)))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    held = call()
    peak = resident("VmHWM") - before
    assert held[0].isfinite().all()
    return peak / 1e6


def resident(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def report(rows: pd.DataFrame, quick: bool) -> None:
    """A Markdown table of medians and ratios, and whether the goals are met."""
    versions = f"torch {torch.__version__}, numba: {backend_status()['numba']}"
    print(f"\n{platform.machine()}, {versions}\n")
    heads = ["(B, D, L, N)", "pass", "threads"]
    heads += ["numba ms", *BACKENDS[1:], "numba MB", *BACKENDS[1:]]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    missed = []
    for key, group in rows.groupby(["batch", "d", "length", "n", "pass", "threads"], sort=False):
        *shape, name, threads = key
        of = group.set_index("backend")
        times, memory = of["cpu_ms" if threads == 1 else "wall_ms"], of["peak_mb"].astype(float)
        cells = [tuple(shape), name, threads, f"{times['numba']:.2f}"]
        cells += [f"{times[other] / times['numba']:.1f}x" for other in BACKENDS[1:]]
        cells += [f"{memory['numba']:.1f}"]
        cells += [f"{memory[other] / memory['numba']:.1f}x" for other in BACKENDS[1:]]
        print(f"| {' | '.join(map(str, cells))} |")
        slow = times["reference"] < FASTER * times["numba"]
        large = memory["reference"] < SMALLER * memory["numba"]  # False where not measured
        if threads == 1 and (slow or large):
            missed.append(f"{tuple(shape)} {name}")
    print("\nparallel, reference: multiples of numba. One thread: CPU time; more: wall time.")
    print("Memory: one thread. Not run: GPUs, torch.compile, the log-space form, lower precisions.")
    if rows["peak_mb"].isna().any():
        print("Memory was not measured: it is read from /proc, on Linux.")
    if quick:
        print("A tenth of each length, one round: no goals. Do not quote it.")
        return
    goal = f"{FASTER}x faster than reference with at most 1/{SMALLER} of its memory, one thread"
    print(f"{goal}: {'missed at ' + ', '.join(missed) if missed else 'met at every shape'}.")


if __name__ == "__main__":
    main()
