"""One architecture a file; `SYSTEMS` names each with its configuration and its class."""

from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig
from speechlab.models.mpsenet import MPSENet, MPSENetConfig
from speechlab.models.mpsenet_conformer import MPSENetConformer, MPSENetConformerConfig
from speechlab.models.mpsenet_mamba import MPSENetMamba, MPSENetMambaConfig
from speechlab.models.semamba import SEMambaAdvanced, SEMambaAdvancedConfig
from speechlab.models.semamba_basic import SEMambaBasic, SEMambaBasicConfig

SYSTEMS = {
    "cleanumamba": (CleanUMambaConfig, CleanUMamba),
    "semamba_basic": (SEMambaBasicConfig, SEMambaBasic),
    "semamba_advanced": (SEMambaAdvancedConfig, SEMambaAdvanced),
    "mpsenet": (MPSENetConfig, MPSENet),
    "mpsenet_conformer": (MPSENetConformerConfig, MPSENetConformer),
    "mpsenet_mamba": (MPSENetMambaConfig, MPSENetMamba),
}
