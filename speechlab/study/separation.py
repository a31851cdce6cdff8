"""Trainings of separation: each is a base and the settings that differ from it.

SepMamba is trained on dynamic mixtures: `launch` takes their speakers from the ready mixtures of
WSJ0-2mix. A comment beside a setting gives the reason of each deviation from the published
training. Of U-Mamba-Net's training only the loss is published. Its optimiser and learning rate are
DPRNN's; so are those of the other separators where their papers give none.
"""

from typing import Any

RATE = 8000  # Hz
FEW = {"d_state": 8, "d_conv": 4, "expand": 2}  # a layer with half the published states
UMAMBANET_SIZES = (  # names in models.umambanet.CONFIGS; the published one is "f128"
    *("f64", "f192", "without_mamba", "without_unet", "two_unets", "both_directions"),
    *("one_block", "three_blocks", "depth_3", "depth_7", "nearest", "linear"),
)

TRAININGS: dict[str, dict[str, Any]] = {
    "sepmamba-tiny": {  # for the study's synthetic corpus: minutes on two cores
        "base": "cleanumamba-tiny",
        "system": "sepmamba",
        "model": {
            "channels": (16, 32, 64),
            "kernel_sizes": (16, 8, 8),
            "stride": 4,  # an eighth of the frames in the innermost level
            "n_blocks": 1,
            "layer": FEW,
            # mixtures of any level; 2.4 dB less without it (results/LOG.md)
            "normalize": "utterance",
        },
        "corpora": ("two_speakers",),
        "mixture": {"segment_s": 1.0, "sample_rate": RATE, "n_sources": 2},
        "objective": "permutation_invariant",
        "losses": {"si_sdr": 1.0},
        "dev_metrics": ("si_sdri", "si_snri"),
        "training.n_steps": 1500,
        "training.batch_size": 4,
        "training.lr": 5e-3,
        "training.clip_norm": 5.0,
        "training.metric": "si_sdri",
        "training.validate_every": 500,
    },
    "umambanet-tiny": {  # on the same mixtures
        "base": "sepmamba-tiny",
        "system": "umambanet",
        "model": "f128",
        "model.kernel_size": 32,  # with the stride: half the frames
        "model.stride": 16,
        "model.d_model": 64,
        "model.depth": 4,
        "model.layer": FEW,
        "losses": {"si_snr": 1.0},
        "dev_metrics": ("si_snri", "si_sdri"),
        "training.n_steps": 2000,
        "training.lr": 3e-3,
        "training.metric": "si_snri",
        "training.validate_every": 500,
    },
    "umambanet-tiny-noisy": {  # the task of its paper: both speakers in a room, and noise
        "base": "umambanet-tiny",
        "corpora": ("two_speakers_noisy",),
        "mixture.snr_db": (0.0, 15.0),
        "mixture.p_room": 1.0,
    },
    "umambanet-two-speakers": {  # the published size on recorded speakers, an hour on a CPU
        "base": "umambanet-tiny",
        "model": "f128",
        "mixture.segment_s": 2.0,
        "mixture.speeds": (0.95, 1.0, 1.05),
        "training.n_steps": 4000,
        "training.lr": 1e-3,
    },
    "sepmamba-s": {  # as its authors trained it (arXiv 2410.20997); they choose on the test set
        "base": "cleanumamba-tiny",
        "system": "sepmamba",
        "model": "sepmamba_s",
        "corpora": ("wsj0_2mix",),
        "n_per_epoch": 20_000,
        "mixture": {
            "segment_s": 4.0,
            "sample_rate": RATE,
            "n_sources": 2,
            "source_level_db": (-2.5, 2.5),  # of the mean square, not of the active level (P.56)
            "speeds": (0.95, 1.0, 1.05),
            "level_db": (0.0, 0.0),  # beyond full scale, so that every mixture has this peak
            "peak": 0.9,
        },
        "objective": "permutation_invariant",
        "losses": {"si_sdr": 1.0},
        "dev_metrics": ("si_sdri", "si_snri"),
        "training": {
            "n_steps": 10_000_000,  # 500 epochs
            "batch_size": 1,
            "lr": 1.5e-4,
            "weight_decay": 0.01,
            "clip_norm": 5.0,
            "schedule": "constant",
            "warmup": 0.0,
            "metric": "si_sdri",
            "validate_every": 20_000,
            "n_workers": 4,
        },
    },
    **{
        name.replace("_", "-"): {"base": "sepmamba-s", "model": name}
        for name in ("sepmamba_m", "sepmamba_s_causal", "sepmamba_m_causal")
    },
    "umambanet": {
        "base": "conv-tasnet",
        "system": "umambanet",
        "model": "f128",
        "corpora": ("libri2mix",),  # prepared with mixture=mix_both_reverb
        "training.n_steps": 347_500,  # 100 epochs of the 13,900 mixtures of train-100
    },
    **{
        f"umambanet-{name.replace('_', '-')}": {"base": "umambanet", "model": name}
        for name in UMAMBANET_SIZES
    },
    # ready mixtures and the optimiser of DPRNN (arXiv 1910.06379, 3.2); its batch size is not given
    "conv-tasnet": {
        "base": "cleanumamba-tiny",
        "system": "conv_tasnet",  # its own paper (arXiv 1809.07454): 1e-3, halved on a plateau
        "model": "published",
        "corpora": ("wsj0_2mix",),
        "examples": "pairs",
        "pair": {"segment_s": 4.0, "sample_rate": RATE, "short": "pad"},
        "objective": "permutation_invariant",
        "losses": {"si_snr": 1.0},
        "dev_metrics": ("si_snri", "si_sdri"),
        "training": {
            # 100 epochs of the published 20,000 files, which include the dev speakers
            "n_steps": 500_000,
            "optimizer": "adam",
            "lr": 1e-3,
            "clip_norm": 5.0,
            "schedule": "exponential",
            "decay": 0.99,  # 0.98 in two epochs
            "warmup": 0.0,
            "metric": "si_snri",
            "validate_every": 5000,
            "n_workers": 4,
        },
    },
    "dprnn": {"base": "conv-tasnet", "system": "dprnn", "model": "published"},
    "sepformer": {  # arXiv 2010.13154: optimiser, rate, clipping, batch, epochs of SpeechBrain's
        "base": "conv-tasnet",  # recipe by the authors
        "system": "sepformer",
        "model": "published",
        # The recipe halves the rate where dev does not improve for some epochs, late in training:
        # here `speechlab resume --set lr=` does. It takes whole mixtures at 0.95 to 1.05 of their
        # speed and leaves out losses beyond 30 dB; here segments and loss are those of conv-tasnet.
        "training.n_steps": 4_000_000,  # 200 epochs
        "training.batch_size": 1,
        "training.lr": 1.5e-4,
        "training.schedule": "constant",
        "training.validate_every": 20_000,
    },
    "sudormrf": {  # arXiv 2007.06833: optimiser, rate, clipping, batch, 4 s: as the authors' code
        "base": "conv-tasnet",
        "system": "sudormrf",
        "model": "published",
        # The code divides the rate by 3 at once every 49 epochs, exchanges speakers within a batch,
        # limits the loss, SI-SDR, to 30 dB and names no epochs. Mixtures, loss and epochs here are
        # those of conv-tasnet.
        "training.decay": 3 ** (-1 / 49),
    },
}
