"""The study's trainings: one base, and each other as what it changes.

`speechlab train NAME --set training.lr=1e-3` trains one of them in `results/runs/NAME`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch

from speechlab.audio.spectrum import FrontEnd
from speechlab.config import from_dict, override, replaced
from speechlab.data.mixing import MixtureConfig, PairConfig
from speechlab.errors import UserError
from speechlab.evaluation import metrics, separation_metrics
from speechlab.losses import waveform as losses
from speechlab.models import SYSTEMS
from speechlab.models.cleanumamba import CleanUMambaConfig, ablation_config, tiny_config
from speechlab.models.macs import n_params
from speechlab.models.mpsenet import MPSENetConfig
from speechlab.models.mpsenet_conformer import MPSENetConformerConfig
from speechlab.models.mpsenet_mamba import MPSENetMambaConfig
from speechlab.models.semamba import LAYER, SEMambaAdvancedConfig
from speechlab.models.semamba_basic import SEMambaBasicConfig
from speechlab.study import separation
from speechlab.training import schedule
from speechlab.training.loggers import LOGGERS
from speechlab.training.metric_gan import PUBLISHED as GANS
from speechlab.training.metric_gan import MetricGANConfig
from speechlab.training.objectives import Loss
from speechlab.training.schedule import TrainingConfig

LOSSES: dict[str, Loss] = {
    "l1": losses.l1,
    "snr": losses.snr,
    "si_sdr": losses.si_sdr,
    "si_snr": losses.si_snr,
    "compressed_spectrum": losses.compressed_spectrum,
    "log_magnitude": losses.log_magnitude,
    **{f"stft_{band}": partial(losses.multi_resolution_stft, band=band) for band in losses.BANDS},
}
FORMER = {"umambanet-two-talkers": "umambanet-two-speakers"}  # names in version 0.1
_UNREAD = {  # settings that are not read with these
    ("examples", "pairs"): ("mixture", "n_per_epoch"),
    ("examples", "mixtures"): ("pair",),
    ("objective", "supervised"): ("gan",),
    ("objective", "permutation_invariant"): ("gan",),
    ("objective", "metric_gan"): ("losses",),
}


@dataclass(frozen=True)
class Experiment:
    """All that makes a training: what is trained, on what, towards what."""

    name: str  # of its run
    system: str = "cleanumamba"  # a name in models.SYSTEMS
    model: Any = field(default_factory=CleanUMambaConfig)  # the system's configuration
    start: str = ""  # checkpoint whose weights it begins with; "": drawn from training.seed
    corpora: tuple[str, ...] = ("synthetic",)  # prepared folders, or their names in data/
    examples: Literal["mixtures", "pairs"] = "mixtures"  # made on the fly, or crops of ready ones
    n_per_epoch: int = 2000  # mixtures that are called an epoch
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    pair: PairConfig = field(default_factory=PairConfig)
    # a name in launch.OBJECTIVES; permutation_invariant: of sources whose order is free
    objective: Literal["supervised", "permutation_invariant", "metric_gan"] = "supervised"
    losses: Mapping[str, float] = field(  # names in LOSSES and their weights
        default_factory=lambda: {"l1": 1.0, "stft_full": 1.0}
    )
    gan: MetricGANConfig = field(default_factory=MetricGANConfig)  # of a metric_gan
    dev_metrics: tuple[str, ...] = ("si_sdr",)  # of every validation
    n_dev: int = 0  # dev files to score, the first of them; 0: all
    training: TrainingConfig = field(default_factory=TrainingConfig)


def lookup(name: str) -> Experiment:
    """An experiment of the study. UserError for an unknown name.

    Under a former name it keeps that name, so that the command of version 0.1 resumes its run.
    """
    if name in FORMER:
        return replace(EXPERIMENTS[FORMER[name]], name=name)
    _known("experiment", [name], EXPERIMENTS)
    return EXPERIMENTS[name]


def changed(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """A copy with settings changed, by dotted names, as `configuration.replaced`.

    With other `examples` or another `objective`, what these do not read is reset, where it is not
    among the changes.
    """
    before, experiment = experiment, replaced(experiment, changes)
    given = {name.partition(".")[0] for name in changes}
    chosen = {name for name, _ in _UNREAD if getattr(before, name) != getattr(experiment, name)}
    unread = {name for by, name in _unread(experiment) if by in chosen} - given
    return replace(experiment, **{name: getattr(Experiment(""), name) for name in unread})


def _unread(experiment: Experiment) -> list[tuple[str, str]]:
    """Settings that it does not read, each behind the setting that says so."""
    return [
        (by, name)
        for (by, value), names in _UNREAD.items()
        if getattr(experiment, by) == value
        for name in names
    ]


def n_sources(experiment: Experiment) -> int:
    """That the model gives; one that enhances has no such setting."""
    return getattr(experiment.model, "n_sources", 1)


def table() -> pd.DataFrame:
    """One row per experiment: what is trained on what, how long."""
    rows = []
    for name, experiment in EXPERIMENTS.items():
        with torch.device("meta"):  # nothing is drawn
            size = n_params(SYSTEMS[experiment.system][1](experiment.model))
        row = {"experiment": name, "system": experiment.system, "n_params": size}
        row |= {"corpora": ", ".join(experiment.corpora), "n_steps": experiment.training.n_steps}
        rows.append(row)
    return pd.DataFrame(rows)


def from_settings(settings: Mapping[str, Any]) -> Experiment:
    """The experiment that a run's config.json holds under "config", or that `to_dict` gave.

    Of a run the training's settings are beside it, under "training".
    """
    kind, _ = SYSTEMS[settings["system"]]
    return from_dict(Experiment, {**settings, "model": from_dict(kind, settings["model"])})


def check(experiment: Experiment) -> None:
    """UserError for settings that cannot be, and for those that nothing would read."""
    if not re.fullmatch(r"[\w.+-]*[\w+-]", experiment.name):
        raise UserError(f"name is '{experiment.name}'; it must be that of a folder, of letters a-z")
    _known("system", [experiment.system], SYSTEMS)
    kind, _ = SYSTEMS[experiment.system]
    if type(experiment.model) is not kind:
        raise UserError(f"model must be a {kind.__name__}, not {experiment.model!r}")
    _known("loss", experiment.losses, LOSSES)
    _known("metric", experiment.dev_metrics, separation_metrics.METRICS)
    rate = experiment.model.sample_rate
    for name in experiment.dev_metrics:
        if not metrics.defined_at(name, rate):
            raise UserError(
                f"{name} is not defined at {rate} Hz, the model's rate; take others in dev_metrics "
                "and training.metric"
            )
    _known("dev metric", [experiment.training.metric], experiment.dev_metrics)
    _known("logger", experiment.training.loggers, LOGGERS)
    if not experiment.losses or not experiment.corpora:
        raise UserError("losses and corpora must each name one or more")
    if n_sources(experiment) > 1 and experiment.objective != "permutation_invariant":
        raise UserError(
            f"objective is {experiment.objective}, and the order of {n_sources(experiment)} "
            "sources is free: begin with an experiment of separation, as `speechlab finetune "
            "--experiment sepmamba-tiny`, or set objective=permutation_invariant"
        )
    if experiment.training.seed >= 2**32:
        raise UserError(f"seed is {experiment.training.seed}; it must be under 2**32")
    if not 1 <= experiment.n_per_epoch <= 10**8 or experiment.n_dev < 0:
        raise UserError("n_per_epoch must be 1 to 10**8, n_dev 0 or more")
    for name, weight in experiment.losses.items():
        if not 0 <= weight <= 1e30:  # NaN is in no range
            raise UserError(f"losses.{name} is {weight}; a weight must lie in 0 to 1e+30")
    for by, name in _unread(experiment):
        if getattr(experiment, name) != getattr(Experiment(""), name):
            value, verb = getattr(experiment, by), "are" if by.endswith("s") else "is"
            raise UserError(f"'{name}' is not read where {by} {verb} {value}; leave it out")
    schedule.check(experiment.training)


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"no {what} '{unknown[0]}'; there are: {', '.join(known)}")


TINY = Experiment(
    name="cleanumamba-tiny",
    model=tiny_config(),
    losses={"snr": 1.0},  # L1 and STFT alone may learn the wrong sign in so few steps
    mixture=MixtureConfig(segment_s=2.0, snr_db=(-5.0, 15.0), p_room=0.0),
    training=TrainingConfig(
        n_steps=1500,
        batch_size=8,
        lr=5e-3,
        clip_norm=10.0,
        validate_every=150,
        checkpoint_every=75,
        log_every=25,
    ),
)
PUBLISHED = override(  # the ablation of CleanUMamba (arXiv 2410.11062, table 1)
    TINY,
    name="cleanumamba-442k",
    model=ablation_config("mamba"),
    corpora=("dns2020",),
    examples="pairs",
    mixture=MixtureConfig(),
    pair=PairConfig(segment_s=10.0, short="repeat"),
    losses={"l1": 1.0, "stft_full": 1.0},
    dev_metrics=("si_sdr", "pesq_wb"),
    training=TrainingConfig(
        n_steps=1_000_000,
        batch_size=2,
        optimizer="adam",
        lr=1e-4,
        clip_norm=10.0,
        metric="pesq_wb",
        precision="bfloat16",
        n_workers=4,
    ),
)
OWN = replaced(  # the published size on speech and noise of one's own, in an hour or two on a CPU
    TINY,
    {
        "name": "cleanumamba-442k-folder",
        "model": ablation_config("mamba"),
        "corpora": ("folder",),
        "mixture": MixtureConfig(segment_s=2.0, snr_db=(-5.0, 20.0), short="repeat"),
        "losses": {"compressed_spectrum": 1.0, "snr": 0.01},
        "dev_metrics": ("si_sdr", "pesq_wb"),
        "training.n_steps": 9000,
        "training.batch_size": 4,
        "training.lr": 2e-3,
        "training.clip_norm": 1.0,
        "training.metric": "pesq_wb",
        "training.validate_every": 750,
    },
)
FINETUNE = replaced(  # of a model that is there already: small steps
    TINY,
    {
        "name": "finetune",
        "losses": {"l1": 1.0, "stft_full": 1.0},
        "training.lr": 1e-4,
        "mixture.segment_s": 4.0,
    },
)
SEMAMBA = (
    changed(  # as its authors trained it (arXiv 2405.06573), but for the choice on the test set
        PUBLISHED,
        {
            "name": "semamba",
            "system": "semamba_advanced",
            "model": SEMambaAdvancedConfig(),
            "corpora": ("voicebank_demand",),
            "pair": PairConfig(segment_s=2.0, short="pad"),
            "objective": "metric_gan",
            "training": TrainingConfig(
                n_steps=578_600,  # 200 epochs of the published 11,572 files
                batch_size=4,
                lr=5e-4,
                betas=(0.8, 0.99),
                weight_decay=0.01,
                schedule="exponential",
                warmup=0.0,
                metric="pesq_wb",
                n_workers=4,
            ),
        },
    )
)
MPSENET = changed(  # arXiv 2308.08926
    SEMAMBA,
    {
        "name": "mpsenet",
        "system": "mpsenet",
        "model": MPSENetConfig(),
        "gan": GANS["mpsenet"],
        "training.n_steps": 1_157_200,  # 400 epochs
        "training.validate_every": 5000,
    },
)
BASIC = changed(  # nothing of its training is published but the loss; the rest is the lab's other
    SEMAMBA,
    {
        "name": "semamba-basic",
        "system": "semamba_basic",
        "model": SEMambaBasicConfig(),
        "objective": "supervised",
        "losses": {"log_magnitude": 1.0},
        "training.n_steps": 433_950,  # 150 epochs
        "training.optimizer": "adam",
        "training.lr": 5e-5,
        "training.betas": (0.9, 0.999),
        "training.weight_decay": 0.0,
        "training.schedule": "constant",
    },
)
SEMAMBA_TINY = changed(  # for the study's embedded default: minutes on two cores
    TINY,
    {
        "name": "semamba-tiny",
        "system": "semamba_advanced",
        "model": SEMambaAdvancedConfig(
            d_model=8,
            n_blocks=1,
            layer=LAYER | {"expand": 2},
            front_end=FrontEnd(n_fft=256, hop_length=128, win_length=256),  # half the points
        ),
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
)
MPSENET_TINY = changed(
    SEMAMBA_TINY,
    {
        "name": "mpsenet-mamba-tiny",
        "system": "mpsenet_mamba",
        # "named" axes attend over all frames times all bins: hours, here
        "model": MPSENetMambaConfig(
            d_model=8,
            n_shared_blocks=1,
            n_branch_blocks=1,
            shared="mamba",
            mamba="both_axes",
            axes="published",
            front_end=FrontEnd(n_fft=256, hop_length=128, win_length=256, offsets="mpsenet"),
        ),
        "gan": GANS["mpsenet"],
        "training.n_steps": 300,
        "training.validate_every": 100,
    },
)
EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        TINY,
        PUBLISHED,
        OWN,
        FINETUNE,
        *(
            override(
                PUBLISHED,
                name=f"cleanumamba-{mixer.replace('_', '-')}",
                model=ablation_config(mixer),
            )
            for mixer in ("mamba2", "mamba_s4", "lstm", "mha")
        ),
        replaced(
            PUBLISHED,
            {
                "name": "cleanumamba-442k-voicebank",
                "corpora": ("voicebank_demand",),
                "training.n_steps": 200_000,
            },
        ),
        SEMAMBA_TINY,
        SEMAMBA,
        replaced(SEMAMBA, {"name": "semamba-pcs", "gan": GANS["semamba_pcs"]}),
        BASIC,
        MPSENET_TINY,
        MPSENET,
        *(
            replaced(
                MPSENET,
                {"name": name, "system": name.replace("-", "_"), "model": model, "gan": GANS[gan]},
            )
            for name, model, gan in (
                ("mpsenet-conformer", MPSENetConformerConfig(), "mpsenet_conformer"),
                ("mpsenet-mamba", MPSENetMambaConfig(), "mpsenet"),
            )
        ),
        *separation.trainings(TINY),
    )
}
