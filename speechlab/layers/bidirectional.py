"""Layers that use the whole sequence, past and future: (B, L, D) -> (B, L, D).

They have no state and cannot stream. `SEQUENCE_LAYERS` has:

| name        | layer                                                                 | source     |
|-------------|-----------------------------------------------------------------------|------------|
| mamba       | Block of RMSNorm and Mamba, in both directions or one                 | 2405.06573 |
| mamba2      | the same of Mamba-2                                                   | 2405.21060 |
| transformer | pre-norm encoder layer; attention itself sees both directions         | 1706.03762 |

A Block is x + mixer(norm(x)). In both directions a layer is x + fusion(ahead, back): SEMamba's
wiring, with Mamba in the paper and Mamba-2 in a branch of its code. In one direction it is the
Block alone, which gives the published number of parameters. The transformer is our choice: the
paper compares with MP-SENet's Conformer. It has no positional encoding; the convolutions around the
blocks provide positions.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from speechlab.errors import UserError
from speechlab.layers.channels import Members, Wired, inputs, outputs
from speechlab.layers.mixers import MIXERS
from speechlab.layers.stacks import GIVEN, Block, check_settings
from speechlab.layers.time_frequency import Attention

Direction = Literal["both", "forward"]
N_DIRECTIONS = {"both": 2, "forward": 1}
ELEMENTS_AT_ONCE = 2**21  # input of `a_few_at_once`; 8 MiB in float32


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm in the type of its weight, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class BothWays(nn.Module):
    """ahead + back: (B, L, D) -> (B, L, D); the second on the reversed sequence.

    SepMamba's and U-Mamba-Net's wiring: no fusion layer and no residual.
    """

    def __init__(self, ahead: nn.Module, back: nn.Module) -> None:
        """ahead, back: forward(x (B, L, D)) -> (y (B, L, D), state)"""
        super().__init__()
        self.ahead, self.back = ahead, back

    def directions(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) -> (B, L, D) of each direction."""
        return self.ahead(x)[0], self.back(x.flip(1))[0].flip(1)

    def forward(self, x: Tensor) -> Tensor:
        ahead, back = self.directions(x)
        return ahead + back


class Bidirectional(BothWays, Wired):
    """x + fusion(ahead, back): (B, L, D) -> (B, L, D); fusion: 2 D -> D."""

    def __init__(self, ahead: nn.Module, back: nn.Module, d_model: int) -> None:
        super().__init__(ahead, back)
        self.fusion = nn.Linear(2 * d_model, d_model)
        for start in self.fusion.parameters():  # as the published transposed convolution starts
            nn.init.uniform_(start, -(d_model**-0.5), d_model**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fusion(torch.cat(self.directions(x), -1))  # (B, L, 2 D) -> (B, L, D)

    def own_members(self) -> Members:
        return outputs(self, "fusion") + inputs(self, "fusion", halves=2)


class OneDirection(nn.Module):
    """A causal layer on whole sequences, without its state: (B, L, D) -> (B, L, D)."""

    def __init__(self, ahead: nn.Module) -> None:
        super().__init__()
        self.ahead = ahead

    def forward(self, x: Tensor) -> Tensor:
        return self.ahead(x)[0]


class TransformerEncoderLayer(nn.Module):
    """Attention, then two dense layers, each x + layer(norm(x)): (B, L, D) -> (B, L, D)."""

    def __init__(self, d_model: int, n_heads: int = 4, d_hidden: int = 256) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.dense_norm = nn.LayerNorm(d_model)
        self.dense = nn.Sequential(
            nn.Linear(d_model, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_model)
        )

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed)
        return x + self.dense(self.dense_norm(x))


# name -> class; the causal ones are wrapped in one Block per direction
CAUSAL: dict[str, Callable[..., nn.Module]] = {name: MIXERS[name] for name in ("mamba", "mamba2")}
SEQUENCE_LAYERS = CAUSAL | {"transformer": TransformerEncoderLayer}


def sequence_layer(
    name: str,
    d_model: int,
    direction: Direction = "both",
    each: Sequence[Mapping[str, int]] = (),
    **options: int,
) -> nn.Module:
    """A layer of `SEQUENCE_LAYERS`: (B, L, d_model) -> (B, L, d_model).

    each: sizes of its `n_layers`, where they differ; forward first.
    options: its sizes, as d_state. UserError for an unknown option.
    """
    sizes = list(each) or [options] * n_layers(name, direction)
    for settings in sizes:
        _check(name, direction, settings)
    if name not in CAUSAL:
        return SEQUENCE_LAYERS[name](d_model, **sizes[0])
    mixers = [CAUSAL[name](d_model, **settings) for settings in sizes]
    blocks = [Block(mixer, d_model, RMSNorm(d_model, eps=1e-5)) for mixer in mixers]
    return Bidirectional(*blocks, d_model) if direction == "both" else OneDirection(*blocks)


def n_layers(name: str, direction: Direction) -> int:
    """Layers with sizes of their own in a `sequence_layer`."""
    return N_DIRECTIONS[direction] if name in CAUSAL else 1


def _check(name: str, direction: Direction, options: Mapping[str, Any]) -> None:
    known = set(inspect.signature(SEQUENCE_LAYERS[name]).parameters) - GIVEN
    check_settings(f"sequence layer {name}", known, options)
    if name not in CAUSAL and direction != "both":
        raise UserError(f"a {name} layer sees both directions; direction must be both")


def a_few_at_once(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x); without gradients in parts of the batch, which needs less memory."""
    n_together = max(1, ELEMENTS_AT_ONCE // max(1, x[:1].numel()))
    if torch.is_grad_enabled() or len(x) <= n_together:
        return layer(x)
    return torch.cat([layer(part) for part in x.split(n_together)])
