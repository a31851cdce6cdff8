"""What the notebooks about separation do alike: a row per talker, a mean per mixture, who is whose.

dev_mixtures ─► dev_rows ─► of_mixtures ─┬─► showing.means, showing.gains
            └─► likeness ────────────────┴─► gained ─► examples ─► show_examples
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from speechlab.audio.pitch import median_pitch, semitones
from speechlab.data import splits
from speechlab.data.mixing import whole_pairs
from speechlab.data.recordings import Source
from speechlab.errors import UserError
from speechlab.evaluation import separation_metrics, summaries
from speechlab.evaluation.rows import failures
from speechlab.models.macs import n_params
from speechlab.report import figures
from speechlab.report.figures import APART
from speechlab.report.spectrogram import spectrogram_db
from speechlab.study.experiment import Experiment
from speechlab.study.notebooks import show_players
from speechlab.training.runs import Run

METRICS = ("si_snri", "si_sdri", "sdr", "sir", "stoi", "pesq_nb")


def summary(name: str, model: nn.Module, run: Run | None) -> str:
    """Size and cost of a model and, where it has a run, how far that is; a line each."""
    sizes = f"{name}: {n_params(model):,} parameters, {model.macs(4) / 1e9:.2f} GMACs in 4 s"
    if not run:
        return sizes
    best = run.best_known["step"]
    return f"{sizes}\n{run.step:,} steps done; the model is that of step {best:,}"


def dev_mixtures(experiment: Experiment, n_sources: int) -> list[Source]:
    """The dev mixtures of an experiment's corpora with `n_sources` talkers. UserError for none."""
    mixtures = splits.read(experiment.corpora, "dev")["mixture"]
    mixtures = [source for source in mixtures if len(source.item.sources) == n_sources]
    if not mixtures:
        raise UserError(
            f"{', '.join(experiment.corpora)}: no dev mixture has {n_sources} talkers, as many as "
            "the model gives; name a corpus that has some (parameter `corpus`)"
        )
    return mixtures[: experiment.n_dev or None]


def dev_rows(systems: Mapping[str, nn.Module], mixtures: Sequence[Source]) -> pd.DataFrame:
    """Whole mixtures through each system: the rows of `evaluation.evaluate`, and `system`.

    Which estimate is whose is resolved once per mixture; METRICS are of each talker. UserError
    where there are none.
    """
    if not mixtures:
        raise UserError("no mixtures to score; name a corpus that has some in its dev split")
    rows = []
    for name, system in systems.items():
        for file, mixture, sources in whole_pairs(mixtures, system.sample_rate):
            known = {"file": file, "system": name, "seconds": len(mixture[0]) / system.sample_rate}
            estimates = separated(system, mixture)
            signals = (part.numpy() for part in (estimates, sources, mixture[0]))
            speakers = separation_metrics.score(*signals, system.sample_rate, METRICS)
            for number, speaker in enumerate(speakers, start=1):
                found = {"speaker": number, "estimate": speaker.estimate + 1, **speaker.values}
                rows.append(known | found | {"failed": failures(speaker.reasons)})
    return pd.DataFrame(rows)


