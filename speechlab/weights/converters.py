"""Published weights in our terms: their key names renamed, their sizes read off the tensors.

`CONVERTERS` has a function for each published system: its state dict and what configuration is
published with it -> the configuration and the state dict of one of `models.SYSTEMS`.
`NAMED` has the published names of sizes of a system, and `names.MARKS` how each is recognised.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from speechlab.models.sepmamba import CONFIGS as SEPMAMBAS
from speechlab.weights.cleanumamba import cleanumamba
from speechlab.weights.mpsenet import mpsenet, mpsenet_conformer, mpsenet_mamba
from speechlab.weights.semamba import semamba_advanced
from speechlab.weights.sepmamba import compare, sepmamba

StateDict = dict[str, Tensor]
Converter = Callable[[Mapping[str, Tensor], Mapping[str, Any]], tuple[Any, StateDict]]

CONVERTERS: dict[str, Converter] = {
    "cleanumamba": cleanumamba,
    "semamba_advanced": semamba_advanced,
    "mpsenet": mpsenet,
    "mpsenet_conformer": mpsenet_conformer,
    "mpsenet_mamba": mpsenet_mamba,
    "sepmamba": partial(sepmamba, None),
    **{name: partial(sepmamba, name) for name in SEPMAMBAS},
}
# name: its system, and what raises UserError where a configuration of it is of another name
NAMED: dict[str, tuple[str, Callable[[Any], None]]] = {
    name: ("sepmamba", partial(compare, name)) for name in SEPMAMBAS
}
