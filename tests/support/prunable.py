"""Small models with channel groups, and the same models with channels of zeros."""

import copy
import random

import torch
from torch import Tensor, nn

from speechlab.config import override
from speechlab.layers.channels import positions
from speechlab.models import SYSTEMS
from speechlab.models.base import Model
from tests.support.small_models import SMALL

LAYERS = {
    "mamba": {"d_state": 4, "dt_rank": 3},
    "mamba2": {"d_state": 3, "d_head": 4},
    "mamba_s4": {"n_channels": 3, "d_state": 8},
    "lstm": {},
    "mha": {"n_heads": 4, "window": 6, "d_hidden": 5},
}
CLEANUMAMBA = SMALL["cleanumamba"]
CONFIGS = {
    f"cleanumamba-{mixer}": override(CLEANUMAMBA, mixer=mixer, layers=[layer] * 2)
    for mixer, layer in LAYERS.items()
}
CONFIGS |= {
    "cleanumamba-leak": override(CONFIGS["cleanumamba-mamba2"], state_leak_s=0.1),
    "sepmamba-forward": SMALL["sepmamba"],
    "sepmamba-both": override(
        SMALL["sepmamba"], direction="both", n_blocks=1, channels=(4, 6), kernel_sizes=(6, 4)
    ),
    "semamba_advanced-both": SMALL["semamba_advanced"],
    "semamba_advanced-forward": override(SMALL["semamba_advanced"], direction="forward"),
    "semamba_advanced-mamba2": override(
        SMALL["semamba_advanced"], sequence_layer="mamba2", layer={"d_state": 2, "d_head": 4}
    ),
    "semamba_basic-forward": SMALL["semamba_basic"],
    "semamba_basic-both": override(SMALL["semamba_basic"], direction="both"),
}


def system(name: str) -> str:
    return name.partition("-")[0]


def built(name: str) -> Model:
    """In float64, with no weight or bias of zero or one, so that every channel counts."""
    torch.manual_seed(0)
    model = SYSTEMS[system(name)][1](CONFIGS[name]).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def noisy(model: Model, seconds: float = 0.02) -> Tensor:
    n_samples = round(seconds * model.sample_rate)
    return torch.randn(2, 1, n_samples, dtype=torch.float64)


def some(model: Model, seed: int = 0) -> dict[str, list[int]]:
    """A channel of every group that has more than one; two of those with more than three."""
    draws, channels = random.Random(seed), {}
    for name, group in model.channel_groups().items():
        n = min(2, group.n_channels // 2)
        if n:
            channels[name] = sorted(draws.sample(range(group.n_channels), n))
    return channels


def zeroed(model: Model, channels: dict[str, list[int]]) -> Model:
    """A copy whose weights and biases of these channels are zero."""
    dead = copy.deepcopy(model)
    with torch.no_grad():
        for name, removed in channels.items():
            group = model.channel_groups()[name]
            for member in group.members:
                places = positions(group.n_channels, member)
                gone = torch.tensor([i for c in removed for i in places[c]])
                dead.get_parameter(member.name).index_fill_(member.dim, gone, 0)
    return dead


class LiveNorm(nn.Module):
    """A norm whose mean leaves out the channels with a weight of zero."""

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm) -> None:
        super().__init__()
        live = norm.weight.detach() != 0
        self.live, self.norm = live, copy.deepcopy(norm)
        self.norm.normalized_shape = (int(live.sum()),)
        for name, parameter in norm.named_parameters():
            setattr(self.norm, name, nn.Parameter(parameter.detach()[live]))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[..., self.live] = self.norm(x[..., self.live])
        return y


def masked(model: Model, channels: dict[str, list[int]]) -> Model:
    """`zeroed`, and the channels are left out of the means of norms over channels."""
    dead = zeroed(model, channels)
    norms = [n for n, m in dead.named_modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm)]
    for name in norms:
        dead.set_submodule(name, LiveNorm(dead.get_submodule(name)))
    return dead


def has_norm(model: Model, group: str) -> bool:
    """Whether a norm takes a mean over the channels of this group."""
    kinds = (nn.LayerNorm, nn.RMSNorm)
    paths = [member.name.rpartition(".")[0] for member in model.channel_groups()[group].members]
    return any(isinstance(model.get_submodule(path), kinds) for path in paths if path)
