"""What the notebooks about trainings do alike: which training is looked at, and its dev scores.

profile, experiment, checkpoint, corpus ─► choose ─► Chosen ─► trained ─► model, run
                                   systems, mixtures ─► dev_scores ─► means, gains
                                                      rows, figures ─► save
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from speechlab.audio.pcs import pcs
from speechlab.audio.spectrum import Spectrum
from speechlab.config import replaced
from speechlab.data import splits
from speechlab.data.corpora import catalogue
from speechlab.data.recordings import Source
from speechlab.errors import UserError
from speechlab.evaluation.statistics import paired_difference
from speechlab.models import SYSTEMS
from speechlab.models.spectral import SpectralModel
from speechlab.report import figures as plots
from speechlab.study import experiments, launch, runner
from speechlab.study.experiment import Experiment, from_settings
from speechlab.study.notebooks import note_inputs, output_folder
from speechlab.training.runs import Run
from speechlab.weights import checkpoints

METRICS = ("si_sdr", "pesq_wb")
PICTURES = ("spectrograms", "front_end", "phases")  # figures of pixels, not of lines
TOLD = {1: "ahead", 0: "not told apart", -1: "behind"}


@dataclass(frozen=True)
class Chosen:
    """A training to look at."""

    experiment: Experiment
    run: Run | None  # one that was given; None where it is to be trained, or is a file
    runs: Path  # the folder of the study's runs
    output: Path  # of tables and figures: beside the runs where a stand-in is looked at
    missing: str  # why a tiny corpus and a few steps stand in; empty where none do, or asked for

    @property
    def name(self) -> str:
        """Of the run, and of what is written."""
        return self.experiment.name


def choose(
    about: str,
    profile: str,
    experiment: str = "",
    checkpoint: str = "",
    corpus: str = "",
    name: str = "",
    seed: int = 0,
    results: str | Path = "../results",
    publish: bool = False,
) -> Chosen:
    """The parameters of a notebook about trainings, made sense of; notes the corpora that it reads.

    about: a key of `study.TRAINED`. Corpora are looked for where `corpus` lies, else in ../data.
    Where one is not prepared a tiny one and a few steps stand in; UserError instead where the
    training was named or its profile is a long one. publish: of `output_folder`; what stands in is
    never published.
    """
    given = Run.open(checkpoint) if checkpoint and Path(checkpoint).is_dir() else None
    chosen = experiments.lookup(experiment or runner.experiment(profile, about))
    chosen = from_settings(given.settings["config"]) if given else chosen
    if corpus:
        chosen = replaced(chosen, {"corpora": (Path(corpus).name,)})  # as on the command line
    catalogue.DATA = Path(corpus).parent if corpus else Path("../data")
    missing = ""
    if profile != "smoke":
        note_inputs(*map(catalogue.where, chosen.corpora))
        try:
            splits.data_hash(chosen.corpora)
        except UserError as error:
            if given or experiment or profile in ("real", "paper"):  # it was asked for
                raise
            missing = str(error)
    runs, tiny = Path(results) / "runs", bool(missing) or profile == "smoke"
    if tiny:
        runs = runs / "smoke"
        chosen = replaced(experiments.lookup(runner.experiment("smoke", about)), runner.FEW_STEPS)
        catalogue.DATA = runner.stand_in(runs, *chosen.corpora).parent
    of_file = given.name if given else checkpoint and f"{Path(checkpoint).stem}-given"
    name = name or of_file or (f"{chosen.name}-seed{seed}" if seed else chosen.name)
    chosen = replaced(chosen, {"name": name, "training.seed": seed})
    output = runs if tiny else output_folder(results, publish)
    return Chosen(chosen, given, runs, output, missing)


def trained(
    chosen: Chosen, checkpoint: str = "", system: str = "", device: str = "cpu"
) -> tuple[nn.Module, Run | None]:
    """The model to look at, in eval mode on `device`, and its run: trained here, or given.

    A training that was interrupted goes on. checkpoint, system: as of `checkpoints.load`; a file
    has no run. Shows in the notebook where a run was trained on other data than is looked at.
    """
    from IPython.display import display

    run = chosen.run
    if not checkpoint:
        run = launch.train(chosen.experiment, chosen.runs, device=device)
    elif run and run.settings["data_hash"] != splits.data_hash(chosen.experiment.corpora):
        told = "**The run was trained on other data** than the dev files are of"
        display({"text/markdown": f"{told}: it may have heard them."}, raw=True)
    model = checkpoints.load(run.folder if run else checkpoint, system or None)
    return model.to(device), run


def save(chosen: Chosen, rows: pd.DataFrame, figures: Mapping[str, Figure]) -> None:
    """Write rows of dev files as dev/NAME.csv and figures as figures/NAME_*, where they belong."""
    table = chosen.output / "dev" / f"{chosen.name}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(table, index=False, float_format="%.6g")
    for key, figure in figures.items():
        suffix = "png" if key in PICTURES else "svg"
        plots.save(figure, chosen.output / "figures" / f"{chosen.name}_{key}.{suffix}")


class Untouched(nn.Module):
    """Gives what it gets, (B, 1, T), as each of S sources: the noisy files' own scores."""

    def __init__(self, sample_rate: int, n_sources: int = 1) -> None:
        super().__init__()
        self.sample_rate, self.n_sources = sample_rate, n_sources

    def forward(self, noisy: Tensor) -> Tensor:
        return noisy.expand(-1, self.n_sources, -1)


