"""Errors of a phase decoder, measured on the two channels whose angle is the phase.

The angle of a point near zero depends on its last bits. The point itself does not.
"""

import torch
from torch import Tensor

from speechlab.layers.dense import PhaseDecoder


class PhaseChannels:
    """Records real and imaginary channel of a decoder whenever it runs."""

    def __init__(self, decoder: PhaseDecoder) -> None:
        self.outputs: dict[str, Tensor] = {}
        for name in ("real", "imaginary"):
            decoder.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: self.outputs.update({name: output})
            )

    def error(self, phase: Tensor, wanted: Tensor) -> float:
        """Largest distance of the points at two phases (B, F, L), relative to the largest point."""
        channels = torch.complex(self.outputs["real"], self.outputs["imaginary"])  # (B, 1, L, F)
        radius = channels[:, 0].transpose(1, 2).abs()  # (B, F, L)
        distance = torch.polar(radius, phase) - torch.polar(radius, wanted)
        return (distance.abs().max() / radius.max()).item()
