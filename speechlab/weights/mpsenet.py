"""Converters for MP-SENet (yxlu-0102/MP-SENet) and MP-SENet + Mamba (StrangeAlex/VK_SE_task).

They read the `generator` of a file, sizes off its tensors. Settings that no tensor shows are those
of all published configurations: four heads, a hop of n_fft / 4. The published weights were trained
with swapped axes of attention and GRU, so the configuration says `axes="published"`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from speechlab.audio.spectrum import FrontEnd
from speechlab.layers.dense import Codec
from speechlab.models.mpsenet import MPSENetConfig, MPSENetConformerConfig, MPSENetMambaConfig
from speechlab.weights.codec import rename_codec
from speechlab.weights.conversion import Converter, Weights
from speechlab.weights.names import renamed

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


def _common(weights: Weights, offsets: str) -> dict[str, Any]:
    """Settings that all versions have."""
    n_fft = 2 * (weights.size("mask_decoder.slope") - 1)
    front_end = FrontEnd(n_fft, n_fft // 4, n_fft, offsets=offsets)
    d_model = weights.size("encoder.widen.conv.weight")
    return {"d_model": d_model, "front_end": front_end, "axes": "published"}


def _mpsenet(weights: Weights, _: Mapping[str, Any]) -> MPSENetConfig:
    return MPSENetConfig(n_blocks=weights.count("blocks."), **_common(weights, "mpsenet"))


def _conformer(weights: Weights, _: Mapping[str, Any]) -> MPSENetConformerConfig:
    common, layer = _common(weights, "none"), "blocks.0.time."
    return MPSENetConformerConfig(
        n_blocks=weights.count("blocks."),
        expand=weights.size(layer + "feed_in.widen.weight") // common["d_model"],
        kernel_size=weights.size(layer + "convolution.depthwise.weight", 2),
        **common,
    )


def _mamba(weights: Weights, _: Mapping[str, Any]) -> MPSENetMambaConfig:
    return MPSENetMambaConfig(
        n_shared_blocks=weights.count("blocks."),
        n_branch_blocks=weights.count("mag_branch."),
        shared="mamba" if "blocks.0.norm.weight" in weights else "transformer",
        mamba="both_axes" if weights.count("mag_branch.0.scans.") == 1 else "per_axis",
        **_common(weights, "mpsenet"),
    )


def _converter(
    system: str, codec: Codec, config: Callable[[Weights, Mapping[str, Any]], Any]
) -> Converter:
    return Converter(system, system, lambda n: renamed(rename_codec(n, codec), RENAMED), config)


mpsenet = _converter("mpsenet", "subpixel", _mpsenet)
mpsenet_conformer = _converter("mpsenet_conformer", "transposed", _conformer)  # first version
mpsenet_mamba = _converter("mpsenet_mamba", "subpixel", _mamba)  # large or small
