"""From an experiment to a run: builds the model, the examples and the dev scores of `loop.fit`.

experiment ─► model ─► objective ─┐
    corpora ─► train ─► examples ─┼─► loop.fit ─► run
             └► dev ──► scores ───┘
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from torch import nn

from speechlab.config import to_dict
from speechlab.data.corpora.catalogue import current, prepared
from speechlab.data.mixing import Examples, Mixtures, Pairs, Unpaired
from speechlab.data.recordings import Source, speakers
from speechlab.data.splits import Corpora
from speechlab.errors import UserError
from speechlab.evaluation.dev_files import score_files
from speechlab.evaluation.separation_metrics import mean
from speechlab.losses.waveform import LOSSES
from speechlab.models import SYSTEMS
from speechlab.models.base import Model
from speechlab.progress import Tell
from speechlab.storage.atomic import sha256
from speechlab.study.experiment import (
    PRUNING,
    TEACHER,
    Experiment,
    check,
    from_settings,
    n_sources,
    passes_states,
    teacher,
)
from speechlab.training import loop
from speechlab.training.discriminator import MetricDiscriminator, load_discriminator
from speechlab.training.distillation import Distillation
from speechlab.training.distributed import own_device, world_size
from speechlab.training.metric_gan import MetricGAN
from speechlab.training.objectives import Objective, PermutationInvariant, Supervised
from speechlab.training.runs import FOLDER, Run
from speechlab.weights.checkpoints import load, locate

FREE = ("normalize", "state_leak_s")  # settings of a model that fit any of its weights
Parts = tuple[Objective, Examples, Callable[[nn.Module], pd.DataFrame]]  # objective, train, dev


def supervised(
    model: nn.Module, experiment: Experiment, begun: bool, kind: type[Supervised] = Supervised
) -> Supervised:
    """An objective that minimises the weighted sum of the experiment's losses."""
    chosen = {name: LOSSES[name] for name in experiment.losses}
    return kind(model, chosen, experiment.losses)


def metric_gan(model: nn.Module, experiment: Experiment, begun: bool) -> MetricGAN:
    """A MetricGAN; its discriminator is that of a file or is drawn from the training's seed.

    begun: the state of the run replaces the discriminator, so its file is not needed.
    """
    path = experiment.gan.discriminator if not begun else ""
    with torch.random.fork_rng([]):
        torch.manual_seed(experiment.training.seed)
        discriminator = load_discriminator(path) if path else MetricDiscriminator()
    n_workers = experiment.training.n_workers
    objective = MetricGAN(model, experiment.gan, discriminator, n_workers)
    return objective.to(next(model.parameters()).device)


def distillation(model: nn.Module, experiment: Experiment, begun: bool) -> Distillation:
    """An objective whose target is the output of a teacher. UserError without one.

    begun: the teacher is needed all the same.
    """
    if experiment.distillation.passed and world_size() > 1:
        raise UserError("distillation.passed trains in one process; start it without torchrun")
    if not teacher(experiment):
        raise UserError(
            "objective=distillation needs a teacher: set distillation.teacher, or begin with a "
            "checkpoint, as `speechlab finetune` does"
        )
    chosen, config = {name: LOSSES[name] for name in experiment.losses}, experiment.distillation
    taught_by = load(teacher(experiment)).to(next(model.parameters()).device)
    return Distillation(model, chosen, experiment.losses, config, taught_by)


OBJECTIVES: dict[str, Callable[[nn.Module, Experiment, bool], Objective]] = {
    "supervised": supervised,
    "permutation_invariant": partial(supervised, kind=PermutationInvariant),
    "metric_gan": metric_gan,
    "distillation": distillation,
}


def train(
    experiment: Experiment,
    folder: str | Path = FOLDER,
    device: str = "cpu",
    progress: bool = True,
    tell: Tell | None = None,
) -> Run:
    """Train in `folder`/NAME; an existing run resumes.

    progress, tell: as of `loop.fit`. UserError, before
    anything is written, for invalid settings, a corpus that is not prepared, and an existing run
    with other settings or data.
    """
    run, parts = begun(experiment, folder, device)
    return _fit(experiment, parts, run, progress, tell)


