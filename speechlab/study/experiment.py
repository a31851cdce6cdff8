"""An experiment: all settings of one training; how they are changed and checked."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch

from speechlab.config import Range, Weight, from_dict, replaced
from speechlab.config import check as check_fields
from speechlab.data.mixing import MixtureConfig, PairConfig
from speechlab.errors import UserError, unknown
from speechlab.evaluation import metrics, separation_metrics
from speechlab.losses.waveform import LOSSES
from speechlab.models import SYSTEMS
from speechlab.models.cleanumamba import CleanUMambaConfig
from speechlab.models.macs import n_params
from speechlab.training import metric_gan
from speechlab.training.distillation import DistillationConfig
from speechlab.training.loggers import LOGGERS
from speechlab.training.metric_gan import MetricGANConfig
from speechlab.training.runs import check_name
from speechlab.training.schedule import TrainingConfig

TEACHER = "teacher_sha256"  # in a run's configuration: the digest of the teacher's file
PRUNING = "pruning"  # key of the settings of a pruning in those of its run
FLOAT_BYTES = 4
LARGEST_BATCH_GB = 64  # of its signals; the network's layers take many times that
MOST_PARAMS = 2 * 10**9  # 32 GB with gradients and Adam's averages

_UNREAD = {  # settings that are not used with this value
    ("examples", "pairs"): ("mixture", "n_per_epoch"),
    ("examples", "unpaired"): ("mixture", "n_per_epoch"),
    ("examples", "mixtures"): ("pair",),
    ("objective", "supervised"): ("gan", "distillation"),
    ("objective", "permutation_invariant"): ("gan", "distillation"),
    ("objective", "metric_gan"): ("losses", "distillation"),
    ("objective", "distillation"): ("gan",),
}


@dataclass(frozen=True)
class Experiment:
    """All settings of a training: model, data, objective, schedule."""

    name: str  # of its run
    system: str = "cleanumamba"  # a name in models.SYSTEMS
    model: Any = field(default_factory=CleanUMambaConfig)  # the system's configuration
    start: str = ""  # checkpoint of the initial weights; "": drawn from training.seed
    corpora: tuple[str, ...] = ("synthetic",)  # prepared folders, or their names in data/
    # made on the fly, or ready ones; unpaired: noisy recordings alone, for a teacher
    examples: Literal["mixtures", "pairs", "unpaired"] = "mixtures"
    n_per_epoch: Annotated[int, Range(1, 10**8)] = 2000  # mixtures in an epoch
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    pair: PairConfig = field(default_factory=PairConfig)
    # a name in launch.OBJECTIVES; permutation_invariant: the order of the sources is free
    objective: Literal["supervised", "permutation_invariant", "metric_gan", "distillation"] = (
        "supervised"
    )
    losses: Mapping[str, Weight] = field(  # names in LOSSES and their weights
        default_factory=lambda: {"l1": 1.0, "stft_full": 1.0}
    )
    gan: MetricGANConfig = field(default_factory=MetricGANConfig)  # of objective metric_gan
    distillation: DistillationConfig = field(default_factory=DistillationConfig)  # of that name
    dev_metrics: tuple[str, ...] = ("si_sdr",)  # at every validation
    n_dev: Annotated[int, Range(0, 10**9)] = 0  # score only the first dev files; 0: all
    training: TrainingConfig = field(default_factory=TrainingConfig)


def changed(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """A copy with settings changed by dotted names, as in `config.replaced`.

    With a new value of `examples` or `objective`, settings that it does not use are reset unless
    they are among the changes.
    """
    before, experiment = experiment, replaced(experiment, changes)
    given = {name.partition(".")[0] for name in changes}
    chosen = {name for name, _ in _UNREAD if getattr(before, name) != getattr(experiment, name)}
    unread = {name for by, name in _unread(experiment) if by in chosen} - given
    return replace(experiment, **{name: getattr(Experiment(""), name) for name in unread})


def _unread(experiment: Experiment) -> list[tuple[str, str]]:
    """Unused settings: (the setting that decides it, the unused one)."""
    return [
        (by, name)
        for (by, value), names in _UNREAD.items()
        if getattr(experiment, by) == value
        for name in names
    ]


def n_sources(experiment: Experiment) -> int:
    """Sources of the model's output; 1 for enhancement, whose models have no such setting."""
    return getattr(experiment.model, "n_sources", 1)


