"""Tensor names that SEMamba and MP-SENet share: those of their encoder and decoders."""

import re

from speechlab.layers.dense import Codec
from speechlab.weights.names import renamed

UNIT = ("conv", "norm", "activation")  # our names of the parts of a published Sequential
RENAMED = (  # (published, ours), applied in order to encoder and decoders of either codec
    (r"^dense_encoder\.", "encoder."),
    (r"^encoder\.dense_conv_1\.", "encoder.widen."),
    (r"^encoder\.dense_conv_2\.", "encoder.down."),
    (r"\.(mask|phase)_conv\.0\.", ".up."),
    (r"\.mask_conv\.([1-9])\.", lambda found: f".narrow.{int(found[1]) - 1}."),
    (r"\.phase_conv\.1\.", ".norm."),
    (r"\.phase_conv\.2\.", ".activation."),
    (r"\.phase_conv_r\.", ".real."),
    (r"\.phase_conv_i\.", ".imaginary."),
    (r"\.lsigmoid\.slope$", ".slope"),
)
DENSE = re.compile(r"\.dense_block\.dense_block\.(\d+)\.(\d+)\.")
OUTER = re.compile(r"\.(widen|down)\.([0-2])\.")


def rename_codec(name: str, codec: Codec) -> str:
    """Our name of a tensor of encoder or decoder; other names are returned unchanged.

    Our prefixes are `encoder`, `mask_decoder` and `phase_decoder`. In `subpixel` dense blocks the
    padding is a layer before the convolution.
    """
    if not name.startswith(("dense_encoder.", "mask_decoder.", "phase_decoder.")):
        return name
    name = renamed(name, RENAMED)
    name = OUTER.sub(lambda found: f".{found[1]}.{UNIT[int(found[2])]}.", name)
    first = 1 if codec == "subpixel" else 0

    def layer(found: re.Match) -> str:
        part = int(found[2]) - first
        known = UNIT[part] if 0 <= part < len(UNIT) else found[2]
        return f".dense.layers.{found[1]}.{known}."

    return DENSE.sub(layer, name)
