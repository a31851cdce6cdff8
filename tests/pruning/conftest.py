"""The golden model of the published pruning code, under our names."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from speechlab.models.cleanumamba import CleanUMamba
from speechlab.weights.cleanumamba import cleanumamba


class Golden(NamedTuple):
    """One case of golden/pruning, in float64."""

    folder: Path
    manifest: dict

    def read(self, name: str) -> dict[str, Tensor]:
        """Tensors of a file as they are named there."""
        return load_file(self.folder / f"{name}.safetensors")

    def state(self, name: str) -> dict[str, Tensor]:
        """Tensors of a file that has one for each parameter, under our names."""
        return {cleanumamba.rename(key): tensor for key, tensor in self.read(name).items()}

    def model(self, gradients: bool = True) -> CleanUMamba:
        """The model before pruning."""
        config, _ = cleanumamba(self.read("state"), {"normalize_input": True})
        model = CleanUMamba(config).double().eval()
        model.load_state_dict(self.state("state"))
        for name, gradient in self.state("gradients").items() if gradients else ():
            model.get_parameter(name).grad = gradient
        return model

    @property
    def removed(self) -> dict[str, list[int]]:
        return self.manifest["pruned"]["removed"]


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/pruning/live16"
    return Golden(folder, json.loads((folder / "manifest.json").read_text()))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
