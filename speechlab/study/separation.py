"""The study's trainings of separation, each as what it changes of another (see `experiments`).

SepMamba is trained on dynamic mixtures, whose speakers `launch` takes from the ready ones of
WSJ0-2mix; what else differs from the published training is beside the setting. Of U-Mamba-Net's
nothing is told but the loss: its optimiser and rate are DPRNN's, as those of the peers are where
nothing else is said.
"""

from dataclasses import replace
from typing import TypeVar

from speechlab.config import replaced
from speechlab.data.mixing import MixtureConfig, PairConfig
from speechlab.models import sepmamba, umambanet
from speechlab.models.baselines import conv_tasnet, dprnn, sepformer, sudormrf
from speechlab.training.schedule import TrainingConfig

Base = TypeVar("Base")  # an Experiment, whose module reads this one

RATE = 8000  # Hz
SEPMAMBA = {  # as its authors trained it (arXiv 2410.20997), but for the choice on the test set
    "name": "sepmamba-s",
    "system": "sepmamba",
    "model": sepmamba.CONFIGS["sepmamba_s"],
    "corpora": ("wsj0_2mix",),
    "n_per_epoch": 20_000,
    "mixture": MixtureConfig(
        segment_s=4.0,
        sample_rate=RATE,
        n_sources=2,
        source_level_db=(-2.5, 2.5),  # of the mean square, not of the active level (P.56)
        speeds=(0.95, 1.0, 1.05),
        level_db=(0.0, 0.0),  # more than full scale takes, so that every mixture has its peak
        peak=0.9,
    ),
    "objective": "permutation_invariant",
    "losses": {"si_sdr": 1.0},
    "dev_metrics": ("si_sdri", "si_snri"),
    "training": TrainingConfig(
        n_steps=10_000_000,  # 500 epochs
        batch_size=1,
        lr=1.5e-4,
        weight_decay=0.01,
        clip_norm=5.0,
        schedule="constant",
        warmup=0.0,
        metric="si_sdri",
        validate_every=20_000,
        n_workers=4,
    ),
}
PEER = {  # ready mixtures and the optimiser of DPRNN (arXiv 1910.06379, 3.2); batch size not told
    "name": "conv-tasnet",
    "system": "conv_tasnet",  # its own paper (arXiv 1809.07454): 1e-3, halved on a plateau
    "model": conv_tasnet.CONFIGS["published"],
    "corpora": ("wsj0_2mix",),
    "examples": "pairs",
    "mixture": MixtureConfig(),
    "pair": PairConfig(segment_s=4.0, sample_rate=RATE, short="pad"),
    "objective": "permutation_invariant",
    "losses": {"si_snr": 1.0},
    "dev_metrics": ("si_snri", "si_sdri"),
    "training": TrainingConfig(
        n_steps=500_000,  # 100 epochs of the published 20,000 files, dev speakers among them
        optimizer="adam",
        lr=1e-3,
        clip_norm=5.0,
        schedule="exponential",
        decay=0.99,  # 0.98 in two epochs
        warmup=0.0,
        metric="si_snri",
        validate_every=5000,
        n_workers=4,
    ),
}
UMAMBANET = {
    "name": "umambanet",
    "system": "umambanet",
    "model": umambanet.MAIN,
    "corpora": ("libri2mix",),  # prepared with mixture=mix_both_reverb
    "training.n_steps": 347_500,  # 100 epochs of the 13,900 mixtures of train-100
}
SEPFORMER = {  # optimiser, rate, clipping, batch and epochs of the authors' recipe, in SpeechBrain
    "name": "sepformer",  # arXiv 2010.13154
    "system": "sepformer",
    "model": sepformer.CONFIGS["published"],
    # The recipe halves the rate where dev has stood still for epochs, late in the training: here
    # `speechlab resume --set lr=` does. It takes whole mixtures, at 0.95 to 1.05 of their speed,
    # and leaves out those beyond 30 dB; crops and loss are the peers' here.
    "training.n_steps": 4_000_000,  # 200 epochs
    "training.batch_size": 1,
    "training.lr": 1.5e-4,
    "training.schedule": "constant",
    "training.validate_every": 20_000,
}
SUDORMRF = {  # optimiser, rate, clipping, batch and 4 s of the authors' code are the peers'
    "name": "sudormrf",  # arXiv 2007.06833
    "system": "sudormrf",
    "model": sudormrf.CONFIGS["published"],
    # The code divides the rate by 3 every 49 epochs, at once; exchanges speakers within a batch;
    # ends the loss, SI-SDR, at 30 dB; and names no epochs. Mixtures, loss, epochs: the peers'.
    "training.decay": 3 ** (-1 / 49),
}
FEW = {"d_state": 8, "d_conv": 4, "expand": 2}  # a layer of half the published states
SEPMAMBA_TINY = {  # for the study's embedded default: minutes on two cores
    "name": "sepmamba-tiny",
    "system": "sepmamba",
    "model": sepmamba.SepMambaConfig(
        channels=(16, 32, 64),
        kernel_sizes=(16, 8, 8),
        stride=4,  # an eighth of the frames in the innermost level
        n_blocks=1,
        layer=FEW,
        normalize="utterance",  # mixtures of any level; without it 2.4 dB less (results/LOG.md)
    ),
    "corpora": ("two_speakers",),
    "mixture": MixtureConfig(segment_s=1.0, sample_rate=RATE, n_sources=2),
    "objective": "permutation_invariant",
    "losses": {"si_sdr": 1.0},
    "dev_metrics": ("si_sdri", "si_snri"),
    "training.n_steps": 1500,
    "training.batch_size": 4,
    "training.lr": 5e-3,
    "training.clip_norm": 5.0,
    "training.metric": "si_sdri",
    "training.validate_every": 500,
}
UMAMBANET_TINY = {  # on the same mixtures
    "name": "umambanet-tiny",
    "system": "umambanet",
    "model": replace(
        umambanet.MAIN, kernel_size=32, stride=16, d_model=64, depth=4, layer=FEW
    ),  # half the frames
    "losses": {"si_snr": 1.0},
    "dev_metrics": ("si_snri", "si_sdri"),
    "training.n_steps": 2000,
    "training.lr": 3e-3,
    "training.metric": "si_snri",
    "training.validate_every": 500,
}
UMAMBANET_ROOM = {  # its own task: both speakers in a room, and noise
    "name": "umambanet-tiny-noisy",
    "corpora": ("two_speakers_noisy",),
    "mixture.snr_db": (0.0, 15.0),
    "mixture.p_room": 1.0,
}
UMAMBANET_TWO_SPEAKERS = {  # the published size on recorded speakers, an hour on a CPU
    "name": "umambanet-two-speakers",
    "model": umambanet.MAIN,
    "mixture.segment_s": 2.0,
    "mixture.speeds": (0.95, 1.0, 1.05),
    "training.n_steps": 4000,
    "training.lr": 1e-3,
}


