"""What the notebooks show: a training, its scores on dev files, its signals; streamed levels.

    parameters ─► choose ─► Chosen ─► trained ─► model, run ─► summary, curves
    systems, dev_mixtures ─► dev_rows ─► by_file ─► means, gains, by_snr, orders
                          └► examples ─► show_examples
                                         rows, figures ─► save

One source is enhancement, several are separation: every function takes both, unless it says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from speechlab.audio.pcs import pcs
from speechlab.audio.pitch import median_pitch, semitones
from speechlab.audio.spectrum import Spectrum
from speechlab.config import replaced
from speechlab.data.corpora import catalogue
from speechlab.data.mixing import whole_pairs
from speechlab.data.recordings import Source
from speechlab.errors import UserError
from speechlab.evaluation import separation_metrics, summaries
from speechlab.evaluation.dev_files import estimated, score_files
from speechlab.evaluation.rows import failures
from speechlab.evaluation.statistics import judged, mean_intervals, paired_difference
from speechlab.models import SYSTEMS
from speechlab.models.base import Model
from speechlab.models.macs import n_params
from speechlab.models.spectral import SpectralModel
from speechlab.progress import Report
from speechlab.report import figures
from speechlab.report.spectrogram import spectrogram_db
from speechlab.storage.atomic import write
from speechlab.study import experiments, launch, runner
from speechlab.study.experiment import Experiment, from_settings
from speechlab.study.notebooks import note_inputs, output_folder, show, show_players
from speechlab.training.runs import Run
from speechlab.weights import checkpoints

METRICS = ("si_sdr", "pesq_wb")  # of one source
SEPARATION_METRICS = ("si_snri", "si_sdri", "sdr", "sir", "stoi", "pesq_nb")
UNTRAINED = ("noisy", "wiener", "mixture")  # systems whose scores are levels of a training
PICTURES = ("spectrograms", "front_end", "phases")  # figures of pixels, not of lines
LEVEL_ROWS = Path("streamed/level_dev_pairs.csv")  # in the folder of results
LEVEL_COLUMNS = ["checkpoint", "file", "gain_db", "silence_s", "utterance", "running", "loss"]


@dataclass(frozen=True)
class Chosen:
    """The training that a notebook shows."""

    experiment: Experiment
    run: Run | None  # a given run; None where it is to be trained, or weights are given
    runs: Path  # the folder of the study's runs
    output: Path  # of tables and figures; for a stand-in the folder of its runs
    missing: str  # why a tiny corpus and a few steps stand in; empty without, or where asked for

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
    """The training that the parameters of a notebook name; notes the corpora that it reads.

    Where a corpus is not prepared, a tiny one and a few steps stand in. UserError instead where the
    training was named or its profile is a long one.

    about: a key of `runner.TRAINED`
    profile: of `runner.experiment`; "smoke": a tiny corpus and a few steps
    experiment: its name; empty: the profile's
    checkpoint: a run's folder or weights, shown in place of a training
    corpus: a prepared folder, beside which the others are found; empty: those in ../data
    name: of the run and of the files written; empty: the experiment's or the checkpoint's
    seed: of the training
    results: the folder of results
    publish: of `output_folder`; a stand-in is never published
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
            _ = launch.corpora(chosen.corpora).data_hash
        except UserError as error:
            if given or experiment or profile in ("real", "paper"):  # named by the user
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
    """The model in eval mode on `device`, and its run: trained here, or given.

    An interrupted training resumes. checkpoint, system: as of `checkpoints.load`; weights have no
    run. Shows a warning in the notebook where the run was trained on other data.
    """
    from IPython.display import display

    run = chosen.run
    if not checkpoint:
        run = launch.train(chosen.experiment, chosen.runs, device=device, tell=print)
    elif run and run.settings["data_hash"] != launch.corpora(chosen.experiment.corpora).data_hash:
        warning = "**The run was trained on other data** than that of the dev files"
        display({"text/markdown": f"{warning}: they may be in its training set."}, raw=True)
    model = checkpoints.load(run.folder if run else checkpoint, system or None)
    return model.to(device), run


