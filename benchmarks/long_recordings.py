"""Long recordings through spectral models of published size, in chunks, on a CPU.

    python benchmarks/long_recordings.py [--systems NAME ...] [--minutes M ...] [--threads N]
                                         [--output FILE.csv]

`enhance_blocks` processes noise with random weights; speed and memory do not depend on them. The
reference is the same model on one chunk of `chunk_s` seconds. The ratio per minute is the cost of
the extra passes (level and norms of the whole recording) and of the overlap. Each row is a separate
process. Memory is the largest increase during the recording; times are wall time.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from speechlab.evaluation.memory import peak_memory
from speechlab.inference.enhance import enhance_blocks
from speechlab.models import SYSTEMS
from speechlab.storage.atomic import write

SIZES = ("semamba_advanced", "mpsenet", "mpsenet_conformer", "mpsenet_mamba")
MINUTES = (2.0, 10.0)
LIMIT_GB, ALIKE = 24, 1.10  # goals: memory of ten minutes; longest over shortest


class Noise:
    """Blocks (1, n) of a second at the level of speech; can be read again, like a file."""

    def __init__(self, n_blocks: int, length: int) -> None:
        self.n_blocks, self.length = n_blocks, length

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.n_blocks):
            yield 0.05 * torch.randn(1, self.length, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=SIZES, default=SIZES, metavar="NAME")
    parser.add_argument("--minutes", nargs="+", type=float, default=MINUTES, metavar="M")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="CSV of the rows, written after each")
    arguments = parser.parse_args()
    rows: list[dict] = []
    lengths = {name: [build(name).chunk_s / 60, *arguments.minutes] for name in arguments.systems}
    with tqdm(total=sum(map(len, lengths.values())), disable=None, unit="recording") as bar:
        for name, minutes in lengths.items():
            for number in minutes:
                rows.append(measure(name, number, arguments.threads))
                if arguments.output:
                    write(arguments.output, table(rows).to_csv(index=False))
                bar.update()
    report(table(rows), arguments.threads)


def build(name: str) -> nn.Module:
    """The published size with random weights."""
    torch.manual_seed(0)
    config, kind = SYSTEMS[name]
    return kind(config()).eval()


def measure(name: str, minutes: float, threads: int) -> dict:
    """A row: seconds and peak memory of one recording."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "seconds"
        peak = peak_memory(enhance, name, minutes, threads, clock)
        seconds = float(clock.read_text())
    return {"system": name, "minutes": minutes, "seconds": seconds, "peak_gb": peak / 1e9}


def enhance(name: str, minutes: float, threads: int, clock: Path) -> None:
    """Enhance noise, keep no output, and write the seconds that it took."""
    torch.set_num_threads(threads)
    model = build(name)
    noise = Noise(round(60 * minutes), model.sample_rate)
    begin = time.perf_counter()
    n_out = sum(block.shape[-1] for block in enhance_blocks(model, noise))
    clock.write_text(str(time.perf_counter() - begin))
    assert n_out == noise.n_blocks * noise.length


def table(rows: list[dict]) -> pd.DataFrame:
    """Adds cost per minute and memory, as ratios to those of one chunk."""
    frame = pd.DataFrame(rows)
    frame["seconds_per_minute"] = frame["seconds"] / frame["minutes"]
    chunk = frame.groupby("system")[["seconds_per_minute", "peak_gb"]].transform("first")
    frame["time_ratio"] = frame["seconds_per_minute"] / chunk["seconds_per_minute"]
    frame["memory_ratio"] = frame["peak_gb"] / chunk["peak_gb"]
    return frame


def report(frame: pd.DataFrame, threads: int) -> None:
    """The table in Markdown, and whether the goals are met."""
    print(f"\n{platform.machine()}, {threads} thread(s), torch {torch.__version__}\n")
    heads = ["system", "minutes", "seconds", "seconds a minute", "of one chunk's", "peak GB"]
    print(f"| {' | '.join([*heads, heads[4]])} |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in frame.to_dict("records"):
        cells = [f"{row['minutes']:g}", f"{row['seconds']:.0f}", f"{row['seconds_per_minute']:.0f}"]
        cells += [f"{row['time_ratio']:.2f}x", f"{row['peak_gb']:.2f}"]
        cells += [f"{row['memory_ratio']:.2f}x"]
        print(f"| {row['system']} | {' | '.join(cells)} |")
    highest = frame["peak_gb"].max()
    verdict = "met" if highest < LIMIT_GB else "missed"
    print(f"\nGoal: within {LIMIT_GB} GB: {highest:.2f} GB at most, {verdict}.")
    long = frame[frame["memory_ratio"] != 1].groupby("system")["peak_gb"].agg(["min", "max"])
    for name, peaks in long.iterrows():
        spread = peaks["max"] / peaks["min"]
        verdict = "met" if spread <= ALIKE else "missed"
        print(f"Goal: memory of {name} flat within {ALIKE - 1:.0%}: {spread - 1:.1%}, {verdict}.")


if __name__ == "__main__":
    main()
