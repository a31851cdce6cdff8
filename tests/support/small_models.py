"""A small configuration of every system, for tests that hold for all of them."""

from speechlab.audio.spectrum import FrontEnd
from speechlab.models import SEMambaAdvancedConfig, SEMambaBasicConfig, SepMambaConfig, umambanet
from speechlab.models.baselines import conv_tasnet, dprnn, sepformer, sudormrf
from speechlab.models.cleanumamba import CleanUMambaConfig
from speechlab.models.mpsenet import MPSENetConfig, MPSENetConformerConfig, MPSENetMambaConfig
from speechlab.models.semamba_basic import LogFrontEnd

MPSENETS = {
    "d_model": 4,
    "n_heads": 2,
    "front_end": FrontEnd(n_fft=32, hop_length=8, win_length=32, offsets="mpsenet"),
}
SMALL = {
    "cleanumamba": CleanUMambaConfig(
        down_channels=(4, 6, 5),
        skip_channels=(5, 7, 6),
        up_channels=(3, 4, 5),
        d_model=8,
        layers=({"d_state": 4},) * 2,
        normalize="running",
    ),
    "semamba_basic": SEMambaBasicConfig(
        channels=(12, 8), layer={"d_state": 4}, front_end=LogFrontEnd(16, 4)
    ),
    "semamba_advanced": SEMambaAdvancedConfig(
        d_model=4,
        n_blocks=1,
        layer={"d_state": 2, "d_conv": 3, "expand": 2},
        front_end=FrontEnd(n_fft=16, hop_length=4, win_length=16),
    ),
    "mpsenet": MPSENetConfig(n_blocks=1, **MPSENETS),
    "mpsenet_conformer": MPSENetConformerConfig(n_blocks=1, **MPSENETS),
    "mpsenet_mamba": MPSENetMambaConfig(n_shared_blocks=1, n_branch_blocks=1, **MPSENETS),
    "sepmamba": SepMambaConfig(
        channels=(4, 6, 5),
        kernel_sizes=(6, 4, 3),
        n_blocks=2,
        direction="forward",
        layer={"d_state": 3},
        n_sources=3,
    ),
    "umambanet": umambanet.CONFIGS["tiny"],
    "conv_tasnet": conv_tasnet.CONFIGS["tiny"],
    "dprnn": dprnn.CONFIGS["tiny"],
    "sepformer": sepformer.CONFIGS["tiny"],
    "sudormrf": sudormrf.CONFIGS["tiny"],
}
