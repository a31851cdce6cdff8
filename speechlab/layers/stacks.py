"""Stacks of mixers: sequence models of layers of one kind.

Each stack maps (B, L, d_model) to the same shape, `forward(x, state=None) -> (y, state)` with one
state per layer, and is causal. `STACKS` has the published structure for each mixer.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.errors import UserError, meant, shown
from speechlab.layers.channels import OUTER, Group, Grouped, inputs, outputs, under
from speechlab.layers.mixers import MIXERS, State

Options = Sequence[Mapping[str, Any]]  # arguments of the mixer, one mapping per layer
LARGEST = 2**16  # value of an option
GIVEN = {"d_model", "leak"}  # arguments that the model gives: no options


class Block(nn.Module):
    """Pre-norm residual: x + mixer(norm(x)), as mamba-ssm's `Block` with the addition inside."""

    def __init__(self, mixer: nn.Module, d_model: int, norm: nn.Module | None = None) -> None:
        """norm: default nn.LayerNorm."""
        super().__init__()
        self.norm = norm or nn.LayerNorm(d_model, eps=1e-5)
        self.mixer = mixer

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        y, state = self.mixer(self.norm(x), state)
        return x + y, state


class TransformerLayer(Grouped):
    """Post-norm encoder layer of CleanUNet (arXiv 2202.07790): mixer, then two dense layers."""

    def __init__(self, mixer: nn.Module, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.mixer_norm = nn.LayerNorm(d_model, eps=1e-6)
        self.linear1 = nn.Linear(d_model, d_hidden)
        self.linear2 = nn.Linear(d_hidden, d_model)
        self.linear_norm = nn.LayerNorm(d_model, eps=1e-6)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        y, state = self.mixer(x, state)
        x = self.mixer_norm(x + y)
        return self.linear_norm(x + self.linear2(F.relu(self.linear1(x)))), state

    def channel_groups(self) -> dict[str, Group]:
        mixer = self.mixer.channel_groups()
        groups = {name: Group(g.n_channels, under("mixer", g.members)) for name, g in mixer.items()}
        outer = groups[OUTER].members + outputs(self, "mixer_norm") + inputs(self, "linear1")
        outer += outputs(self, "linear2") + outputs(self, "linear_norm")
        groups[OUTER] = groups[OUTER]._replace(members=outer)
        hidden = outputs(self, "linear1") + inputs(self, "linear2")
        return groups | {"d_hidden": Group(self.linear1.out_features, hidden)}

    def narrowed(self, widths: Mapping[str, int]) -> dict[str, int]:
        mixer = {name: width for name, width in widths.items() if name != "d_hidden"}
        return {"d_hidden": widths["d_hidden"], **self.mixer.narrowed(mixer)}


class Stack(nn.Module):
    """Layers in sequence; `norm_in` before the first, `norm_out` after the last."""

    def __init__(
        self, layers: list[nn.Module], norm_in: nn.Module | None, norm_out: nn.Module | None
    ) -> None:
        super().__init__()
        self.norm_in = norm_in or nn.Identity()
        self.layers = nn.ModuleList(layers)
        self.norm_out = norm_out or nn.Identity()

    def forward(
        self, x: Tensor, state: tuple[State, ...] | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        states = state or (None,) * len(self.layers)
        x, after = self.norm_in(x), []
        for layer, before in zip(self.layers, states, strict=True):
            x, layer_state = layer(x, before)
            after.append(layer_state)
        return self.norm_out(x), tuple(after)


def init_residual(module: nn.Module, n_layers: int) -> None:
    """mamba-ssm's `_init_weights`: zero biases, output projections drawn anew / sqrt(n_layers)."""
    if not isinstance(module, Block):
        return
    for name, layer in module.mixer.named_modules():
        if isinstance(layer, nn.Linear) and layer.bias is not None and name != "dt_proj":
            nn.init.zeros_(layer.bias)
    nn.init.kaiming_uniform_(module.mixer.out_proj.weight, a=5**0.5)
    with torch.no_grad():
        module.mixer.out_proj.weight /= n_layers**0.5


def check_options(mixer: str, options: Options) -> None:
    """`check_settings` for the options of each layer of `STACKS[mixer]`."""
    known = set(inspect.signature(MIXERS[mixer]).parameters) - GIVEN
    known |= {"d_hidden"} if STACKS[mixer] is transformer else set()
    for layer in options:
        check_settings(f"mixer {mixer}", known, layer)


def check_settings(layer: str, known: Collection[str], settings: Mapping[str, Any]) -> None:
    """UserError for an unknown setting, and for a value that is no integer of 1 to LARGEST."""
    for name, value in settings.items():
        if name not in known:
            has = ", ".join(sorted(known)) or "none"
            raise UserError(f"{layer} has no setting '{name}'{meant(name, known)}; it has: {has}")
        if type(value) is not int or value < 1:
            raise UserError(f"{layer}: {name} must be a positive int, not {shown(repr(value), 50)}")
        if value > LARGEST:
            raise UserError(f"{layer}: {name} must be at most {LARGEST}, not {shown(value, 50)}")


def check_number(name: str, values: Sequence[Any], n: int) -> None:
    """UserError for another number of values than n, or none."""
    if values and len(values) != n:
        raise UserError(f"{name} must have {n} values or none, not {len(values)}")


def residual(mixer: str, d_model: int, options: Options) -> Stack:
    """Pre-norm residual blocks and a last norm: the Mambas."""
    layers = [Block(MIXERS[mixer](d_model, **layer), d_model) for layer in options]
    return Stack(layers, None, nn.LayerNorm(d_model, eps=1e-5))


def plain(mixer: str, d_model: int, options: Options) -> Stack:
    """Layers with neither norm nor residual: the LSTM."""
    return Stack([MIXERS[mixer](d_model, **layer) for layer in options], None, None)


def transformer(mixer: str, d_model: int, options: Options) -> Stack:
    """CleanUNet's encoder; each layer's `d_hidden` is the width of its dense part."""
    layers = []
    for layer in options:
        arguments = dict(layer)
        d_hidden = arguments.pop("d_hidden", 4 * d_model)
        layers.append(TransformerLayer(MIXERS[mixer](d_model, **arguments), d_model, d_hidden))
    return Stack(layers, nn.LayerNorm(d_model, eps=1e-6), None)


STACKS: dict[str, Callable[[str, int, Options], Stack]] = {
    "mamba": residual,
    "mamba2": residual,
    "mamba_s4": residual,
    "lstm": plain,
    "mha": transformer,
}