class Stretched(nn.Module):
    """A model and `pcs` behind it, (B, 1, T) -> (B, S, T)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.sample_rate = model, model.sample_rate

    def forward(self, noisy: Tensor) -> Tensor:
        return pcs(self.model(noisy))


def system_of(model: nn.Module) -> str:
    """Its name in SYSTEMS."""
    return next(name for name, (_, kind) in SYSTEMS.items() if type(model) is kind)


def dev_scores(systems: Mapping[str, nn.Module], mixtures: Sequence[Source]) -> pd.DataFrame:
    """Whole files through each system: file, snr_db, METRICS and the system's name, by system.

    snr_db is the manifest's, and where that has none the noisy file's SI-SDR: the same, where
    noise was added. systems: "noisy" is among them.
    """
    parts = {
        name: launch.scores(system, list(mixtures), METRICS) for name, system in systems.items()
    }
    snr_db = pd.Series({source.item.name: source.item.snr_db for source in mixtures}, dtype=float)
    snr_db = snr_db.fillna(parts["noisy"].set_index("file")["si_sdr"])
    dev = pd.concat([part.assign(system=name) for name, part in parts.items()], ignore_index=True)
    dev.insert(1, "snr_db", dev["file"].map(snr_db))
    return dev


def means(dev: pd.DataFrame, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """The mean of each metric, a row per system, under the names of figures."""
    table = dev.groupby("system", sort=False)[list(metrics)].mean().round(3)
    table = table.rename(plots.LABELS).rename(columns=plots.LABELS)
    return table.assign(files=dev["file"].nunique())


def gains(
    dev: pd.DataFrame, of: str, over: Sequence[str], metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """What the system `of` gains over others on the same files, a row per metric and other.

    Mean of the differences with its 95 % interval, Wilcoxon's p, and what that says.
    """
    wide = dev.pivot(index="file", columns="system", values=list(metrics))
    pairs = [(metric, other) for metric in metrics for other in over]
    rows = [paired_difference(wide[m][of], wide[m][other]) for m, other in pairs]
    index = pd.MultiIndex.from_tuples(pairs, names=["metric", "gain over"])
    table = pd.DataFrame(rows, index).round({"mean": 3, "low": 3, "high": 3})
    table["p"] = table["p"].map("{:.2g}".format)
    sign = (table["low"] > 0).astype(int) - (table["high"] < 0)
    table["the network is"] = sign.map(TOLD)
    table = table.rename(plots.LABELS)
    return table.rename(columns={"n": "files", "n_failed": "files that failed"})


def by_gain(dev: pd.DataFrame, of: str, metric: str = METRICS[0]) -> list[str]:
    """The dev files by what `of` gains over the noisy one, the least first."""
    wide = dev.pivot(index="file", columns="system", values=metric)
    return (wide[of] - wide["noisy"]).sort_values().index.tolist()


def listened(systems: Mapping[str, nn.Module], noisy: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Every system's estimate of noisy (1, T) by its name in figures, then the clean: (S, T)."""
    signals = {}
    for name, system in systems.items():
        device = next(system.parameters(), noisy).device
        with torch.inference_mode():
            signals[plots.LABELS[name]] = system(noisy[None].to(device))[0].cpu()
    return signals | {"clean": clean}


def spectra(model: SpectralModel, noisy: Tensor, clean: Tensor) -> dict[str, Spectrum]:
    """What the model sees, gives and should give, (F, L) each, at the level that it works at.

    noisy, clean: (1, T). Under "noisy", the system's name and "clean".
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        gain = model.gain(noisy[None].to(device))[0].cpu()  # (1, 1)
        estimate = model.spectrum(noisy[None].to(device))
    seen, wanted = (model.front_end.analyse((gain * x)[0]) for x in (noisy, clean))
    given = Spectrum(*(part[0].cpu() for part in estimate))
    return {"noisy": seen, system_of(model): given, "clean": wanted}