def begun(
    experiment: Experiment, folder: str | Path, device: str, **more: Any
) -> tuple[Run, Parts]:
    """The run in `folder`/NAME, a new one or as it was left, and the arguments of `fit`.

    more: further settings that the run records. UserError as of `train`.
    """
    check(experiment)
    run = Run(Path(folder) / experiment.name)
    read = corpora(experiment.corpora)
    data_hash, parts = read.data_hash, _parts(experiment, read, run, device)
    settings = to_dict(experiment) | {"corpora": _corpora_as_begun(experiment, run)}
    settings |= _digests(experiment) | more
    del settings["training"]  # `fit` notes these itself: it knows which of them may change
    return Run.start(run.folder, settings, data_hash, _completed), parts


def finetune(
    checkpoint: str | Path,
    experiment: Experiment,
    folder: str | Path = FOLDER,
    model_settings: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Run:
    """Train a checkpoint further: its model and weights, all other settings of the experiment.

    The checkpoint is scored before the first step, so the best model is never worse than it.
    model_settings: new values of settings in FREE. options: device, progress and tell of `train`.
    """
    if fixed := sorted(model_settings.keys() - set(FREE)):
        raise UserError(f"finetune takes the model from the checkpoint; leave model.{fixed[0]} out")
    experiment = starting(experiment, checkpoint, load(checkpoint, **model_settings))
    return train(experiment, folder, **options)


def starting(experiment: Experiment, checkpoint: str | Path, model: Model) -> Experiment:
    """The experiment with the model of a checkpoint and its weights at the start."""
    known = {config: name for name, (config, _) in SYSTEMS.items()}
    changes = {"system": known[type(model.config)], "model": model.config}
    return replace(experiment, start=str(checkpoint), **changes)


def resume(
    folder: str | Path,
    changes: Mapping[str, Any],
    device: str = "cpu",
    progress: bool = True,
    tell: Tell | None = None,
) -> Run:
    """Continue a run with a changed schedule (settings of TrainingConfig), which it records."""
    run = Run.open(folder)
    if PRUNING in run.settings["config"]:
        raise UserError(f"{folder}: is a pruning; rerun the command that began it")
    experiment = from_settings(run.settings["config"])
    read = corpora(experiment.corpora)
    if read.data_hash != run.settings["data_hash"]:
        names = ", ".join(experiment.corpora)
        raise UserError(f"{folder}: was begun on other data than {names} is now; prepare it again")
    if not _digests(experiment).items() <= run.settings["config"].items():
        raise UserError(
            f"{folder}: was begun with another teacher than {teacher(experiment)} is now; put it "
            "back"
        )
    experiment = replace(experiment, training=loop.resume(run, changes))
    return _fit(experiment, _parts(experiment, read, run, device), run, progress, tell)


def _digests(experiment: Experiment) -> dict[str, str]:
    """What a run notes of files that it reads again when it resumes."""
    path = teacher(experiment)
    return {TEACHER: sha256(locate(path))} if path else {}


def _completed(held: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, with the defaults of those that are newer than the run."""
    try:
        known = to_dict(from_settings(held))
    except (UserError, LookupError, TypeError):
        return dict(held)  # of another program
    del known["training"]
    return {**held, **known}


def _corpora_as_begun(experiment: Experiment, run: Run) -> list[str]:
    """The names of the corpora; those in the run's config.json where they are former names."""
    if (run.folder / "config.json").exists():
        begun = run.settings["config"].get("corpora", [])
        if [current(name) for name in begun] == list(experiment.corpora):
            return begun
    return list(experiment.corpora)


def _fit(experiment: Experiment, parts: Parts, run: Run, progress: bool, tell: Tell | None) -> Run:
    score_start = bool(experiment.start)
    return loop.fit(*parts, experiment.training, run, progress, tell, score_start=score_start)


def _parts(experiment: Experiment, read: Corpora, run: Run, device: str) -> Parts:
    """The arguments of `fit`; weights of a run that has begun come from its own state."""
    read.check_disjoint()
    read.check_files()
    examples = _examples(experiment, read.read("train"))
    dev = _dev_scores(experiment, read.read("dev"))
    model = untrained(experiment) if run.last.exists() else built(experiment)
    try:
        model = model.to(own_device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device}: {reason} (`speechlab doctor` tells more)") from error
    _check_signals(model, examples)
    objective = OBJECTIVES[experiment.objective](model, experiment, run.last.exists())
    return objective, examples, dev


def _check_signals(model: nn.Module, examples: Examples) -> None:
    """UserError if sample rate or number of sources differ between model and examples."""
    if model.sample_rate != examples.sample_rate:
        raise UserError(
            f"the model works at {model.sample_rate} Hz, its examples at {examples.sample_rate}; "
            "set the sample_rate of both alike"
        )
    device, was_training = next(model.parameters()).device, model.training
    with torch.inference_mode():  # in eval mode: a batch norm would learn from these zeros
        n_given = model.eval()(torch.zeros(1, 1, 1000, device=device)).shape[1]
    model.train(was_training)
    if n_given != examples.n_sources:
        raise UserError(f"the model gives {n_given} sources, examples have {examples.n_sources}")


def corpora(names: Sequence[str]) -> Corpora:
    """Prepared corpora: folders, or names in data/. UserError where one is missing or twice."""
    return Corpora(prepared(names))


def built(experiment: Experiment) -> nn.Module:
    """The model before the first step: the checkpoint `start`, or drawn from the training's seed.

    UserError if the checkpoint is missing or has another configuration.
    """
    if not experiment.start:
        return untrained(experiment)
    free = {name: value for name, value in vars(experiment.model).items() if name in FREE}
    model = load(experiment.start, **free)
    if model.config != experiment.model:
        raise UserError(f"{experiment.start}: is of another configuration than `model`")
    return model


def untrained(experiment: Experiment) -> nn.Module:
    """The model drawn from the training's seed; the global random state does not change."""
    with torch.random.fork_rng([]):
        torch.manual_seed(experiment.training.seed)
        return SYSTEMS[experiment.system][1](experiment.model)


def training_examples(experiment: Experiment) -> Examples:
    """Mixtures made on the fly, or segments of pairs, of the train split."""
    return _examples(experiment, corpora(experiment.corpora).read("train"))


def _ready(experiment: Experiment, of_kind: Mapping[str, list[Source]]) -> list[Source]:
    """Ready mixtures with as many sources as the model gives."""
    n = n_sources(experiment)
    return [source for source in of_kind["mixture"] if len(source.item.sources) == n]


def _examples(experiment: Experiment, of_kind: Mapping[str, list[Source]]) -> Examples:
    if experiment.examples == "pairs":
        mixtures = _ready(experiment, of_kind)
        if not mixtures and of_kind["speech"]:
            names, n = ", ".join(experiment.corpora), n_sources(experiment)
            rate = experiment.model.sample_rate
            raise UserError(
                f"{names}: no ready mixtures of {n} source(s) to train on, but speech to mix; set "
                f"examples=mixtures mixture.n_sources={n} mixture.sample_rate={rate}"
            )
        return Pairs(mixtures, experiment.pair)
    if experiment.examples == "unpaired":
        return Unpaired(of_kind["unpaired"], experiment.pair)
    speech, noise, rooms = (of_kind[kind] for kind in ("speech", "noise", "room"))
    if not speech and n_sources(experiment) > 1:
        speech = speakers(_ready(experiment, of_kind))
    if not speech and of_kind["mixture"]:
        names = ", ".join(experiment.corpora)
        raise UserError(f"{names}: ready mixtures and no speech to mix; set examples=pairs")
    return Mixtures(speech, noise, rooms, experiment.mixture, experiment.n_per_epoch)


def dev_scores(experiment: Experiment) -> Callable[[nn.Module], pd.DataFrame]:
    """A function that scores a model on whole ready mixtures of the dev split."""
    return _dev_scores(experiment, corpora(experiment.corpora).read("dev"))


def _dev_scores(
    experiment: Experiment, of_kind: Mapping[str, list[Source]]
) -> Callable[[nn.Module], pd.DataFrame]:
    mixtures = _ready(experiment, of_kind)[: experiment.n_dev or None]
    if not mixtures:
        names, n = ", ".join(experiment.corpora), n_sources(experiment)
        example = "dev/noisy and dev/clean of your own" if n == 1 else "libri2mix has them"
        raise UserError(
            f"{names}: no ready mixtures of {n} source(s) in the dev split to choose the model by; "
            f"add a corpus that has some, as {example}"
        )
    heard = "stream" if passes_states(experiment) else "alone"
    return partial(scores, mixtures=mixtures, names=experiment.dev_metrics, heard=heard)


def scores(
    model: Model, mixtures: list[Source], names: tuple[str, ...], heard: str = "alone"
) -> pd.DataFrame:
    """Metrics of whole ready mixtures, a row per file: of several sources the mean.

    A metric that fails is NaN. names: in `separation_metrics.METRICS`; heard: in `HEARD`.
    """
    files = score_files(model, mixtures, names, heard)
    rows = [{"file": name} | mean(speakers, names) for name, _, speakers in files]
    return pd.DataFrame(rows)
