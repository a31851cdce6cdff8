"""The converters of published weights, by system.

`CONVERTERS`: system -> (published state dict, published configuration) -> configuration and state
dict of one of `models.SYSTEMS`. `NAMED`: published names of a system's sizes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from speechlab.models.sepmamba import CONFIGS as SEPMAMBAS
from speechlab.weights.cleanumamba import cleanumamba
from speechlab.weights.mpsenet import mpsenet, mpsenet_conformer, mpsenet_mamba
from speechlab.weights.semamba import semamba_advanced
from speechlab.weights.sepmamba import compare, sepmamba

LISTED = (cleanumamba, semamba_advanced, mpsenet, mpsenet_conformer, mpsenet_mamba, sepmamba)
CONVERTERS = {converter.system: converter for converter in LISTED}
# name: its system, and a check that raises UserError for the configuration of another name
NAMED: dict[str, tuple[str, Callable[[Any], None]]] = {
    name: ("sepmamba", partial(compare, name)) for name in SEPMAMBAS
}
