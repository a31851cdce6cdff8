"""Where a model computes: the CPU, an NVIDIA GPU (CUDA) or an Apple GPU (MPS).

Files, resampling, levels and overlaps stay on the CPU. Only chunks move to the model and back.
"""

import copy

import torch

from speechlab.errors import UserError, unknown
from speechlab.models.base import Model

AUTO = "auto"  # the first of: CUDA, MPS, CPU


def available() -> list[str]:
    """Names of the devices here: cpu, cuda:0, cuda:1, mps."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    names = ["cpu", *(f"cuda:{number}" for number in cuda)]
    return names + ["mps"] * torch.backends.mps.is_available()


def find(name: str) -> torch.device:
    """The device of a name: auto, cpu, cuda, cuda:1, mps. UserError for one that is not here."""
    here = available()
    if name == AUTO:
        name = next((kind for kind in ("cuda:0", "mps") if kind in here), "cpu")
    if name not in (*here, *(known.partition(":")[0] for known in here)):
        if name.partition(":")[0] == "cuda" and len(here) == 1:
            why = "finds no NVIDIA GPU" if torch.version.cuda else "was built without CUDA"
            raise UserError(f"no device '{name}': PyTorch {why}; there are: {', '.join(here)}")
        raise unknown("device", name, here)
    return torch.device(name)


def moved(model: Model, name: str | None) -> Model:
    """The model on a device; a copy, unless it is there already. None: where it is."""
    if name is None or (device := find(name)) == model.device:
        return model
    return copy.deepcopy(model).to(device)
