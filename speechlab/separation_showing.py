"""What the notebooks about separation do alike: a row per talker, a mean per mixture, who is whose.

systems, mixtures ─► dev_rows ─► of_mixtures ─► showing.means, showing.gains
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from speechlab import evaluate_mixtures, separation_metrics
from speechlab.crops import Source
from speechlab.evaluate import failures
from speechlab.mixing import whole_pairs
from speechlab.pitch import median_pitch, semitones

METRICS = ("si_snri", "si_sdri", "sdr", "sir", "stoi", "pesq_nb")


class Unprocessed(nn.Module):
    """The mixture as each talker's estimate, (B, 1, T) -> (B, S, T)."""

    def __init__(self, sample_rate: int, n_sources: int = 2) -> None:
        super().__init__()
        self.sample_rate, self.n_sources = sample_rate, n_sources

    def forward(self, mixture: Tensor) -> Tensor:
        return mixture.expand(-1, self.n_sources, -1)


def dev_rows(systems: Mapping[str, nn.Module], mixtures: Sequence[Source]) -> pd.DataFrame:
    """Whole mixtures through each system: the rows of `evaluate_mixtures.evaluate`, and `system`.

    Which estimate is whose is resolved once per mixture; METRICS are of each talker.
    """
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
        evaluate_mixtures.means(of_system).assign(system=name)
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
    """
    rows = {}
    for file, _, sources in whole_pairs(mixtures, sample_rate):
        one, other = 10 * sources.square().mean(-1).log10()
        pitches = [median_pitch(source.numpy(), sample_rate) for source in sources]
        rows[file] = {"level_apart_db": (one - other).abs().item()}
        rows[file] |= {"pitch_apart": semitones(*pitches)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("file")


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
