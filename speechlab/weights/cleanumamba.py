"""Converter for CleanUMamba and CleanUNet, as lab-emi/CleanUMamba publishes them.

A pruned CleanUMamba is published with the configuration of its unpruned parent. So the widths are
read off the tensors; the configuration adds only what shapes do not show.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from speechlab.config import from_dict
from speechlab.errors import UserError
from speechlab.layers.s4 import S4, untruncate
from speechlab.models.cleanumamba import CleanUMambaConfig
from speechlab.weights.conversion import Converter, Weights
from speechlab.weights.names import renamed

RENAMED = (  # (published, ours), applied in order
    (r"^encoder\.(\d+)\.0\.", r"encoder.\1.down."),
    (r"^encoder\.(\d+)\.2\.", r"encoder.\1.mix."),
    (r"^decoder\.(\d+)\.0\.", r"decoder.\1.mix."),
    (r"^decoder\.(\d+)\.2\.", r"decoder.\1.up."),
    (r"^tsfm_conv1\.", "conv_in."),
    (r"^tsfm_conv2\.", "conv_out."),
    (r"^norm_f\.", "bottleneck.norm_out."),
    (r"^tsfm_Mamba_layers\.(weight|bias)_(ih|hh)_l(\d+)$", r"bottleneck.layers.\3.lstm.\1_\2_l0"),
    (r"^tsfm_Mamba_layers\.", "bottleneck.layers."),
    (r"\.ssm\.input_linear\.", ".s4_in."),
    (r"\.ssm\.output_linear\.0\.", ".s4_out."),
    (r"\.ssm\.layer\.kernel\.inv_dt$", ".s4.log_dt"),
    (r"\.ssm\.layer\.kernel\.A_real$", ".s4.log_A_real"),
    (r"\.ssm\.layer\.(kernel\.)?", ".s4."),
    (r"^tsfm_encoder\.layer_norm\.", "bottleneck.norm_in."),
    (r"^tsfm_encoder\.layer_stack\.", "bottleneck.layers."),
    (r"\.slf_attn\.w_([qkv])s\.", r".mixer.\1_proj."),
    (r"\.slf_attn\.fc\.", ".mixer.out_proj."),
    (r"\.slf_attn\.layer_norm\.", ".mixer_norm."),
    (r"\.pos_ffn\.w_([12])\.", r".linear\1."),
    (r"\.pos_ffn\.layer_norm\.", ".linear_norm."),
)


def _config(weights: Weights, published: Mapping[str, Any]) -> CleanUMambaConfig:
    """published: `network_config` of the file; read for stride, attention heads, normalisation."""
    n_levels, n_layers = weights.count("encoder."), weights.count("bottleneck.layers.")
    down = [weights[f"encoder.{i}.down.weight"] for i in range(n_levels)]
    mix = [weights[f"encoder.{i}.mix.weight"] for i in range(n_levels)]
    up = [weights[f"decoder.{n_levels - 1 - i}.up.weight"] for i in range(n_levels)]
    mixer = _mixer(weights)
    settings = {
        "down_channels": tuple(w.shape[0] for w in down),
        "skip_channels": tuple(w.shape[0] // 2 for w in mix),
        "up_channels": tuple(w.shape[0] for w in up),
        "kernel_size": down[0].shape[-1],
        "stride": published.get("stride", CleanUMambaConfig.stride),
        "mixer": mixer,
        "d_model": weights.size("conv_in.weight"),
        "layers": tuple(_layer(weights, mixer, i, published) for i in range(n_layers)),
        "normalize": "utterance" if published.get("normalize_input", True) else "none",
    }
    return from_dict(CleanUMambaConfig, settings)


def _mixer(weights: Weights) -> str:
    """The mixer's name, recognised by a tensor that no other mixer has."""
    first = "bottleneck.layers.0."
    marks = {
        "lstm": "lstm.weight_ih_l0",
        "mha": "mixer.q_proj.weight",
        "mamba_s4": "mixer.s4.C",
        "mamba2": "mixer.dt_bias",
        "mamba": "mixer.x_proj.weight",
    }
    for mixer, mark in marks.items():
        if first + mark in weights:
            return mixer
    raise UserError("these are not the weights of a CleanUMamba: unknown kind of mixer")


def _layer(weights: Weights, mixer: str, i: int, published: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the mixer of layer i."""
    prefix = f"bottleneck.layers.{i}."
    shape = {name[len(prefix) :]: w.shape for name, w in weights.items() if name.startswith(prefix)}
    if mixer == "lstm":
        return {}
    if mixer == "mha":
        d_hidden = shape["linear1.weight"][0]
        return {"n_heads": published.get("tsfm_n_head", 8), "d_hidden": d_hidden}
    d_inner = shape["mixer.out_proj.weight"][1]
    options = {"d_inner": d_inner, "d_conv": shape["mixer.conv1d.weight"][-1]}
    if mixer == "mamba":
        d_state, dt_rank = shape["mixer.A_log"][1], shape["mixer.dt_proj.weight"][1]
        return options | {"d_state": d_state, "dt_rank": dt_rank}
    if mixer == "mamba2":
        d_state = (shape["mixer.conv1d.weight"][0] - d_inner) // 2
        return options | {"d_state": d_state, "d_head": d_inner // shape["mixer.A_log"][0]}
    n_channels, n_pairs = shape["mixer.s4.A_imag"]
    return options | {"n_channels": n_channels, "d_state": 2 * n_pairs}


def _restore_s4(weights: Weights) -> Weights:
    """Of each S4: drop leading axes of size 1 and `l_kernel`; C̃ = C (I - Ā^l_kernel) becomes C."""
    for prefix in [name.removesuffix("l_kernel") for name in weights if "l_kernel" in name]:
        length = int(weights.pop(prefix + "l_kernel"))
        for name in "BCPD":
            weights[prefix + name] = weights[prefix + name][0]
        n_channels, n_pairs = weights[prefix + "A_imag"].shape
        system = S4(n_channels, 2 * n_pairs)
        system.load_state_dict({name: weights[prefix + name] for name in system.state_dict()})
        with torch.no_grad():
            A_bar, _, _ = system.discretise()
            weights[prefix + "C"] = untruncate(weights[prefix + "C"], A_bar, length).float()
    return weights


cleanumamba = Converter(
    "cleanumamba", "a CleanUMamba", partial(renamed, patterns=RENAMED), _config, _restore_s4
)
