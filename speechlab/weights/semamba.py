"""Converter for SEMamba (advanced), as RoyChao19477/SEMamba publishes it.

All sizes are read off the tensors; no configuration is published.
"""

from collections.abc import Mapping
from typing import Any

from speechlab.config import from_dict
from speechlab.models.semamba import SEMambaAdvancedConfig
from speechlab.weights.codec import rename_codec
from speechlab.weights.conversion import Converter, Weights
from speechlab.weights.names import renamed

RENAMED = (  # (published, ours), applied in order
    (r"^TSMamba\.", "blocks."),
    (r"\.time_mamba\.", ".time."),
    (r"\.freq_mamba\.", ".frequency."),
    (r"\.forward_blocks\.0\.", ".ahead."),
    (r"\.backward_blocks\.0\.", ".back."),
    (r"^(blocks\.\d+)\.tlinear\.", r"\1.time.fusion."),
    (r"^(blocks\.\d+)\.flinear\.", r"\1.frequency.fusion."),
)


def _rename(name: str) -> str:
    return rename_codec(renamed(name, RENAMED), "transposed")


def _config(weights: Weights, _: Mapping[str, Any]) -> SEMambaAdvancedConfig:
    n_fft = 2 * (weights.size("mask_decoder.slope") - 1)
    settings = {
        "d_model": weights.size("encoder.widen.conv.weight"),
        "n_blocks": weights.count("blocks."),
        "direction": "both" if "blocks.0.time.fusion.weight" in weights else "forward",
        # no tensor shows hop and window: 1/4 of n_fft and n_fft in every published model
        "front_end": {"n_fft": n_fft, "hop_length": n_fft // 4, "win_length": n_fft},
    }
    return from_dict(SEMambaAdvancedConfig, settings | _layer(weights))


def _layer(weights: Weights) -> dict[str, Any]:
    """Kind and sizes of the sequence layers, the same in all blocks."""
    prefix = "blocks.0.time.ahead.mixer."
    d_mixed, _, d_conv = weights[prefix + "conv1d.weight"].shape
    d_model, d_inner = weights[prefix + "out_proj.weight"].shape
    layer = {"d_conv": d_conv, "expand": d_inner // d_model}
    if prefix + "dt_bias" in weights:  # mamba2, of the published branch mamba-2
        d_head = d_inner // weights.size(prefix + "A_log")
        layer |= {"d_state": (d_mixed - d_inner) // 2, "d_head": d_head}
        return {"sequence_layer": "mamba2", "layer": layer}
    layer["d_state"] = weights.size(prefix + "A_log", 1)
    return {"sequence_layer": "mamba", "layer": layer}


def _as_linear(weights: Weights) -> Weights:
    """Fusions: a transposed convolution of one tap, (in, out, 1), is a linear layer (out, in)."""
    for name, tensor in weights.items():
        if name.endswith(".fusion.weight") and tensor.dim() == 3:
            weights[name] = tensor.squeeze(-1).T.contiguous()
    return weights


semamba_advanced = Converter("semamba_advanced", "a SEMamba", _rename, _config, _as_linear)