def save(chosen: Chosen, rows: pd.DataFrame, shown: Mapping[str, Figure]) -> None:
    """Write rows of dev files as dev/NAME.csv and figures as figures/NAME_* to `chosen.output`."""
    table = chosen.output / "dev" / f"{chosen.name}.csv"
    write(table, rows.to_csv(index=False, float_format="%.6g"))
    for key, figure in shown.items():
        suffix = "png" if key in PICTURES else "svg"
        figures.save(figure, chosen.output / "figures" / f"{chosen.name}_{key}.{suffix}")


class Untouched(Model):
    """(B, 1, T) -> (B, S, T): the input as each source, to score the unprocessed mixtures."""

    sample_rate = 0  # Hz

    def __init__(self, sample_rate: int, n_sources: int = 1) -> None:
        super().__init__(None)
        self.sample_rate, self.n_sources = sample_rate, n_sources

    def forward(self, noisy: Tensor) -> Tensor:
        return noisy.expand(-1, self.n_sources, -1)


class Stretched(Model):
    """A model and `pcs` behind it, (B, 1, T) -> (B, S, T)."""

    sample_rate = 0  # Hz

    def __init__(self, model: Model) -> None:
        super().__init__(None)
        self.model, self.sample_rate = model, model.sample_rate

    def forward(self, noisy: Tensor) -> Tensor:
        return pcs(self.model(noisy))


def system_of(model: nn.Module) -> str:
    """Its name in SYSTEMS."""
    return next(name for name, (_, kind) in SYSTEMS.items() if type(model) is kind)


def summary(name: str, model: nn.Module, run: Run | None) -> str:
    """Size and cost of a model and, where it has a run, the steps; a line each."""
    sizes = f"{name}: {n_params(model):,} parameters, {model.macs(4) / 1e9:.2f} GMACs in 4 s"
    if not run:
        return sizes
    best = run.best_known["step"]
    return f"{sizes}\n{run.step:,} steps done; the model is that of step {best:,}"


def dev_mixtures(experiment: Experiment, n_sources: int) -> list[Source]:
    """The dev mixtures of an experiment's corpora with `n_sources` sources. UserError for none."""
    mixtures = launch.corpora(experiment.corpora).read("dev")["mixture"]
    mixtures = [source for source in mixtures if len(source.item.sources) == n_sources]
    if not mixtures:
        raise UserError(
            f"{', '.join(experiment.corpora)}: no dev mixture has {n_sources} source(s), as many "
            "as the model gives; name a corpus that has some (parameter `corpus`)"
        )
    return mixtures[: experiment.n_dev or None]


def dev_rows(systems: Mapping[str, Model], mixtures: Sequence[Source]) -> pd.DataFrame:
    """Whole mixtures through each system: a row per system, file and source.

    One source: file, snr_db, metrics, system. snr_db is the manifest's; where that has none it is
    the SI-SDR of the first system, the unprocessed one: the same, where noise was added. Several
    sources: file, system, seconds, speaker, estimate, metrics, failed, as of `evaluate`.
    """
    if not mixtures:
        raise UserError("no mixtures to score; name a corpus that has some in its dev split")
    several = len(mixtures[0].item.sources) > 1
    metrics, rows = SEPARATION_METRICS if several else METRICS, []
    with Report("dev scores", len(systems) * len(mixtures), tell=print) as report:
        for name, system in systems.items():
            for file, seconds, speakers in score_files(system, mixtures, metrics):
                for number, speaker in enumerate(speakers, start=1):
                    row = {"file": file, "system": name, "seconds": seconds, "speaker": number}
                    row |= {"estimate": speaker.estimate + 1, **speaker.values}
                    rows.append(row | {"failed": failures(speaker.reasons)})
                report.update()
        report.outcome = f"systems: {', '.join(systems)}"
    table = pd.DataFrame(rows)
    if several:
        return table
    snr_db = pd.Series({source.item.name: source.item.snr_db for source in mixtures}, dtype=float)
    unprocessed = table[table["system"] == next(iter(systems))].set_index("file")["si_sdr"]
    table["snr_db"] = table["file"].map(snr_db.fillna(unprocessed))
    return table[["file", "snr_db", *metrics, "system"]]