def trainings(base: Base) -> tuple[Base, ...]:
    """Those of the study. base: one of a single source, supervised, on mixtures made on the fly."""
    tiny = replaced(base, SEPMAMBA_TINY)
    tiny_umambanet = replaced(tiny, UMAMBANET_TINY)
    large = replaced(base, SEPMAMBA)
    peer = replaced(base, PEER)
    main = replaced(peer, UMAMBANET)
    return (
        tiny,
        tiny_umambanet,
        replaced(tiny_umambanet, UMAMBANET_ROOM),
        replaced(tiny_umambanet, UMAMBANET_TWO_SPEAKERS),
        large,
        *(
            replaced(large, {"name": name.replace("_", "-"), "model": sepmamba.CONFIGS[name]})
            for name in ("sepmamba_m", "sepmamba_s_causal", "sepmamba_m_causal")
        ),
        main,
        *(
            replaced(main, {"name": f"umambanet-{name.replace('_', '-')}", "model": config})
            for name, config in umambanet.CONFIGS.items()
            if name not in ("f128", "tiny")  # the first is the main one
        ),
        peer,
        replaced(peer, {"name": "dprnn", "system": "dprnn", "model": dprnn.CONFIGS["published"]}),
        replaced(peer, SEPFORMER),
        replaced(peer, SUDORMRF),
    )
