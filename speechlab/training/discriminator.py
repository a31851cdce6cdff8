"""The metric discriminator: a network that predicts the PESQ of an estimate.

    clean mag, estimate mag (B, 2, F, L) ─ 4 x [Conv 4x4, stride 2 ─ norm ─ PReLU] ─ global maximum
        ─ Linear ─ PReLU ─ Linear ─ sigmoid ─► score (B,)

MetricGAN's idea (Fu et al. 2019, arXiv 1905.04874) in the form of CMGAN (Abdulatif et al. 2022,
arXiv 2209.11112), which MP-SENet and SEMamba use unchanged. PESQ-WB = 1 + 3.5 score. Spectral norm
bounds the gain of each layer; every pass in training mode is one power iteration.
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from speechlab.weights.checkpoints import fill, locate, read_pickle

CHANNELS = (16, 32, 64, 128)
LEAST = (32, 16)  # bins and frames; four strides of 2 make them 2 and 1
DROPOUT = 0.3


class LearnableSigmoid(nn.Module):
    """sigmoid(slope x) with a learnt slope for each of n features."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.slope * x)


class MetricDiscriminator(nn.Module):
    """Compressed magnitudes at unit level, (B, F, L) each -> score (B,), 0 to 1."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        layers, n_in = [], 2
        for n_out in channels:
            conv = nn.Conv2d(n_in, n_out, 4, 2, 1, bias=False)
            layers += [spectral_norm(conv), nn.InstanceNorm2d(n_out, affine=True), nn.PReLU(n_out)]
            n_in = n_out
        hidden = n_in // 2
        layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten(), spectral_norm(nn.Linear(n_in, hidden))]
        layers += [nn.Dropout(DROPOUT), nn.PReLU(hidden), spectral_norm(nn.Linear(hidden, 1))]
        self.layers = nn.Sequential(*layers)  # published keys count them
        self.squash = LearnableSigmoid(1)

    def logit(self, clean: Tensor, estimate: Tensor) -> Tensor:
        """Before the sigmoid, (B,). Inputs smaller than LEAST are padded with silence."""
        pair = torch.stack([clean, estimate], 1)  # (B, 2, F, L)
        bins, frames = (max(0, least - n) for least, n in zip(LEAST, pair.shape[2:], strict=True))
        return self.layers(F.pad(pair, (0, frames, 0, bins)))[:, 0]

    def forward(self, clean: Tensor, estimate: Tensor) -> Tensor:
        return self.squash(self.logit(clean, estimate))


def load_discriminator(path: str | Path) -> MetricDiscriminator:
    """The published discriminator from its `.pth` or its name in `weights list`, in eval mode.

    Raises UserError if the file is missing, unreadable, unsafe or does not fit.
    """
    path = locate(path)
    state, _ = read_pickle(path)
    model = MetricDiscriminator()
    fill(model, from_published(state), path)
    return model.eval()


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under our names; PyTorch's older spectral norm had other names."""
    names = {"weight_orig": "original", "weight_u": "0._u", "weight_v": "0._v"}
    spelt = re.compile("|".join(names))
    last = len(MetricDiscriminator().layers)
    renamed = {}
    for name, tensor in state.items():
        name = spelt.sub(lambda match: f"parametrizations.weight.{names[match[0]]}", name)
        renamed[name.replace(f"layers.{last}.", "squash.")] = tensor
    return renamed
