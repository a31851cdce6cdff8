"""Weights that this study made; they come with the package.

`checkpoints/` has for each a `.safetensors` file and a card, and a row in `checkpoints.csv`. Its
PESQ-WB and its recommendation are measured (tests compare them with results/).
"""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

RECOMMENDED = "CleanUMamba-428K-stream"  # of `enhance`, `stream` and the demo, if none is named
PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "checkpoints", PACKAGE.parent / "checkpoints")  # installed; in a checkout
TABLE = "checkpoints.csv"


class OwnFile(NamedTuple):
    name: str
    system: str
    n_params: int
    pesq_wb: float  # mean over DNS-2020 no_reverb, as a stream hears it: with the causal level
    use: str  # recommendation
    path: Path


@cache
def files() -> tuple[OwnFile, ...]:
    """All of them, in the order of the table; none in a package without them."""
    for folder in FOLDERS:
        if (folder / TABLE).is_file():
            text = (folder / TABLE).read_text(encoding="utf-8")
            return tuple(_own(folder, **row) for row in csv.DictReader(text.splitlines()))
    return ()


def find(name: str) -> Path | None:
    """The file of a name, in any case, with or without its ending; None if there is none."""
    key = name.lower().removesuffix(".safetensors")
    return next((file.path for file in files() if file.name.lower() == key), None)


def _own(folder: Path, name: str, system: str, n_params: str, pesq_wb: str, use: str) -> OwnFile:
    path = folder / f"{name}.safetensors"
    return OwnFile(name, system, int(n_params), float(pesq_wb), use, path)
