"""SEMamba advanced, as RoyChao19477/SEMamba publishes it: every size is read off the tensors."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechlab.config import from_dict
from speechlab.errors import UserError
from speechlab.models.semamba import SEMambaAdvancedConfig
from speechlab.weights.codec import rename_codec
from speechlab.weights.names import check_mark, renamed

StateDict = dict[str, Tensor]

RENAMED = (  # (published, ours), applied in order
    (r"^TSMamba\.", "blocks."),
    (r"\.time_mamba\.", ".time."),
    (r"\.freq_mamba\.", ".frequency."),
    (r"\.forward_blocks\.0\.", ".ahead."),
    (r"\.backward_blocks\.0\.", ".back."),
    (r"^(blocks\.\d+)\.tlinear\.", r"\1.time.fusion."),
    (r"^(blocks\.\d+)\.flinear\.", r"\1.frequency.fusion."),
)


def semamba_advanced(
    state: Mapping[str, Tensor], published: Mapping[str, Any]
) -> tuple[SEMambaAdvancedConfig, StateDict]:
    """A generator's state dict -> configuration and state; nothing is published with it.

    UserError where the tensors are not those of a SEMamba.
    """
    if "layers.0.weight_orig" in state:
        raise UserError("holds a metric discriminator, which trains a SEMamba and enhances nothing")
    check_mark(state, "semamba_advanced", "a SEMamba")
    weights = {_rename(name): tensor.float() for name, tensor in state.items()}
    try:
        config = _config(weights)
        return config, {name: _as_linear(name, tensor) for name, tensor in weights.items()}
    except KeyError as error:
        raise UserError(f"these are not the weights of a SEMamba: no {error}") from error
    except (IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError("these are not the weights of a SEMamba: odd tensor shapes") from error


def _rename(name: str) -> str:
    return rename_codec(renamed(name, RENAMED), "transposed")


def _config(weights: StateDict) -> SEMambaAdvancedConfig:
    indices = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    n_fft = 2 * (weights["mask_decoder.slope"].shape[0] - 1)
    settings = {
        "d_model": weights["encoder.widen.conv.weight"].shape[0],
        "n_blocks": sum(index.isdigit() for index in indices),
        "direction": "both" if "blocks.0.time.fusion.weight" in weights else "forward",
        # no tensor tells hop and window: those of every published model, 1/4 and all of a frame
        "front_end": {"n_fft": n_fft, "hop_length": n_fft // 4, "win_length": n_fft},
    }
    return from_dict(SEMambaAdvancedConfig, settings | _layer(weights))


def _layer(weights: StateDict) -> dict[str, Any]:
    """Kind and sizes of the sequence layers, which are alike in all blocks."""
    prefix = "blocks.0.time.ahead.mixer."
    d_mixed, _, d_conv = weights[prefix + "conv1d.weight"].shape
    d_model, d_inner = weights[prefix + "out_proj.weight"].shape
    layer = {"d_conv": d_conv, "expand": d_inner // d_model}
    if prefix + "dt_bias" in weights:  # mamba2, of the published branch mamba-2
        d_head = d_inner // weights[prefix + "A_log"].shape[0]
        layer |= {"d_state": (d_mixed - d_inner) // 2, "d_head": d_head}
        return {"sequence_layer": "mamba2", "layer": layer}
    layer["d_state"] = weights[prefix + "A_log"].shape[1]
    return {"sequence_layer": "mamba", "layer": layer}


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    """A transposed convolution of one tap, (in, out, 1), is a linear layer (out, in)."""
    is_fusion = name.endswith(".fusion.weight") and tensor.dim() == 3
    return tensor.squeeze(-1).T.contiguous() if is_fusion else tensor
