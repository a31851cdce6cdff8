"""Signals drawn from a seed, and reference tensors."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0, level: float = 1.0, dtype=torch.float32) -> Tensor:
    """White noise with this standard deviation; the same seed gives the same samples."""
    generator = torch.Generator().manual_seed(seed)
    return level * torch.randn(shape, generator=generator, dtype=dtype)


def array(path: Path) -> Tensor:
    """The tensor in a .npy file."""
    return torch.from_numpy(np.load(path))


def arrays(folder: Path, *names: str) -> list[Tensor]:
    """The tensors of `<name>.npy` in a folder."""
    return [array(folder / f"{name}.npy") for name in names]
