"""One module per architecture; `SYSTEMS`: name -> configuration and class.

base               what all models share
macs               parameters and multiply-accumulates
device             where a model computes: CPU, CUDA, MPS
spectral           base of the models on compressed spectra
masking            base of the separators that mask a learned encoding
cleanumamba        CleanUMamba: causal waveform U-Net
semamba            SEMamba advanced: magnitude and phase
semamba_basic      SEMamba basic: magnitude, causal, streams
mpsenet            MP-SENet with Transformers, with Conformers, with a Mamba branch
sepmamba           SepMamba: waveform U-Net for two speakers
umambanet          U-Mamba-Net: noisy reverberant separation
baselines          models of other papers
"""

from speechlab.models.baselines.conv_tasnet import ConvTasNet, ConvTasNetConfig
from speechlab.models.baselines.dprnn import DPRNN, DPRNNConfig
from speechlab.models.baselines.sepformer import SepFormer, SepFormerConfig
from speechlab.models.baselines.sudormrf import SuDoRMRF, SuDoRMRFConfig
from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig
from speechlab.models.mpsenet import (
    MPSENet,
    MPSENetConfig,
    MPSENetConformer,
    MPSENetConformerConfig,
    MPSENetMamba,
    MPSENetMambaConfig,
)
from speechlab.models.semamba import SEMambaAdvanced, SEMambaAdvancedConfig
from speechlab.models.semamba_basic import SEMambaBasic, SEMambaBasicConfig
from speechlab.models.sepmamba import SepMamba, SepMambaConfig
from speechlab.models.umambanet import UMambaNet, UMambaNetConfig

SYSTEMS = {
    "cleanumamba": (CleanUMambaConfig, CleanUMamba),
    "semamba_basic": (SEMambaBasicConfig, SEMambaBasic),
    "semamba_advanced": (SEMambaAdvancedConfig, SEMambaAdvanced),
    "mpsenet": (MPSENetConfig, MPSENet),
    "mpsenet_conformer": (MPSENetConformerConfig, MPSENetConformer),
    "mpsenet_mamba": (MPSENetMambaConfig, MPSENetMamba),
    "sepmamba": (SepMambaConfig, SepMamba),
    "umambanet": (UMambaNetConfig, UMambaNet),
    "conv_tasnet": (ConvTasNetConfig, ConvTasNet),
    "dprnn": (DPRNNConfig, DPRNN),
    "sepformer": (SepFormerConfig, SepFormer),
    "sudormrf": (SuDoRMRFConfig, SuDoRMRF),
}