def by_file(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per system and file of `dev_rows`: of several speakers the means, see `summaries`."""
    if "speaker" not in rows:
        return rows
    parts = [
        summaries.means(of_system).assign(system=name)
        for name, of_system in rows.groupby("system", sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def means(dev: pd.DataFrame) -> pd.DataFrame:
    """The mean of each metric over files, a row per system, under the names of figures."""
    table = dev.groupby("system", sort=False)[summaries.metrics_of(dev)].mean().round(3)
    table = table.rename(figures.LABELS).rename(columns=figures.LABELS)
    return table.assign(files=dev["file"].nunique())


def gains(dev: pd.DataFrame, of: str, over: Sequence[str]) -> pd.DataFrame:
    """What the system `of` gains over others on the same files, a row per metric and other.

    Mean of the differences with its 95 % bootstrap interval, the p-value of Wilcoxon's signed-rank
    test, also corrected for the rows of this table, and the verdict (`statistics.judged`).
    """
    wide = dev.pivot(index="file", columns="system", values=summaries.metrics_of(dev))
    pairs = [(metric, other) for metric in summaries.metrics_of(dev) for other in over]
    rows = [paired_difference(wide[m][of], wide[m][other]) for m, other in pairs]
    index = pd.MultiIndex.from_tuples(pairs, names=["metric", "gain over"])
    table = judged(pd.DataFrame(rows, index)).round({"mean": 3, "low": 3, "high": 3})
    for name in ("p", "p_holm"):
        table[name] = table[name].map("{:.2g}".format)
    return table.rename(figures.LABELS).rename(
        columns={"n": "files", "n_failed": "files that failed", "p_holm": "p (Holm)"}
    )


def gain_by_file(dev: pd.DataFrame, of: str, metric: str) -> pd.Series:
    """What `of` gains over the first system, the unprocessed one, by file; the least first."""
    wide = dev.pivot(index="file", columns="system", values=metric)
    return (wide[of] - wide[dev["system"].iloc[0]]).sort_values()


def curves(run: Run, dev: pd.DataFrame, system: str) -> Figure:
    """The training, and as levels the dev scores of UNTRAINED systems where `dev` has them."""
    metric = run.settings["training"]["metric"]
    levels = dev.groupby("system", sort=False)[metric].mean() if metric in dev else {}
    levels = {name: levels[name] for name in UNTRAINED if name in levels}
    history = run.history.rename(columns={"generator": "loss"})
    return figures.training(history, run.validations, levels, metric, system)


def by_snr(dev: pd.DataFrame) -> Figure:
    """Means of METRICS with their intervals in bands of 5 dB of SNR."""
    bands = dev.assign(snr_db=dev["snr_db"] // 5 * 5 + 2.5)
    return figures.by_snr(mean_intervals(bands, ["snr_db", "system"], METRICS))


def orders(dev: pd.DataFrame, of: str) -> pd.DataFrame:
    """The number of mixtures per order of the estimates of `of`. dev: as of `by_file`."""
    counts = dev.loc[dev["system"] == of, "permutation"].value_counts().sort_index()
    return counts.rename("mixtures").rename_axis("estimate of speaker 1, 2, …").to_frame()


def likeness(mixtures: Sequence[Source], sample_rate: int) -> pd.DataFrame:
    """How far apart two speakers are: level_apart_db and pitch_apart (semitones), by file.

    Levels are of the mean square over the mixture; pitches are NaN where one is not found.
    UserError for a mixture with another number of speakers.
    """
    rows = {}
    for file, _, sources in whole_pairs(mixtures, sample_rate):
        if len(sources) != 2:
            raise UserError(f"{file}: has {len(sources)} speakers; likeness is defined for two")
        one, other = 10 * sources.square().mean(-1).log10()
        pitches = [median_pitch(source.numpy(), sample_rate) for source in sources]
        rows[file] = {"level_apart_db": (one - other).abs().item()}
        rows[file] |= {"pitch_apart": semitones(*pitches)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("file")


def rank_correlations(gained: pd.DataFrame) -> pd.DataFrame:
    """Spearman's, of SI-SDRi with each column of `figures.APART`, under the names of figures."""
    ranks = gained[[*figures.APART, "si_sdri"]].corr("spearman")["si_sdri"].drop("si_sdri")
    return ranks.rename(figures.LABELS).to_frame("rank correlation with SI-SDRi").round(2)


def examples(
    systems: Mapping[str, Model], mixtures: Sequence[Source], gains: pd.Series
) -> dict[str, dict[str, Tensor]]:
    """The files with the median and the least gain: title -> `signals`. gains: in dB, by file."""
    sample_rate = next(iter(systems.values())).sample_rate
    order, shown = gains.dropna().sort_values().index, {}
    for which, file in {"median": order[len(order) // 2], "least": order[0]}.items():
        mixture, sources = whole(mixtures, file, sample_rate)
        title = f"{file}, gain of {gains[file]:.1f} dB: {which}"
        shown[title] = signals(systems, mixture, sources)
    return shown


def whole(mixtures: Sequence[Source], file: str, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Mixture (1, T) and sources (S, T) of the file of this name, at a rate in Hz."""
    of_file = [source for source in mixtures if source.item.name == file]
    [(_, mixture, sources)] = whole_pairs(of_file, sample_rate)
    return mixture, sources


def signals(systems: Mapping[str, Model], mixture: Tensor, sources: Tensor) -> dict[str, Tensor]:
    """Signals (1, T) to show and to play, by title. mixture: (1, T); sources: (S, T).

    One source: the estimate of every system by its name in figures, then the clean speech. Several:
    the estimates of the last system in the order of the sources, each before its source, then the
    mixture. Those estimates may have any level; here each is scaled to the least squared error.
    """
    estimates = {name: estimated(system, mixture) for name, system in systems.items()}
    if len(sources) == 1:
        return {figures.LABELS[name]: made for name, made in estimates.items()} | {"clean": sources}
    separated = list(estimates.values())[-1]
    order = separation_metrics.permutation(separated.numpy(), sources.numpy())
    titled = {}
    for number, (index, source) in enumerate(zip(order, sources, strict=True), start=1):
        estimate = separated[index]
        gain = (estimate @ source) / (estimate @ estimate).clamp_min(1e-20)
        titled |= {f"estimate {number}": gain * estimate[None], f"speaker {number}": source[None]}
    return titled | {"mixture": mixture}


def show_examples(examples: Mapping[str, Mapping[str, Tensor]], sample_rate: int) -> Figure:
    """Show each in a notebook, its spectrograms and its players; returns the first picture."""
    from IPython.display import display

    pictures = []
    for title, by_title in examples.items():
        shown = {name: spectrogram_db(signal, sample_rate) for name, signal in by_title.items()}
        pictures.append(figures.spectrograms(shown, n_columns=2))
        display({"text/markdown": title}, raw=True)
        show(pictures[-1], f"Spectrograms: {', '.join(shown)}.")
        show_players(by_title, sample_rate)
    return pictures[0]


def spectra(model: SpectralModel, noisy: Tensor, clean: Tensor) -> dict[str, Spectrum]:
    """Spectra (F, L) of the noisy input, the estimate and the clean, at the model's own level.

    noisy, clean: (1, T). Under "noisy", the system's name and "clean".
    """
    with torch.inference_mode():
        gain = model.gain(noisy[None].to(model.device))[0].cpu()  # (1, 1)
        estimate = model.spectrum(noisy[None].to(model.device))
    seen, wanted = (model.front_end.analyse((gain * x)[0]) for x in (noisy, clean))
    given = Spectrum(*(part[0].cpu() for part in estimate))
    return {"noisy": seen, system_of(model): given, "clean": wanted}


def level_means(rows: pd.DataFrame, results: str | Path) -> pd.DataFrame:
    """Mean PESQ-WB with the utterance's level and the running one, and the loss, by condition.

    rows: LEVEL_COLUMNS; where there are none, the committed rows in `results` are shown, and the
    notebook says so.
    """
    if rows.empty:
        from IPython.display import display

        text = "Not measured here: pairs or weights are missing. The committed rows are shown "
        display({"text/markdown": f"{text}instead, `results/{LEVEL_ROWS.as_posix()}`."}, raw=True)
        rows = pd.read_csv(Path(results) / LEVEL_ROWS)
    conditions = rows.groupby(["checkpoint", "gain_db", "silence_s"], sort=False)
    return conditions[["utterance", "running", "loss"]].mean().round(3)
