"""The study's trainings: one base, and each other as what it changes.

`speechlab train NAME --set training.lr=1e-3` trains one of them in `results/runs/NAME`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from speechlab import losses, metrics, schedules, splits, training
from speechlab.checkpoints import load
from speechlab.complexity import n_params
from speechlab.configuration import from_dict, override, replaced, to_dict
from speechlab.crops import Source
from speechlab.distributed import own_device
from speechlab.errors import UserError
from speechlab.loggers import LOGGERS
from speechlab.mixing import Examples, MixtureConfig, Mixtures, PairConfig, Pairs, whole_pairs
from speechlab.models import SYSTEMS
from speechlab.models.cleanumamba import CleanUMambaConfig, ablation_config, tiny_config
from speechlab.objectives import Loss, Supervised
from speechlab.progress import Tell
from speechlab.runs import FOLDER, Run
from speechlab.schedules import TrainingConfig

LOSSES: dict[str, Loss] = {
    "l1": losses.l1,
    "snr": losses.snr,
    "si_sdr": losses.si_sdr,
    "si_snr": losses.si_snr,
    "compressed_spectrum": losses.compressed_spectrum,
    **{f"stft_{band}": partial(losses.multi_resolution_stft, band=band) for band in losses.BANDS},
}
Parts = tuple[Supervised, Examples, Callable[[nn.Module], pd.DataFrame]]  # objective, train, dev
_UNREAD = {"pairs": ("mixture", "n_per_epoch"), "mixtures": ("pair",)}  # by each kind of examples


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
    losses: Mapping[str, float] = field(  # names in LOSSES and their weights
        default_factory=lambda: {"l1": 1.0, "stft_full": 1.0}
    )
    dev_metrics: tuple[str, ...] = ("si_sdr",)  # of every validation
    n_dev: int = 0  # dev files to score, the first of them; 0: all
    training: TrainingConfig = field(default_factory=TrainingConfig)


def lookup(name: str) -> Experiment:
    """An experiment of the study. UserError for another name."""
    _known("experiment", [name], EXPERIMENTS)
    return EXPERIMENTS[name]


def changed(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """A copy with settings changed, by dotted names, as `configuration.replaced`.

    With other `examples` what these do not read is reset, where it is not among the changes.
    """
    experiment = replaced(experiment, changes)
    if "examples" not in changes:
        return experiment
    given = {name.partition(".")[0] for name in changes}
    unread = set(_UNREAD[experiment.examples]) - given
    return replace(experiment, **{name: getattr(Experiment(""), name) for name in unread})


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


def train(
    experiment: Experiment,
    folder: str | Path = FOLDER,
    device: str = "cpu",
    progress: bool = True,
    tell: Tell | None = None,
) -> Run:
    """Train it in `folder`/its name; a run that is there goes on.

    progress: a bar; tell: takes a line now and then, as `training.fit`.
    UserError, before anything is written, where the settings cannot be or a corpus is not
    prepared; and where the run that is there was begun with other settings or data.
    """
    check(experiment)
    run = Run(Path(folder) / experiment.name)
    data_hash, parts = splits.data_hash(experiment.corpora), _parts(experiment, run, device)
    settings = to_dict(experiment)
    del settings["training"]  # `fit` notes these itself: it knows which of them may change
    run = Run.start(run.folder, settings, data_hash)
    return _fit(experiment, parts, run, progress, tell)


def finetune(
    checkpoint: str | Path,
    experiment: Experiment,
    folder: str | Path = FOLDER,
    device: str = "cpu",
    progress: bool = True,
    tell: Tell | None = None,
) -> Run:
    """Train a checkpoint on: its architecture and weights, all else as the experiment says.

    It is scored before the first step, so the best is never worse than it was.
    """
    model = load(checkpoint)
    known = {config: name for name, (config, _) in SYSTEMS.items()}
    changes = {"system": known[type(model.config)], "model": model.config}
    experiment = replace(experiment, start=str(checkpoint), **changes)
    return train(experiment, folder, device, progress, tell)


def resume(
    folder: str | Path,
    changes: Mapping[str, Any],
    device: str = "cpu",
    progress: bool = True,
    tell: Tell | None = None,
) -> Run:
    """Go on with a run, its schedule changed (settings of TrainingConfig); the run notes it."""
    run = Run.open(folder)
    experiment = from_settings(run.settings["config"])
    if splits.data_hash(experiment.corpora) != run.settings["data_hash"]:
        names = ", ".join(experiment.corpora)
        raise UserError(f"{folder}: was begun on other data than {names} is now; prepare it again")
    experiment = replace(experiment, training=training.resume(run, changes))
    return _fit(experiment, _parts(experiment, run, device), run, progress, tell)


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
    _known("metric", experiment.dev_metrics, metrics.METRICS)
    _known("dev metric", [experiment.training.metric], experiment.dev_metrics)
    _known("logger", experiment.training.loggers, LOGGERS)
    if not experiment.losses or not experiment.corpora:
        raise UserError("losses and corpora must each name one or more")
    if experiment.training.seed >= 2**32:
        raise UserError(f"seed is {experiment.training.seed}; it must be under 2**32")
    if not 1 <= experiment.n_per_epoch <= 10**8 or experiment.n_dev < 0:
        raise UserError("n_per_epoch must be 1 to 10**8, n_dev 0 or more")
    for name, weight in experiment.losses.items():
        if not 0 <= weight <= 1e30:  # NaN is in no range
            raise UserError(f"losses.{name} is {weight}; a weight must lie in 0 to 1e+30")
    for name in _UNREAD[experiment.examples]:
        if getattr(experiment, name) != getattr(Experiment(""), name):
            raise UserError(f"'{name}' is not read where examples are {experiment.examples}")
    schedules.check(experiment.training)


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"no {what} '{unknown[0]}'; there are: {', '.join(known)}")


def _fit(experiment: Experiment, parts: Parts, run: Run, progress: bool, tell: Tell | None) -> Run:
    given = experiment.training, run, progress, tell
    return training.fit(*parts, *given, score_start=bool(experiment.start))


def _parts(experiment: Experiment, run: Run, device: str) -> Parts:
    """What `fit` takes; a run that has begun has its weights itself."""
    train, dev = (splits.read(experiment.corpora, split) for split in ("train", "dev"))
    splits.check_disjoint(train, dev)
    examples, dev = _examples(experiment, train), _dev_scores(experiment, dev)
    model = untrained(experiment) if run.last.exists() else built(experiment)
    try:
        model = model.to(own_device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device}: {reason} (`speechlab doctor` tells more)") from error
    _check_signals(model, examples)
    chosen = {name: LOSSES[name] for name in experiment.losses}
    return Supervised(model, chosen, experiment.losses), examples, dev


def _check_signals(model: nn.Module, examples: Examples) -> None:
    """That the model takes, and gives, what the examples are."""
    if model.sample_rate != examples.sample_rate:
        raise UserError(
            f"the model works at {model.sample_rate} Hz, its examples at {examples.sample_rate}; "
            "set the sample_rate of both alike"
        )
    device = next(model.parameters()).device
    with torch.inference_mode():
        n_sources = model(torch.zeros(1, 1, 1000, device=device)).shape[1]
    if n_sources != examples.n_sources:
        raise UserError(f"the model gives {n_sources} sources, examples have {examples.n_sources}")


def built(experiment: Experiment) -> nn.Module:
    """The model before the first step: the checkpoint `start`, or drawn from the training's seed.

    UserError where the checkpoint is not there or of another configuration.
    """
    if not experiment.start:
        return untrained(experiment)
    model = load(experiment.start)
    if model.config != experiment.model:
        raise UserError(f"{experiment.start}: is of another configuration than `model`")
    return model


def untrained(experiment: Experiment) -> nn.Module:
    """The model drawn from the training's seed; the caller's random state is kept."""
    with torch.random.fork_rng([]):
        torch.manual_seed(experiment.training.seed)
        return SYSTEMS[experiment.system][1](experiment.model)


def training_examples(experiment: Experiment) -> Examples:
    """What it is trained on: mixtures made on the fly, or crops of pairs, of the train split."""
    return _examples(experiment, splits.read(experiment.corpora, "train"))


def _examples(experiment: Experiment, of_kind: Mapping[str, list[Source]]) -> Examples:
    if experiment.examples == "pairs":
        return Pairs(of_kind["mixture"], experiment.pair)
    speech, noise, rooms = (of_kind[kind] for kind in ("speech", "noise", "room"))
    if not speech and of_kind["mixture"]:
        names = ", ".join(experiment.corpora)
        raise UserError(f"{names}: ready mixtures and no speech to mix; set examples=pairs")
    return Mixtures(speech, noise, rooms, experiment.mixture, experiment.n_per_epoch)


def dev_scores(experiment: Experiment) -> Callable[[nn.Module], pd.DataFrame]:
    """A function that scores a model on the ready mixtures of the dev split, whole files."""
    return _dev_scores(experiment, splits.read(experiment.corpora, "dev"))


def _dev_scores(
    experiment: Experiment, of_kind: Mapping[str, list[Source]]
) -> Callable[[nn.Module], pd.DataFrame]:
    mixtures = of_kind["mixture"][: experiment.n_dev or None]
    names = ", ".join(experiment.corpora)
    if not mixtures:
        raise UserError(
            f"{names}: no ready mixtures in the dev split to choose the model by; add a corpus "
            "that has some, as dev/noisy and dev/clean of your own"
        )
    if any(len(source.item.sources) != 1 for source in mixtures):
        raise UserError(f"{names}: dev mixtures of several sources; one talker is scored here")
    return partial(scores, mixtures=mixtures, names=experiment.dev_metrics)


def scores(
    model: nn.Module, mixtures: list[Source], names: tuple[str, ...], progress: bool = False
) -> pd.DataFrame:
    """Metrics of a model's estimates of ready mixtures with one source; one row per file.

    A metric that fails is NaN.
    """
    device = next(model.parameters(), torch.empty(0)).device
    rows = []
    pairs = whole_pairs(mixtures, model.sample_rate)
    for name, noisy, clean in tqdm(pairs, total=len(mixtures), disable=not progress, unit="file"):
        with torch.inference_mode():
            estimate = model(noisy[None].to(device))[0].cpu().numpy()  # (S, T)
        values, _ = metrics.score(estimate[0], clean[0].numpy(), model.sample_rate, names)
        rows.append({"file": name} | values)
    return pd.DataFrame(rows)


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
    )
}
