"""Remove channels: a narrower model, with weights and the optimiser's averages cut alike.

The result is an ordinary model. Its configuration holds the widths, so a file of it loads, trains
and streams as any other. A norm takes its mean over the channels that remain.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from speechlab.errors import UserError, unknown
from speechlab.layers.channels import Groups, positions
from speechlab.models.base import Model

Channels = Mapping[str, Sequence[int]]  # of each group, the channels to remove


def remove(model: Model, channels: Channels) -> Model:
    """A new model without these channels; the given model stays as it is.

    UserError for an unknown group or channel, and for all channels of a group.
    """
    groups = model.channel_groups()
    check(groups, channels)
    left = {name: groups[name].n_channels - len(set(gone)) for name, gone in channels.items()}
    pruned = sketch(model, left)
    pruned.load_state_dict(cut(model.state_dict(), groups, channels), assign=True)
    for before, after in zip(model.parameters(), pruned.parameters(), strict=True):
        after.requires_grad_(before.requires_grad)
    return pruned.train(model.training)


def sketch(model: Model, widths: Mapping[str, int]) -> Model:
    """The model with other widths of some groups, on the meta device: sizes without numbers."""
    now = {name: group.n_channels for name, group in model.channel_groups().items()}
    with torch.device("meta"):
        changed = type(model)(model.narrowed(now | dict(widths)))
    changed.level = model.level
    return changed


def check(groups: Groups, channels: Channels) -> None:
    """UserError for an unknown group or channel, and for all channels of a group."""
    for name, removed in channels.items():
        if name not in groups:
            raise unknown("channel group", name, groups)
        n_channels = groups[name].n_channels
        strange = [c for c in removed if not 0 <= c < n_channels]
        if strange:
            raise UserError(f"{name} has channels 0 to {n_channels - 1}, not {strange[0]}")
        if len(set(removed)) == n_channels:
            raise UserError(f"{name} has {n_channels} channels; at least one must stay")


def cut(tensors: Mapping[str, Tensor], groups: Groups, channels: Channels) -> dict[str, Tensor]:
    """Copies of tensors, by the names of their parameters, without the channels."""
    dropped = defaultdict(set)
    for name, removed in channels.items():
        for member in groups[name].members:
            places = positions(groups[name].n_channels, member)
            dropped[member.name, member.dim].update(*(places[c] for c in removed))
    result = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for (name, dim), places in dropped.items():
        if name in result:
            tensor = result[name]
            stay = [i for i in range(tensor.shape[dim]) if i not in places]
            index = torch.tensor(stay, dtype=torch.long, device=tensor.device)
            result[name] = tensor.index_select(dim, index)
    return result


def cut_optimizer(state: Mapping[str, Any], model: Model, channels: Channels) -> dict[str, Any]:
    """The `state_dict` of an optimiser of `model.parameters()`, for one of the pruned model's.

    Averages that have the shape of their parameter are cut; counts of steps stay.
    """
    groups = model.channel_groups()
    check(groups, channels)
    parameters = dict(enumerate(model.named_parameters()))
    moments = {}
    for i, values in state["state"].items():
        name, parameter = parameters[i]
        shaped = {k: v for k, v in values.items() if _is_like(v, parameter)}
        shaped = {k: cut({name: v}, groups, channels)[name] for k, v in shaped.items()}
        moments[i] = {**values, **shaped}
    return {**state, "state": moments}


def _is_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape
