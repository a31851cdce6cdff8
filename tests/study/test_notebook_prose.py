"""The text under "What we learned" agrees with the committed rows and tables."""

import re
from functools import cache

import nbformat
import numpy as np
import pandas as pd
import pytest

from speechlab.evaluation.statistics import Difference, judged, mean_interval, paired_difference
from speechlab.evaluation.summaries import metrics_of
from speechlab.models.macs import n_params
from speechlab.models.semamba import SEMambaAdvanced
from speechlab.report import cleanumamba, spectral
from speechlab.study.experiments import EXPERIMENTS
from speechlab.study.notebooks import FIRST
from tests.support.warm import ROOT

NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").glob("*.ipynb") if p.name != FIRST)
RESULTS = ROOT / "results"
CLEAN, SEMAMBA, MPSENET = "cleanumamba-tiny", "semamba-tiny", "mpsenet-mamba-tiny"
SEPMAMBA, UMAMBA = "sepmamba-tiny", "umambanet-tiny"
SYSTEMS = {SEMAMBA: "semamba_advanced", MPSENET: "mpsenet_mamba"}  # others: the run's first word


@cache
def learned(number: str) -> str:
    """The text under "What we learned" of a notebook, on one line."""
    [path] = [path for path in NOTEBOOKS if path.name.startswith(number)]
    cells = nbformat.read(path, as_version=4).cells
    [prose] = [cell.source for cell in cells if cell.source.startswith("## What we learned")]
    return " ".join(prose.split())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_was_learned_is_of_committed_rows_that_it_names(path):
    """A reader's own run may differ, so the text first names the rows that it quotes."""
    prose = learned(path.name[:2]).removeprefix("## What we learned ")
    first = re.match(r"\*\*The committed (run|rows|corpus)\*\* \((.+?)\)", prose)
    named = re.findall(r"`(results/[^`]+)`", prose)
    assert first and named and first[2].startswith(f"`{named[0]}`"), prose[:200]
    assert all((ROOT / name).exists() for name in named)
    if first[1] == "run":
        assert first[2] == f"`{named[0]}`, profile `quick`, seed 0"
        assert "This text describes that run alone." in prose
        assert "the table scores" not in prose and "of the table" not in prose
    assert "results/local" not in prose and "results/runs" not in prose


# Facts: functions of committed rows of trainings at profile quick


@cache
def dev_rows(run: str) -> pd.DataFrame:
    """Means over the speakers of each of 40 files, by system and file."""
    rows = pd.read_csv(RESULTS / "dev" / f"{run}.csv")
    speakers = rows.get("speaker", pd.Series([1])).nunique()
    assert rows["file"].nunique() == 40
    assert len(rows) == 40 * rows["system"].nunique() * speakers
    assert "failed" not in rows or rows["failed"].isna().all()
    return rows.groupby(["system", "file"]).mean(numeric_only=True)


def system(run: str) -> str:
    return SYSTEMS.get(run, run.partition("-")[0])


def gain(run: str, metric: str, over: str = "mixture", of: str = "") -> Difference:
    rows = dev_rows(run)[metric]
    return paired_difference(rows[of or system(run)], rows[over])


def verdict(run: str, metric: str, over: str = "mixture", of: str = "") -> str:
    """Of this row in the notebook's table of gains."""
    others = [over] if of or over == "mixture" else ["noisy", "wiener"]
    metrics = metrics_of(dev_rows(run))
    table = pd.DataFrame([gain(run, one, other, of) for one in metrics for other in others])
    table.index = [(one, other) for one in metrics for other in others]
    return judged(table)["verdict"][[(metric, over)]].item()


def mamba_verdicts() -> dict[str, str]:
    """Of Mamba over the other mixers, in notebook 11."""
    names = [name for name in cleanumamba.MIXERS if name != "mamba"]
    scores = {name: pesq(cleanumamba.MIXERS[name]) for name in ("mamba", *names)}
    table = pd.DataFrame([paired_difference(scores["mamba"], scores[name]) for name in names])
    return dict(zip(names, judged(table)["verdict"], strict=True))


def ahead_by_band(run: str) -> pd.Series:
    """SI-SDR over the Wiener filter, means of bands of 5 dB SNR, the loudest noise first."""
    si_sdr = dev_rows(run)["si_sdr"]
    ahead = si_sdr[system(run)] - si_sdr["wiener"]
    return ahead.groupby(dev_rows(run)["snr_db"]["noisy"] // 5).mean()


def si_sdr_by_noise() -> pd.DataFrame:
    """Means of notebook 02 by kind of noise, a column a system."""
    si_sdr = dev_rows(CLEAN)["si_sdr"].unstack("system")
    return si_sdr.groupby(si_sdr.index.str.split("_").str[-1]).mean()


def faster_noise_gains_most() -> bool:
    means, fast = si_sdr_by_noise(), ["impulsive", "modulated"]
    ahead = means["cleanumamba"] - means["wiener"]
    return ahead[fast].min() > ahead.drop(fast).max()


def by_pitch(run: str) -> tuple[pd.Series, pd.Series]:
    """SI-SDRi of mixtures whose speakers are within 5 semitones, and of the others."""
    rows = dev_rows(run).loc[system(run)]
    far = rows["pitch_apart"] > 5
    return rows["si_sdri"][~far], rows["si_sdri"][far]


def correlation(run: str, column: str) -> float:
    return dev_rows(run).loc[system(run)][[column, "si_sdri"]].corr("spearman").iloc[0, 1]


def pitch_alone(run: str) -> bool:
    return correlation(run, "pitch_apart") > 0.5 > 0.2 > abs(correlation(run, "level_apart_db"))


def stoi_is_small(run: str) -> bool:
    return 0 < gain(run, "stoi").low < gain(run, "stoi").high < 0.1


def si_sdri(run: str) -> pd.Series:
    return dev_rows(run).loc[system(run)]["si_sdri"]


def ratio_of_sizes() -> float:
    sizes = [n_params(SEMambaAdvanced(EXPERIMENTS[name].model)) for name in (SEMAMBA, "semamba")]
    return sizes[1] / sizes[0]


def steps(name: str) -> int:
    return EXPERIMENTS[name].training.n_steps


# Facts of the published checkpoints


def level_losses() -> pd.DataFrame:
    return pd.read_csv(RESULTS / "streamed" / "level_dev_pairs.csv")


def mean_loss(gain_db: int, silence_s: int) -> float:
    return level_losses().groupby(["gain_db", "silence_s"])["loss"].mean()[gain_db, silence_s]


def near_losses() -> pd.Series:
    """By checkpoint and gain, of up to 12 dB, without silence before."""
    dev = level_losses()
    near = dev[(dev["silence_s"] == 0) & (dev["gain_db"].abs() <= 12)]
    return near.groupby(["checkpoint", "gain_db"])["loss"].mean()


def streamed(test_set: str) -> tuple[float, float]:
    losses = cleanumamba.streamed(RESULTS).groupby("test_set")["loss"].agg(["min", "max"])
    return tuple(losses.loc[test_set])


def pesq(checkpoint: str) -> pd.Series:
    path = RESULTS / "metrics" / cleanumamba.TEST_SET / f"{checkpoint}.csv"
    return pd.read_csv(path, index_col="file")["pesq_wb"]


def mamba_over(mixer: str) -> tuple[float, float, float]:
    scores = [pesq(cleanumamba.MIXERS[name]) for name in ("mamba", mixer)]
    found = mean_interval((scores[0] - scores[1]).to_numpy())
    return found.mean, found.low, found.high


def worst(metric: str) -> float:
    tables = cleanumamba.tables(RESULTS).values()
    return max(table.rows[f"{metric}_difference"].abs().max() for table in tables)


def change(way: str) -> list[float]:
    """In the number of operations, %, of the advanced, causal and non-causal model."""
    costs = pd.read_csv(RESULTS / "tables" / "spectral_costs.csv", index_col="model")
    names = [spectral.ADVANCED, spectral.CAUSAL, spectral.WHOLE]
    return costs.loc[names, f"change_{way}_percent"].tolist()


def sepmamba_published() -> float:
    table = pd.read_csv(RESULTS / "published/sepmamba_wsj0_2mix.csv", index_col=0)
    return table.loc["SepMamba (M) + DM"].iloc[0]


# Notebook, words, and what they claim: that something is true, or the values in the words' braces
CLAIMS = [
    ("02", "In SI-SDR, its gain is above 0 in both rows", lambda: all(
        verdict(CLEAN, "si_sdr", over) == "above 0" for over in ("noisy", "wiener"))),
    ("02", "In PESQ-WB the gain over the noisy files is small, though above 0; over the filter it "
        "is n.s.", lambda: verdict(CLEAN, "pesq_wb", "noisy") == "above 0"
        and verdict(CLEAN, "pesq_wb", "wiener") == "n.s."),
    ("02", "where the noise changes faster than the filter can follow", faster_noise_gains_most),
    ("02", "Babble noise, which is speech itself, is the hardest", lambda:
        si_sdr_by_noise()["cleanumamba"].idxmin() == "babble"),
    ("03", "In PESQ-WB, its gain is above 0 in both rows", lambda: all(
        verdict(SEMAMBA, "pesq_wb", over) == "above 0" for over in ("noisy", "wiener"))),
    ("03", "In SI-SDR its gain over the noisy files is above 0; over the filter it is n.s.",
        lambda: verdict(SEMAMBA, "si_sdr", "noisy") == "above 0"
        and verdict(SEMAMBA, "si_sdr", "wiener") == "n.s."),
    ("03", "a hundredth of the published parameters", lambda: 90 < ratio_of_sizes() < 110),
    ("03", "PCS, which is not trained, raises PESQ-WB again and lowers SI-SDR", lambda:
        verdict(SEMAMBA, "pesq_wb", system(SEMAMBA), "stretched") == "above 0"
        and verdict(SEMAMBA, "si_sdr", system(SEMAMBA), "stretched") == "below 0"),
    ("03", "better than the filter in loud noise", lambda:
        ahead_by_band(SEMAMBA).iloc[0] > 0 > ahead_by_band(SEMAMBA).iloc[-1]),
    ("04", "In PESQ-WB and in SI-SDR, its gain over the noisy files is above 0", lambda: all(
        verdict(MPSENET, one, "noisy") == "above 0" for one in ("pesq_wb", "si_sdr"))),
    ("04", "Over the filter, both are n.s.", lambda: all(
        verdict(MPSENET, one, "wiener") == "n.s." for one in ("pesq_wb", "si_sdr"))),
    ("04", "the filter has the better SI-SDR at high SNR", lambda:
        ahead_by_band(MPSENET).iloc[-1] < 0),
    ("05", "In SI-SDRi, SDR and SIR, its gain is above 0", lambda: all(
        verdict(SEPMAMBA, one) == "above 0" for one in ("si_sdri", "sdr", "sir"))),
    ("05", "STOI gains little, and in PESQ-NB the difference is n.s.", lambda:
        stoi_is_small(SEPMAMBA) and verdict(SEPMAMBA, "pesq_nb") == "n.s."),
    ("05", "Speakers within 5 semitones gain {:.1f} dB, the others {:.1f} dB", lambda:
        [one.mean() for one in by_pitch(SEPMAMBA)]),
    ("05", "The model separates by pitch", lambda: pitch_alone(SEPMAMBA)),
    ("05", "The level has no effect", lambda: pitch_alone(SEPMAMBA)),
    ("05", "It gains {:.1f} dB more on the same mixtures, in about the same time", lambda:
        [paired_difference(si_sdri(UMAMBA), si_sdri(SEPMAMBA)).mean]),
    ("05", "It gains", lambda: judged(pd.DataFrame(
        [paired_difference(si_sdri(UMAMBA), si_sdri(SEPMAMBA))]))["verdict"].item() == "above 0"),
    ("05", "and gains {:.1f} dB", lambda: [gain(SEPMAMBA, "si_sdri").mean]),
    ("05", "thousands of times the steps, of four times the length", lambda:
        steps("sepmamba-s") > 2000 * steps(SEPMAMBA)),
    ("05", "published with {:.1f} dB on WSJ0-2mix", lambda: [sepmamba_published()]),
    ("06", "In SI-SNRi, SDR and SIR, its gain is far above 0", lambda: all(
        verdict(UMAMBA, one) == "above 0" and gain(UMAMBA, one).low > 5
        for one in ("si_snri", "sdr", "sir"))),
    ("06", "SIR gains most", lambda: gain(UMAMBA, "sir").low > gain(UMAMBA, "sdr").high),
    ("06", "STOI gains little, and in PESQ-NB the difference is n.s.", lambda:
        stoi_is_small(UMAMBA) and verdict(UMAMBA, "pesq_nb") == "n.s."),
    ("06", "more than 5 semitones apart are all separated, by 4 dB or more", lambda:
        by_pitch(UMAMBA)[1].min() > 4),
    ("06", "Closer ones gain {:.1f} dB at most", lambda: [by_pitch(UMAMBA)[0].max()]),
    ("06", "and some mixtures become worse", lambda: by_pitch(UMAMBA)[0].min() < 0),
    ("06", "The model separates by pitch", lambda: pitch_alone(UMAMBA)),
    ("06", "The level has no effect", lambda: pitch_alone(UMAMBA)),
    ("06", "the same network and steps gain {:.1f} dB", lambda:
        [gain("umambanet-tiny-noisy", "si_snri").mean]),
    ("06", "gains {:.1f} dB on unseen speakers", lambda:
        [gain("umambanet-recorded", "si_snri").mean]),
    ("06", "{} of 40 mixtures gain more than 4 dB; {} become worse", lambda:
        [(si_sdri("umambanet-recorded") > 4).sum(), (si_sdri("umambanet-recorded") < 0).sum()]),
    ("06", "Here pitch does not predict the gain (rank correlation {:.2f})", lambda:
        [correlation("umambanet-recorded", "pitch_apart")]),
    ("06", "The published size was trained for {} steps", lambda:
        [steps("umambanet-two-speakers")]),
    ("10", "{:.3f} PESQ-WB better", lambda: [-mean_loss(0, 0)]),
    ("10", "at most {:.3f} worse", lambda: [near_losses().max()]),
    ("10", "12 dB louder or softer, it is at most", lambda: near_losses().max() <= 0.10
        and near_losses().xs(0, level="gain_db").max() <= 0.03),
    ("10", "costs {:.3f}", lambda: [mean_loss(0, 60)]),
    ("10", "lose {:.3f}", lambda: [mean_loss(-26, 0)]),
    ("10", "loses {:.3f} to {:.3f} on DNS-2020", lambda: streamed("dns2020_no_reverb")),
    ("10", "between {:.3f} and {:.3f} on the 118", lambda: streamed("voicebank_demand_test_118")),
    ("11", "Mamba is ahead of attention", lambda: mamba_verdicts()
        == dict.fromkeys(("mamba_s4", "mha", "lstm"), "above 0") | {"mamba2": "n.s."}),
    ("11", "of attention by {:.3f} [{:.3f}, {:.3f}]", lambda: mamba_over("mha")),
    ("11", "of the S4 scan by {:.3f} [{:.3f}, {:.3f}]", lambda: mamba_over("mamba_s4")),
    ("11", "of the LSTM by {:.3f} [{:.3f}, {:.3f}]", lambda: mamba_over("lstm")),
    ("11", "the largest difference is {:.3f} in PESQ-WB, {:.3f} in PESQ-NB and {:.2f} points in "
        "STOI", lambda: map(worst, ("pesq_wb", "pesq_nb", "stoi_percent"))),
    ("11", "492K scores {:.3f} in PESQ-WB", lambda: [pesq("CleanUMamba-3N-E8_pruned-500K").mean()]),
    ("11", "trained at its size {:.3f}", lambda: [pesq(cleanumamba.MIXERS["mamba"]).mean()]),
    ("11", "The advanced model takes {} % less than the Conformer; the basic ones take {} and {} % "
        "less than the Transformer", lambda: [-one for one in change("published")]),
    ("11", "the advanced model takes {} % more than the Conformer on 4 s, and {} % less on 10 s",
        lambda: [change("4s")[0], -change("10s")[0]]),
    ("11", "The basic ones take {} and {} % less than the Transformer on 4 s", lambda:
        [-one for one in change("4s")[1:]]),
]  # fmt: skip


@pytest.mark.parametrize(("number", "words", "claim"), CLAIMS)
def test_what_was_learned_is_what_the_rows_say(number, words, claim):
    found = claim()
    if isinstance(found, bool | np.bool_):
        assert found
    else:
        words = words.format(*found)
    assert words in learned(number)