def of_mixtures(rows: pd.DataFrame) -> pd.DataFrame:
    """The means of `dev_rows` over the talkers of each mixture: file, permutation, METRICS, system.

    Talkers of a mixture are not independent, so that mixtures are what is counted.
    """
    parts = [
        summaries.means(of_system).assign(system=name)
        for name, of_system in rows.groupby("system", sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def orders(dev: pd.DataFrame, of: str) -> pd.DataFrame:
    """How many mixtures had the estimates of `of` in which order. dev: as of `of_mixtures`."""
    counts = dev.loc[dev["system"] == of, "permutation"].value_counts().sort_index()
    return counts.rename("mixtures").rename_axis("estimate of talker 1, 2, …").to_frame()


def likeness(mixtures: Sequence[Source], sample_rate: int) -> pd.DataFrame:
    """How far apart two talkers are: level_apart_db and pitch_apart (semitones), by file.

    Levels are of the mean square over the mixture; pitches are NaN where one is not found.
    UserError for a mixture of other than two.
    """
    rows = {}
    for file, _, sources in whole_pairs(mixtures, sample_rate):
        if len(sources) != 2:
            raise UserError(
                f"{file}: has {len(sources)} talkers; how far apart they are is told of two"
            )
        one, other = 10 * sources.square().mean(-1).log10()
        pitches = [median_pitch(source.numpy(), sample_rate) for source in sources]
        rows[file] = {"level_apart_db": (one - other).abs().item()}
        rows[file] |= {"pitch_apart": semitones(*pitches)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("file")


def gained(dev: pd.DataFrame, of: str, apart: pd.DataFrame) -> pd.DataFrame:
    """The scores of `of` by file, and how far apart its talkers are. dev: of `of_mixtures`."""
    return dev[dev["system"] == of].set_index("file").join(apart)


def rank_correlations(gained: pd.DataFrame) -> pd.DataFrame:
    """Spearman's, of the gain in SI-SDR with each in APART, under the names of figures."""
    ranks = gained[[*APART, "si_sdri"]].corr("spearman")["si_sdri"].drop("si_sdri")
    return ranks.rename(figures.LABELS).to_frame("rank correlation with SI-SDRi").round(2)


def spread(gained: pd.DataFrame) -> pd.DataFrame:
    """Mean, deviation and quartiles over the mixtures of the gain in SI-SDR."""
    return gained["si_sdri"].describe().round(2).to_frame().rename(columns=figures.LABELS)


def curves(run: Run, system: str) -> Figure:
    """The training, and where its dev score is a gain over the mixture, that as its level."""
    metric = run.settings["training"]["metric"]
    level = {"mixture": 0.0} if metric in separation_metrics.IMPROVEMENTS else {}
    return figures.training(run.history, run.validations, level, metric, system)


def examples(
    model: nn.Module, mixtures: Sequence[Source], gains: pd.Series
) -> dict[str, dict[str, Tensor]]:
    """The mixture whose gain is the median of all, and that of the least: title -> `listened`.

    gains: in dB, by file.
    """
    order, heard = gains.dropna().sort_values().index, {}
    for which, file in {"median": order[len(order) // 2], "least": order[0]}.items():
        of_file = [source for source in mixtures if source.item.name == file]
        [(_, mixture, sources)] = whole_pairs(of_file, model.sample_rate)
        title = f"{file}, {gains[file]:.1f} dB: {which}"
        heard[title] = listened(model, mixture, sources)
    return heard


def show_examples(examples: Mapping[str, Mapping[str, Tensor]], sample_rate: int) -> Figure:
    """Show each in a notebook, its spectrograms and its players; returns the first picture."""
    from IPython.display import display

    pictures = []
    for title, signals in examples.items():
        shown = {name: spectrogram_db(signal, sample_rate) for name, signal in signals.items()}
        pictures.append(figures.spectrograms(shown, n_columns=2))
        display({"text/markdown": title}, raw=True)
        display(pictures[-1])
        show_players(signals, sample_rate)
    return pictures[0]


def listened(model: nn.Module, mixture: Tensor, sources: Tensor) -> dict[str, Tensor]:
    """Estimates in the order of the sources, each before its source, then the mixture: (1, T) each.

    mixture (1, T), sources (S, T). An estimate may have any level; here it has that at which it is
    nearest to its source.
    """
    estimates = separated(model, mixture)
    order = separation_metrics.permutation(estimates.numpy(), sources.numpy())
    heard = {}
    for number, (index, source) in enumerate(zip(order, sources, strict=True), start=1):
        estimate = estimates[index]
        gain = (estimate @ source) / (estimate @ estimate).clamp_min(1e-20)
        heard |= {f"estimate {number}": gain * estimate[None], f"talker {number}": source[None]}
    return heard | {"mixture": mixture}


def separated(model: nn.Module, mixture: Tensor) -> Tensor:
    """mixture (1, T) -> estimates (S, T), in the order in which the model gives them."""
    device = next(model.parameters(), mixture).device
    with torch.inference_mode():
        return model(mixture[None].to(device))[0].cpu()
