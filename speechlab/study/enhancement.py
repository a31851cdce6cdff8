"""Trainings of enhancement: each is a base and the settings that differ from it.

Plain data, so that a list of experiments imports no model (`experiment.derived` explains the
values). Training settings are those of the papers; a comment gives the reason of each deviation.
"""

from typing import Any

SMALL_STFT = {"n_fft": 256, "hop_length": 128, "win_length": 256}  # half the points
MIXERS = {  # CleanUMamba's ablation: arguments of each of its three layers
    "mamba2": {"d_state": 16, "d_head": 16},
    "mamba_s4": {"n_channels": 16},
    "lstm": {},
    "mha": {"n_heads": 4, "d_hidden": 128},
}

TRAININGS: dict[str, dict[str, Any]] = {
    "cleanumamba-tiny": {
        "system": "cleanumamba",
        "model": "tiny",
        "corpora": ("synthetic",),
        "losses": {"snr": 1.0},  # L1 and STFT alone may learn the wrong sign in so few steps
        "mixture": {"segment_s": 2.0, "snr_db": (-5.0, 15.0)},
        "training": {
            "n_steps": 1500,
            "batch_size": 8,
            "lr": 5e-3,
            "clip_norm": 10.0,
            "validate_every": 150,
            "checkpoint_every": 75,
            "log_every": 25,
        },
    },
    "cleanumamba-442k": {  # the ablation of CleanUMamba (arXiv 2410.11062, table 1)
        "base": "cleanumamba-tiny",
        "model": "ablation",
        "corpora": ("dns2020",),
        "examples": "pairs",
        "pair": {"segment_s": 10.0, "short": "repeat"},
        "losses": {"l1": 1.0, "stft_full": 1.0},
        "dev_metrics": ("si_sdr", "pesq_wb"),
        "training": {
            "n_steps": 1_000_000,
            "batch_size": 2,
            "optimizer": "adam",
            "lr": 1e-4,
            "clip_norm": 10.0,
            "metric": "pesq_wb",
            "precision": "bfloat16",
            "n_workers": 4,
        },
    },
    "cleanumamba-442k-folder": {  # the published size on your own recordings: 1-2 h on a CPU
        "base": "cleanumamba-tiny",
        "model": "ablation",
        "corpora": ("folder",),
        "mixture": {"segment_s": 2.0, "snr_db": (-5.0, 20.0), "short": "repeat"},
        "losses": {"compressed_spectrum": 1.0, "snr": 0.01},
        "dev_metrics": ("si_sdr", "pesq_wb"),
        "training.n_steps": 9000,
        "training.batch_size": 4,
        "training.lr": 2e-3,
        "training.clip_norm": 1.0,
        "training.metric": "pesq_wb",
        "training.validate_every": 750,
    },
    "finetune": {  # of an existing model: small steps
        "base": "cleanumamba-tiny",
        "losses": {"l1": 1.0, "stft_full": 1.0},
        "training.lr": 1e-4,
        "mixture.segment_s": 4.0,
    },
    # speechlab finetune CHECKPOINT --experiment stream-ready --set model.normalize=running
    #   --set model.state_leak_s=20: the output from rest, kept in streams of hours
    "stream-ready": {
        "base": "finetune",
        "corpora": ("folder",),
        "objective": "distillation",
        "distillation.passed": 1.0,
        "losses": {"l1": 1.0, "stft_full": 0.5},
        "mixture": {"segment_s": 2.0, "snr_db": (-5.0, 20.0), "level_db": (-37.0, -13.0)},
        "dev_metrics": ("si_sdr", "pesq_wb"),
        "training.n_steps": 400,
        "training.batch_size": 4,
        "training.lr": 2e-5,
        "training.clip_norm": 1.0,
        "training.ema": 0.98,
        "training.metric": "pesq_wb",
        "training.validate_every": 200,
    },
    **{
        f"cleanumamba-{mixer.replace('_', '-')}": {
            "base": "cleanumamba-442k",
            "model.mixer": mixer,
            "model.layers": (layer,) * 3,
        }
        for mixer, layer in MIXERS.items()
    },
    "cleanumamba-442k-voicebank": {
        "base": "cleanumamba-442k",
        "corpora": ("voicebank_demand",),
        "training.n_steps": 200_000,
    },
    "semamba-tiny": {  # for the study's synthetic corpus: minutes on two cores
        "base": "cleanumamba-tiny",
        "system": "semamba_advanced",
        "model": {
            "d_model": 8,
            "n_blocks": 1,
            "layer": {"d_state": 16, "d_conv": 4, "expand": 2},
            "front_end": SMALL_STFT,
        },
        "mixture.segment_s": 1.0,
        "objective": "metric_gan",
        "dev_metrics": ("si_sdr", "pesq_wb"),
        "training.n_steps": 800,
        "training.batch_size": 2,
        "training.lr": 3e-3,
        "training.betas": (0.8, 0.99),
        "training.metric": "pesq_wb",
        "training.n_workers": 2,
        "training.validate_every": 200,
    },
    "semamba": {  # as its authors trained it (arXiv 2405.06573); they choose on the test set
        "base": "cleanumamba-442k",
        "system": "semamba_advanced",
        "corpora": ("voicebank_demand",),
        "pair": {"segment_s": 2.0, "short": "pad"},
        "objective": "metric_gan",
        "training": {
            # 200 epochs of the published 11,572 files, which include the dev speakers
            "n_steps": 578_600,
            "batch_size": 4,
            "lr": 5e-4,
            "betas": (0.8, 0.99),
            "weight_decay": 0.01,
            "schedule": "exponential",
            "warmup": 0.0,
            "metric": "pesq_wb",
            "n_workers": 4,
        },
    },
    "semamba-pcs": {"base": "semamba", "gan": "semamba_pcs"},
    "semamba-basic": {  # only the loss is published; all else is that of the lab's other model
        "base": "semamba",
        "system": "semamba_basic",
        "objective": "supervised",
        "losses": {"log_magnitude": 1.0},
        "training.n_steps": 433_950,  # 150 epochs
        "training.optimizer": "adam",
        "training.lr": 5e-5,
        "training.betas": (0.9, 0.999),
        "training.weight_decay": 0.0,
        "training.schedule": "constant",
    },
    "mpsenet-mamba-tiny": {
        "base": "semamba-tiny",
        "system": "mpsenet_mamba",
        # axes "named" attend over all frames times all bins, which takes hours here
        "model": {
            "d_model": 8,
            "n_shared_blocks": 1,
            "n_branch_blocks": 1,
            "shared": "mamba",
            "mamba": "both_axes",
            "axes": "published",
            "front_end": SMALL_STFT | {"offsets": "mpsenet"},
        },
        "gan": "mpsenet",
        "training.n_steps": 300,
        "training.validate_every": 100,
    },
    "mpsenet": {  # arXiv 2308.08926
        "base": "semamba",
        "system": "mpsenet",
        "gan": "mpsenet",
        "training.n_steps": 1_157_200,  # 400 epochs
        "training.validate_every": 5000,
    },
    "mpsenet-conformer": {
        "base": "mpsenet",
        "system": "mpsenet_conformer",
        "gan": "mpsenet_conformer",
    },
    "mpsenet-mamba": {"base": "mpsenet", "system": "mpsenet_mamba"},
}
