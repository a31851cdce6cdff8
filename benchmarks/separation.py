"""Separation models on the same mixtures: time, memory and MACs, as ratios, beside published ones.

    python -m benchmarks.separation [--quick] [--threads N] [--rounds N] [--models NAME ...]
                                    [--memory-gb G] [--output FILE.csv]

Passes: forward, and forward with backward. Networks of published size with random weights run on
the CPU, then on CUDA if there is one. Every measurement is a fresh process that first runs a
shorter mixture. The models alternate within each length and pass, in reverse order in every other
round, so a machine that slows down affects all of them; ratios are of one round. Time is CPU time
on one thread, which depends least on other programs, otherwise wall time; a short pass is repeated
for a second. Memory is the weights and the largest increase in the first pass; on CUDA it is
PyTorch's peak allocation. A measurement above the limit is recorded as out of memory. Rows are
written to FILE.csv.partial, which is renamed to FILE.csv at the end.
"""

import argparse
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.macs import build
from speechlab.audio import files
from speechlab.evaluation.memory import added_memory
from speechlab.models.macs import macs_per_second, n_params
from speechlab.report import separation
from speechlab.report.markdown import TEXT, Column, PaperTable
from speechlab.report.separation import BASE, BUILT
from speechlab.storage.atomic import write

MODELS = ("sepmamba_s", "sepmamba_s_causal", "sepmamba_m", "umambanet_f128", "conv_tasnet")
MODELS += ("dprnn", "sepformer", "sudormrf")
SECONDS, QUICK_SECONDS = (1, 4, 16), (1,)  # lengths of the mixture
PASSES = ("forward", "forward+backward")
ROUNDS = 2
WARM_S = 0.05  # length of the first mixture: one-time set-up of libraries
REPEAT_S = 1.0  # short passes are repeated for this time
FREE_PART = 0.8  # of the free memory: the default limit
RATE = 8000  # Hz, for all these models
ROOT = Path(__file__).resolve().parents[1]
MIXTURES = "audio/mix2/libri2mix_dev_8k/mix"  # in the folder of SPEECHLAB_SHARED
OUT_OF_MEMORY = "out of memory"
MEASURED = ["ms", "peak_mb", "ms_ratio", "peak_ratio", "reason"]  # columns of the tables


@dataclass(frozen=True)
class Job:
    """One measurement."""

    device: str
    threads: int
    seconds: float
    kind: str  # in PASSES
    model: str
    repeat_s: float = REPEAT_S
    memory_gb: float | None = None  # None: FREE_PART of what is free


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 s mixtures, each once")
    parser.add_argument("--threads", type=count, default=1, help="of the CPU")
    parser.add_argument("--rounds", type=count, default=ROUNDS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="NAME")
    parser.add_argument(
        "--memory-gb", type=gigabytes, metavar="G", help="default: 80 %% of the free"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="default: the repository's file, only for a run without other options",
    )
    arguments = parser.parse_args(words)
    quick, output = arguments.quick, arguments.output
    if output is None and arguments == parser.parse_args([]):
        output = ROOT / "results" / separation.MEASURED
    if output is None:
        print("rows are not kept; --output FILE.csv keeps them", file=sys.stderr)
    if arguments.threads > 1:
        print("the study's tables show one thread alone", file=sys.stderr)
    lengths = QUICK_SECONDS if quick else SECONDS
    jobs = schedule(arguments.models, lengths, 1 if quick else arguments.rounds, arguments.threads)
    bounds = {"repeat_s": 0.0 if quick else REPEAT_S, "memory_gb": arguments.memory_gb}
    report(run([(i, Job(**asdict(job) | bounds)) for i, job in jobs], output), quick)


def count(word: str) -> int:
    """A command-line value of 1 or more."""
    if int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not 1 or more")
    return int(word)


def gigabytes(word: str) -> float:
    """A command-line value above 0."""
    if not float(word) > 0:  # NaN as well
        raise argparse.ArgumentTypeError(f"{word} is not more than 0")
    return float(word)


def schedule(
    models: tuple[str, ...], lengths: tuple[float, ...], rounds: int, threads: int
) -> list[tuple[int, Job]]:
    """(round, job); models vary fastest, so those that are compared run close together."""
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    return [
        (number, Job(device, threads if device == "cpu" else 1, seconds, kind, model))
        for device in devices
        for number in range(rounds)
        for seconds in lengths
        for kind in PASSES
        for model in models[:: 1 if number % 2 == 0 else -1]
    ]


