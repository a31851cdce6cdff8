"""Channel groups: channels that can only be removed together, and where they are.

A channel of a group is a part of every member of the group. A member is a parameter along one of
its dimensions. Of n channels, channel c has these positions there:

    offset + half * n * block + c * block + (0 … block - 1), for each of the halves

| field  | example                                                                               |
|--------|---------------------------------------------------------------------------------------|
| halves | 2: both halves of a GLU; any number of copies, side by side                           |
| offset | positions before the group: in Mamba's x_proj, rows of dt are before those of B and C |
| block  | positions of one channel: a head of Mamba-2 has d_head rows                           |
| scored | False: a bias; it is removed with its channel and does not count as its importance    |

A `Grouped` layer lists the groups of its own parameters. A model adds the paths and joins what its
layers share. Pruning reads these lists and knows no architecture.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

OUTER = "d_model"  # the group of a layer's inputs and outputs, which it shares with other layers


class Member(NamedTuple):
    """A parameter of a group, along one of its dimensions."""

    name: str
    dim: int
    halves: int = 1
    offset: int = 0
    block: int = 1
    scored: bool = True


Members = tuple[Member, ...]


class Group(NamedTuple):
    """Channels that are removed together."""

    n_channels: int
    members: Members


Groups = Mapping[str, Group]


class Grouped(nn.Module):
    """A layer (B, L, d_model) -> (B, L, d_model) that lists its channel groups."""

    def channel_groups(self) -> dict[str, Group]:
        """OUTER, then the groups inside the layer; parameters by their names in the layer."""
        raise NotImplementedError

    def narrowed(self, widths: Mapping[str, int]) -> dict[str, int]:
        """The arguments, but d_model, of this layer with other numbers of channels inside."""
        raise NotImplementedError


class Wired(nn.Module):
    """A layer around others that has weights along d_model itself."""

    def own_members(self) -> Members:
        """Those weights; parameters by their names in the layer."""
        raise NotImplementedError


def outputs(
    owner: nn.Module, path: str, halves: int = 1, offset: int = 0, block: int = 1
) -> Members:
    """The outputs of a layer at `path` in `owner`: a convolution, linear layer, norm or PReLU."""
    layer = owner.get_submodule(path)
    dim = 1 if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d) else 0
    place = halves, offset, block
    dims = {"weight": dim, "bias": 0}
    names = (name for name, _ in layer.named_parameters(recurse=False))
    return tuple(Member(f"{path}.{n}", dims[n], *place, scored=n != "bias") for n in names)


def inputs(
    owner: nn.Module, path: str, halves: int = 1, offset: int = 0, block: int = 1
) -> Members:
    """The inputs of a convolution or linear layer at `path` in `owner`."""
    layer = owner.get_submodule(path)
    dim = 0 if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d) else 1
    return (Member(f"{path}.weight", dim, halves, offset, block),)


def under(path: str, members: Members) -> Members:
    """The same members of a layer at `path`."""
    return tuple(member._replace(name=f"{path}.{member.name}") for member in members)


def grouped(model: nn.Module, path: str = "") -> Iterator[tuple[str, Grouped]]:
    """The outermost `Grouped` layers of `model` at or below `path`, in the order of modules."""
    inside = None
    for name, module in model.named_modules():
        if inside is not None and f"{name}.".startswith(f"{inside}."):
            continue
        if isinstance(module, Grouped) and (not path or f"{name}.".startswith(f"{path}.")):
            inside = name
            yield name, module


def inner_groups(model: nn.Module) -> dict[str, Group]:
    """The groups inside all `Grouped` layers; names end in the number of the layer."""
    return {
        f"{name}{i}": Group(group.n_channels, under(path, group.members))
        for i, (path, layer) in enumerate(grouped(model))
        for name, group in layer.channel_groups().items()
        if name != OUTER
    }


def outer_members(model: nn.Module, path: str) -> Members:
    """Along d_model: the members of all layers and norms at or below `path`."""
    layers = dict(grouped(model, path))
    members = [under(name, layer.channel_groups()[OUTER].members) for name, layer in layers.items()]
    inside = tuple(f"{name}." for name in layers)
    for name, module in model.get_submodule(path).named_modules(prefix=path):
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) and not name.startswith(inside):
            members.append(outputs(model, name))
        elif isinstance(module, Wired):
            members.append(under(name, module.own_members()))
    return sum(members, ())


def narrowed_layers(model: nn.Module, widths: Mapping[str, int]) -> tuple[dict[str, int], ...]:
    """The arguments of each `Grouped` layer of a model with these widths of `inner_groups`."""
    layers = []
    for i, (_, layer) in enumerate(grouped(model)):
        names = [name for name in layer.channel_groups() if name != OUTER]
        layers.append(layer.narrowed({name: widths[f"{name}{i}"] for name in names}))
    return tuple(layers)


def positions(n_channels: int, member: Member) -> list[list[int]]:
    """Of each channel, its positions along the member's dimension."""
    starts = [member.offset + half * n_channels * member.block for half in range(member.halves)]
    return [
        [start + c * member.block + i for start in starts for i in range(member.block)]
        for c in range(n_channels)
    ]
