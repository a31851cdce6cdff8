"""Converter for SepMamba, as its authors publish it.

Sizes are read off the tensors, the direction off their names. The stride, which no tensor shows,
is 2 in every published model.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from speechlab.config import from_dict
from speechlab.errors import UserError
from speechlab.models.sepmamba import CONFIGS, SepMambaConfig
from speechlab.weights.conversion import Converter, Weights
from speechlab.weights.names import renamed

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


def _config(weights: Weights, _: Mapping[str, Any]) -> SepMambaConfig:
    """Before `_finish`: the forward stack is named `ahead` in a causal model too."""
    convs = [weights[f"encoder.{i}.down.weight"] for i in range(weights.count("encoder."))]
    stack = "encoder.0.mamba.ahead.layers."
    mixer = stack + "0.mixer."
    d_model, d_inner = weights[mixer + "out_proj.weight"].shape
    settings = {
        "channels": tuple(conv.shape[0] for conv in convs),
        "kernel_sizes": tuple(conv.shape[-1] for conv in convs),
        "n_blocks": weights.count(stack),
        "direction": "both" if _sees_both(weights) else "forward",
        "layer": {
            "d_state": weights.size(mixer + "A_log", 1),
            "d_conv": weights.size(mixer + "conv1d.weight", -1),
            "expand": d_inner // d_model,
        },
        "n_sources": weights.size("out.weight", 1),
    }
    return from_dict(SepMambaConfig, settings)


def _sees_both(weights: Weights) -> bool:
    return any(".mamba.back." in key for key in weights)


def _finish(weights: Weights) -> dict[str, Tensor]:
    if _sees_both(weights):
        return weights
    return {key.replace(".mamba.ahead.", ".mamba."): tensor for key, tensor in weights.items()}


def compare(name: str, config: SepMambaConfig) -> None:
    """UserError if a configuration is not that of `name`, one of CONFIGS.

    Sizes that are not published pass under any name of the same direction.
    """
    sizes = _sizes(config)
    held = next((known for known, of in CONFIGS.items() if _sizes(of) == sizes), None)
    if held not in (None, name):
        raise UserError(f"these are the weights of {held}, not of {name}")
    if config.direction != CONFIGS[name].direction:
        held = {"both": "look both ways", "forward": "are causal"}[config.direction]
        raise UserError(f"these weights of a SepMamba {held}, those of {name} do not")


def _sizes(config: SepMambaConfig) -> SepMambaConfig:
    """Only the settings that the tensors show."""
    shown = ("channels", "kernel_sizes", "n_blocks", "direction", "layer", "n_sources")
    return SepMambaConfig(**{name: getattr(config, name) for name in shown})


sepmamba = Converter("sepmamba", "a SepMamba", partial(renamed, patterns=RENAMED), _config, _finish)
