"""SepMamba, as its authors publish it: every size is read off the tensors.

A tensor file tells both directions from one by the names of its keys, and not the stride, which
is 2 in every published model.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechlab.config import from_dict
from speechlab.errors import UserError
from speechlab.models.sepmamba import CONFIGS, SepMambaConfig
from speechlab.weights.names import check_mark, renamed

StateDict = dict[str, Tensor]

RENAMED = (  # (published, ours), applied in order
    (r"^decoder\.", "out."),
    (r"^down\.(\d+)\.conv1d\.", r"encoder.\1.down."),
    (r"^down\.", "encoder."),
    (r"^up\.(\d+)\.convT1d\.", r"decoder.\1.up."),
    (r"^up\.(\d+)\.conv1d_fusion\.", r"decoder.\1.fusion."),
    (r"^up\.", "decoder."),
    (r"\.mamba_layer\.", ".mamba."),
    (r"\.forward_mamba_block\.mamba_blocks\.", ".ahead.layers."),
    (r"\.backward_mamba_block\.mamba_blocks\.", ".back.layers."),
)
ONE_WAY = ((r"\.mamba\.ahead\.", ".mamba."),)


def sepmamba(
    name: str | None, state: Mapping[str, Tensor], published: Mapping[str, Any]
) -> tuple[SepMambaConfig, StateDict]:
    """A SepMamba or SepMambaCausal state dict -> configuration and state.

    name: one of CONFIGS, which size and direction must be of, or None; both are read off the
    tensors, and nothing is published with these. UserError where the tensors are not those of a
    SepMamba, or of another one than `name` tells.
    """
    check_mark(state, "sepmamba", "a SepMamba")
    weights = {renamed(key, RENAMED): tensor.float() for key, tensor in state.items()}
    try:
        config = _config(weights)
    except KeyError as error:
        raise UserError(f"these are not the weights of a SepMamba: no {error}") from error
    except (IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError("these are not the weights of a SepMamba: odd tensor shapes") from error
    if name is not None:
        compare(name, config)
    if config.direction == "forward":
        weights = {renamed(key, ONE_WAY): tensor for key, tensor in weights.items()}
    return config, weights


def _config(weights: StateDict) -> SepMambaConfig:
    """From tensors whose stacks ahead are named `ahead`, also where there is no other."""
    convs = [weights[f"encoder.{i}.down.weight"] for i in range(_count(weights, "encoder."))]
    stack = "encoder.0.mamba.ahead.layers."
    mixer = stack + "0.mixer."
    d_model, d_inner = weights[mixer + "out_proj.weight"].shape
    settings = {
        "channels": tuple(conv.shape[0] for conv in convs),
        "kernel_sizes": tuple(conv.shape[-1] for conv in convs),
        "n_blocks": _count(weights, stack),
        "direction": "both" if any(".mamba.back." in key for key in weights) else "forward",
        "layer": {
            "d_state": weights[mixer + "A_log"].shape[1],
            "d_conv": weights[mixer + "conv1d.weight"].shape[-1],
            "expand": d_inner // d_model,
        },
        "n_sources": weights["out.weight"].shape[1],
    }
    return from_dict(SepMambaConfig, settings)


def _count(weights: StateDict, prefix: str) -> int:
    """Different numbers that stand behind the prefix."""
    keys = (key.removeprefix(prefix) for key in weights if key.startswith(prefix))
    return len({key.partition(".")[0] for key in keys})


def compare(name: str, config: SepMambaConfig) -> None:
    """UserError where the weights are those of another name.

    Other sizes than the published ones go by any name of their direction.
    """
    sizes = _sizes(config)
    held = next((known for known, of in CONFIGS.items() if _sizes(of) == sizes), None)
    if held not in (None, name):
        raise UserError(f"these are the weights of {held}, not of {name}")
    if config.direction != CONFIGS[name].direction:
        told = {"both": "look both ways", "forward": "are causal"}[config.direction]
        raise UserError(f"these weights of a SepMamba {told}, those of {name} do not")


def _sizes(config: SepMambaConfig) -> SepMambaConfig:
    """Without what no weight tells."""
    told = ("channels", "kernel_sizes", "n_blocks", "direction", "layer", "n_sources")
    return SepMambaConfig(**{name: getattr(config, name) for name in told})
