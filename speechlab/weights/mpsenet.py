"""MP-SENet as yxlu-0102/MP-SENet publishes it, and with Mamba as StrangeAlex/VK_SE_task does.

Sizes are read off the tensors. What these cannot tell is as in all published configurations: four
heads, frames every quarter of n_fft. Such weights were trained with the axes of attention and GRU
turned, so that their configuration says `axes="published"`.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechlab.audio.spectrum import FrontEnd
from speechlab.errors import UserError
from speechlab.layers.dense import Codec
from speechlab.models.mpsenet import MPSENetConfig, MPSENetConformerConfig, MPSENetMambaConfig
from speechlab.weights.codec import rename_codec
from speechlab.weights.names import check_mark, renamed

StateDict = dict[str, Tensor]

RENAMED = (  # (published, ours), applied in order
    (r"^(TSTransformer|TSConformer|shared_ts_transformer)\.", "blocks."),
    (r"^(mag|phase)_ts_transformer\.", r"\1_branch."),
    (r"^(mag|phase)_proj\.", r"\1_conv."),
    (r"^cross_attention\.phase_to_mag_attn\.", "cross_attention.mag."),
    (r"^cross_attention\.mag_to_phase_attn\.", "cross_attention.phase."),
    (r"\.(time|freq)_(transformer|conformer)\.", r".\1."),
    (r"\.mamba(_t)?\.", ".scans.0."),
    (r"\.mamba_f\.", ".scans.1."),
    # transformer
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".gru_norm."),
    (r"\.norm3\.", ".norm_out."),
    (r"\.ffn\.", "."),
    # conformer
    (r"\.ffm1\.ffm\.", ".feed_in."),
    (r"\.ffm2\.ffm\.", ".feed_out."),
    (r"\.(feed_in|feed_out)\.0\.", r".\1.norm."),
    (r"\.(feed_in|feed_out)\.1\.", r".\1.widen."),
    (r"\.(feed_in|feed_out)\.4\.", r".\1.narrow."),
    (r"\.attn\.layernorm\.", ".attention_norm."),
    (r"\.attn\.attn\.", ".attention."),
    (r"\.ccm\.ccm\.", ".convolution."),
    (r"\.convolution\.0\.", ".convolution.norm."),
    (r"\.convolution\.2\.", ".convolution.widen."),
    (r"\.convolution\.4\.", ".convolution.depthwise."),
    (r"\.convolution\.5\.", ".convolution.batch_norm."),
    (r"\.convolution\.7\.", ".convolution.narrow."),
    (r"\.post_norm\.", ".norm_out."),
    # both
    (r"\.in_proj_(weight|bias)$", r".in_proj.\1"),
)


def mpsenet(
    state: Mapping[str, Tensor], published: Mapping[str, Any]
) -> tuple[MPSENetConfig, StateDict]:
    """A `generator` of yxlu-0102/MP-SENet -> configuration and state.

    Nothing is read from `published`, which such files do not hold. UserError where the tensors
    are not those of an MP-SENet; so in the two functions below.
    """
    weights = _renamed(state, "mpsenet", "subpixel")
    settings = _settings(weights, "mpsenet")
    return MPSENetConfig(n_blocks=_count(weights, "blocks"), **settings), weights


def mpsenet_conformer(
    state: Mapping[str, Tensor], published: Mapping[str, Any]
) -> tuple[MPSENetConformerConfig, StateDict]:
    """A `generator` of the first version of yxlu-0102/MP-SENet -> configuration and state."""
    weights = _renamed(state, "mpsenet_conformer", "transposed")
    settings = _settings(weights, "none")
    settings["n_blocks"] = _count(weights, "blocks")
    path = "blocks.0.time."
    settings["expand"] = _size(weights, path + "feed_in.widen.weight") // settings["d_model"]
    settings["kernel_size"] = _size(weights, path + "convolution.depthwise.weight", 2)
    return MPSENetConformerConfig(**settings), weights


def mpsenet_mamba(
    state: Mapping[str, Tensor], published: Mapping[str, Any]
) -> tuple[MPSENetMambaConfig, StateDict]:
    """A `generator` of StrangeAlex/VK_SE_task, large or small -> configuration and state."""
    weights = _renamed(state, "mpsenet_mamba", "subpixel")
    settings = _settings(weights, "mpsenet")
    config = MPSENetMambaConfig(
        n_shared_blocks=_count(weights, "blocks"),
        n_branch_blocks=_count(weights, "mag_branch"),
        shared="mamba" if "blocks.0.norm.weight" in weights else "transformer",
        mamba="both_axes" if _count(weights, "mag_branch.0.scans") == 1 else "per_axis",
        **settings,
    )
    return config, weights


def _renamed(state: Mapping[str, Tensor], system: str, codec: Codec) -> StateDict:
    """The tensors under our names, if they are of this system."""
    check_mark(state, system, system)
    return {renamed(rename_codec(name, codec), RENAMED): tensor for name, tensor in state.items()}


def _settings(weights: StateDict, offsets: str) -> dict[str, Any]:
    """What all versions have in common."""
    n_fft = 2 * (_size(weights, "mask_decoder.slope") - 1)
    front_end = FrontEnd(n_fft, n_fft // 4, n_fft, offsets=offsets)
    d_model = _size(weights, "encoder.widen.conv.weight")
    return {"d_model": d_model, "front_end": front_end, "axes": "published"}


def _size(weights: StateDict, name: str, dim: int = 0) -> int:
    tensor = weights.get(name)
    if tensor is None or tensor.dim() <= dim:
        raise UserError(f"these are not the weights of an MP-SENet: no {name}, or of odd shape")
    return tensor.shape[dim]


def _count(weights: StateDict, prefix: str) -> int:
    """How many modules a list of modules has."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({found[1] for name in weights if (found := pattern.match(name))})