def run(jobs: list[tuple[int, Job]], output: Path | None) -> pd.DataFrame:
    """A row per measurement, in `output`.partial when the next begins; at the end in `output`."""
    rows = []
    partial = output.with_name(f"{output.name}.partial") if output else None
    bar = tqdm(jobs, disable=None, unit="measurement")
    for number, job in bar:
        bar.set_postfix_str(f"{job.model} {job.kind} {job.seconds:g} s")
        row = {"round": number, "device": job.device, "threads": job.threads}
        row |= {"seconds": job.seconds, "pass": job.kind, "model": job.model} | measure(job)
        rows.append(row | size(job.model, job.seconds) | {"torch": torch.__version__})
        if partial:
            write(partial, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    if partial:
        partial.replace(output)
    return pd.DataFrame(rows)


@cache
def size(model: str, seconds: float) -> dict[str, float]:
    """Parameters, and MACs per second of an input of that length (s)."""
    with torch.device("meta"):
        network = build(model)
    return {"n_params": n_params(network), "macs_per_second": macs_per_second(network, seconds)}


def measure(job: Job) -> dict[str, float | str]:
    """Milliseconds and megabytes in a fresh process, or NaN and the reason."""
    nothing = {"machine": "", "cpu_ms": float("nan"), "wall_ms": float("nan")}
    nothing |= {"peak_mb": float("nan"), "reason": ""}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        try:
            return nothing | process.submit(measured, job).result()
        except BrokenProcessPool:
            return nothing | {"reason": f"{OUT_OF_MEMORY}, or its process was killed"}


def measured(job: Job) -> dict[str, float | str]:
    """One measurement, in its own process; it limits the memory of that process permanently."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    model = build(job.model).to(job.device)
    model.train(job.kind != "forward")
    x = mixture(job.seconds).to(job.device)
    warm = x if job.device == "cuda" else x[..., : round(WARM_S * RATE)]
    found = {"machine": machine(job.device)}
    times: list[tuple[float, float]] = []
    try:
        one_pass(model, warm, job.kind)
        if job.device == "cpu":
            bound_memory(job.memory_gb)
        peak = peak_bytes(model, x, job.kind, times)
        while sum(wall for _, wall in times) < 1e3 * job.repeat_s:
            times.append(one_pass(model, x, job.kind))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return found | {"reason": OUT_OF_MEMORY}
    cpu, wall = (median(values) for values in zip(*times, strict=True))
    return found | {"cpu_ms": cpu, "wall_ms": wall, "peak_mb": peak / 1e6}


def one_pass(model: nn.Module, x: Tensor, kind: str) -> tuple[float, float]:
    """(CPU, wall) milliseconds of a pass; on CUDA the time between two events, no CPU time.

    The loss is the mean square; its cost is negligible.
    """
    model.zero_grad(set_to_none=True)
    if x.is_cuda:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        torch.cuda.synchronize()
        events[0].record()
    begin = time.process_time(), time.perf_counter()
    if kind == "forward":
        with torch.inference_mode():
            model(x)
    else:
        model(x).square().mean().backward()
    cpu, wall = time.process_time() - begin[0], time.perf_counter() - begin[1]
    if x.is_cuda:
        events[1].record()
        torch.cuda.synchronize()
        return float("nan"), events[0].elapsed_time(events[1])
    return 1e3 * cpu, 1e3 * wall


def peak_bytes(model: nn.Module, x: Tensor, kind: str, times: list[tuple[float, float]]) -> float:
    """Bytes of the weights and the largest increase in a pass; its times go to `times`."""
    model.zero_grad(set_to_none=True)  # gradients are what the pass adds
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        times.append(one_pass(model, x, kind))
        return torch.cuda.max_memory_allocated()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return weights + added_memory(lambda: times.append(one_pass(model, x, kind)))


def bound_memory(gigabytes: float | None) -> None:
    """Limit how much memory this process may add; default: FREE_PART of the free memory.

    Only Linux reports free memory; on other systems there is no limit.
    """
    if not Path("/proc/self/status").exists():
        return
    import resource  # not on every system

    limit = 1e9 * gigabytes if gigabytes else FREE_PART * told("/proc/meminfo", "MemAvailable")
    total = int(told("/proc/self/status", "VmSize") + limit)
    resource.setrlimit(resource.RLIMIT_AS, (total, resource.getrlimit(resource.RLIMIT_AS)[1]))


def told(path: str, field: str) -> float:
    """Bytes in a line `field: n kB`."""
    lines = Path(path).read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a special error for this only on CUDA."""
    words = ("allocate memory", "bad_alloc", "out of memory", "could not create")  # a primitive
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def mixture(seconds: float) -> Tensor:
    """Two speakers of Libri2Mix dev, (1, 1, T); without that folder, noise (same speed)."""
    length = round(seconds * RATE)
    folder = ROOT / (os.environ.get("SPEECHLAB_SHARED") or "../shared") / MIXTURES
    parts, found = [], 0
    for path in sorted(folder.glob("*.flac")):
        if found < length:
            parts.append(files.load(path, RATE)[0])
            found += parts[-1].shape[-1]
    if found < length:
        generator = torch.Generator().manual_seed(0)
        parts = [0.05 * torch.randn(1, length, generator=generator)]
    return torch.cat(parts, -1)[None, :, :length]


def machine(device: str) -> str:
    """Name of the processor or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def report(rows: pd.DataFrame, quick: bool) -> None:
    """Tables in Markdown: time, memory, and ratios to SepMamba S beside the published ones."""
    table = separation.measured(rows)
    for (device, threads), part in table.groupby(["device", "threads"], sort=False):
        of_device = rows[(rows["device"] == device) & (rows["threads"] == threads)]
        where = f"{threads} thread(s)" if device == "cpu" else "CUDA"
        name = max(of_device["machine"])
        n_rounds = of_device["round"].nunique()
        print(f"\n{name}, {where}, torch {torch.__version__}, {n_rounds} round(s)\n")
        models, lengths = by_model(part, of_device), sorted(part["seconds"].unique())
        for columns in (costs("ms", "ms", lengths), costs("peak_mb", "MB", lengths)):
            print(PaperTable(models, columns, "").grid())
        print(PaperTable(models, ratios(lengths), "").grid())
    print("Weights are random. GMAC/s are those of the shortest mixture. The counting rule of the")
    print("published ones is not stated; published times and memory are of the paper's GPU.")
    if quick:
        print("Quick run: each measured once, on 1 s. Do not quote it.")


def by_model(part: pd.DataFrame, of_device: pd.DataFrame) -> pd.DataFrame:
    """A row per model: sizes, MEASURED under "NAME PASS SECONDS", published ratios to BASE."""
    table = of_device.groupby("model", sort=False)[["n_params", "macs_per_second"]].first()
    macs = table["macs_per_second"]
    table = table.assign(gmac_per_s=macs / 1e9, counted=macs / macs.get(BASE, float("nan")))
    found = part.assign(reason=part["reason"].replace("", "-"))
    found = found.set_index(["model", "pass", "seconds"])[MEASURED].unstack(["pass", "seconds"])
    found.columns = [f"{name} {kind} {seconds:g}" for name, kind, seconds in found.columns]
    printed = separation.published(ROOT / "results/published")[separation.PRINTED[0]]
    names = {ours: model for model, ours in reversed(BUILT.items())}
    known = separation.published_ratios(printed).reindex(names.values()).set_axis(list(names))
    return table.join(found).join(known.add_suffix("_published")).rename_axis("model").reset_index()


def costs(name: str, unit: str, lengths: Sequence[float]) -> list[Column]:
    """Parameters, MACs, and one of MEASURED per pass and length."""
    sizes = [Column("n_params", "parameters", "{:,.0f}"), Column("gmac_per_s", "GMAC/s", "{:.2f}")]
    settings = product(PASSES, lengths)
    found = [measurement(name, *one, f"{one[0]} {one[1]:g} s, {unit}", 0) for one in settings]
    return [Column("model", "model", align=TEXT), *sizes, *found]


def ratios(lengths: Sequence[float]) -> list[Column]:
    """Ratios to SepMamba S: MACs, forward time and memory, memory of both passes; also published.

    Memory of both passes is included because the published value may contain it.
    """
    forward, both = PASSES
    return [
        Column("model", "forward / SepMamba S's", align=TEXT),
        Column("gmac_per_s_published", "GMAC/s published", "{:.2f}", "-"),
        Column("counted", "counted", "{:.2f}", "-"),
        Column("forward_ms_published", "time published", "{:.2f}", "-"),
        *(measurement("ms_ratio", forward, s, f"{s:g} s", 2) for s in lengths),
        Column("memory_gb_published", "memory published", "{:.2f}", "-"),
        *(measurement("peak_ratio", forward, s, f"{s:g} s", 2) for s in lengths),
        *(measurement("peak_ratio", both, s, f"{both} {s:g} s", 2) for s in lengths),
    ]


def measurement(name: str, kind: str, seconds: float, head: str, n_digits: int) -> Column:
    """One of MEASURED, or the reason why there is no number."""
    setting = f"{kind} {seconds:g}"
    return Column(f"{name} {setting}", head, f"{{:.{n_digits}f}}", Column(f"reason {setting}"))


if __name__ == "__main__":
    main()