def teacher(experiment: Experiment) -> str:
    """The checkpoint whose output the model learns; "" where it learns no one's."""
    if experiment.objective != "distillation":
        return ""
    return experiment.distillation.teacher or experiment.start


def passes_states(experiment: Experiment) -> bool:
    """Whether the model learns from the states of earlier recordings.

    Its dev files then are one stream.
    """
    return experiment.objective == "distillation" and experiment.distillation.passed > 0


def derived(base: Experiment, delta: Mapping[str, Any]) -> Experiment:
    """The base changed by plain values, as in `changed`; two of them are resolved here.

    model: a name in the CONFIGS of the system's module, or a mapping of the settings that differ
    from the system's default; with a new system and no model: its default.
    gan: a name in `metric_gan.PUBLISHED`.
    """
    kind, model_class = SYSTEMS[delta.get("system", base.system)]
    delta = dict(delta)
    if "system" in delta:
        delta.setdefault("model", {})
    model = delta.get("model")
    if isinstance(model, str):
        delta["model"] = sys.modules[model_class.__module__].CONFIGS[model]
    elif model is not None:
        delta["model"] = from_dict(kind, model)
    if "gan" in delta:
        delta["gan"] = metric_gan.PUBLISHED[delta["gan"]]
    return changed(base, delta)


def from_settings(settings: Mapping[str, Any]) -> Experiment:
    """The experiment from `to_dict` or from "config" in a run's config.json.

    A run has the training's settings separately, under "training", the digest of a teacher, and
    those of a pruning.
    """
    kind, _ = SYSTEMS[settings["system"]]
    others = (TEACHER, PRUNING)
    settings = {name: value for name, value in settings.items() if name not in others}
    return from_dict(Experiment, {**settings, "model": from_dict(kind, settings["model"])})


def check(experiment: Experiment) -> None:
    """UserError for invalid settings and for settings that are set but not used."""
    check_fields(experiment)
    check_name(experiment.name)
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
    _check_memory(experiment)
    taught = experiment.objective == "distillation" and not experiment.distillation.clean
    if experiment.examples == "unpaired" and not taught:
        raise UserError(
            "examples=unpaired have no clean signal: set objective=distillation, with "
            "distillation.clean=0"
        )
    for by, name in _unread(experiment):
        if getattr(experiment, name) != getattr(Experiment(""), name):
            value, verb = getattr(experiment, by), "are" if by.endswith("s") else "is"
            raise UserError(f"'{name}' is not read where {by} {verb} {value}; leave it out")


def _check_memory(experiment: Experiment) -> None:
    """UserError for a model or a batch that no machine can hold, before it is allocated."""
    segments = experiment.mixture if experiment.examples == "mixtures" else experiment.pair
    n_signals = 1 + n_sources(experiment)
    n_samples = segments.segment_s * segments.sample_rate * experiment.training.batch_size
    if n_samples * n_signals * FLOAT_BYTES > LARGEST_BATCH_GB * 1e9:
        raise UserError(
            f"a batch takes {n_samples * n_signals * FLOAT_BYTES / 1e9:.0f} GB, more than "
            f"{LARGEST_BATCH_GB}; choose a smaller training.batch_size or segment_s"
        )
    with torch.device("meta"):  # sizes only
        n = n_params(SYSTEMS[experiment.system][1](experiment.model))
    if n > MOST_PARAMS:
        raise UserError(
            f"the model has {n:,} parameters, more than {MOST_PARAMS:,}; make it smaller"
        )


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise unknown(what, name, known)
