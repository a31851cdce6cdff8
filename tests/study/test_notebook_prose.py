"""The text under "What we learned" agrees with the committed rows and tables."""

import re
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from speechlab.evaluation.statistics import Difference, mean_interval, paired_difference
from speechlab.models.macs import n_params
from speechlab.models.semamba import SEMambaAdvanced
from speechlab.report import cleanumamba, spectral
from speechlab.study.experiments import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"


def learned(name: str) -> str:
    """The prose under "What we learned", on one line."""
    cells = nbformat.read(FOLDER / name, as_version=4).cells
    [prose] = [cell.source for cell in cells if cell.source.startswith("## What we learned")]
    return " ".join(prose.split())


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_was_learned_is_of_committed_rows_that_it_names(path):
    """A reader's own run may differ, so the text first names the rows that it quotes."""
    prose = learned(path.name).removeprefix("## What we learned ")
    first = re.match(r"\*\*The committed (run|rows|corpus)\*\* \((.+?)\)", prose)
    named = re.findall(r"`(results/[^`]+)`", prose)
    assert first and named and first[2].startswith(f"`{named[0]}`"), prose[:200]
    assert all((ROOT / name).exists() for name in named)
    if first[1] == "run":
        assert first[2] == f"`{named[0]}`, profile `quick`, seed 0"
        assert "This text describes that run alone." in prose
        assert "the table scores" not in prose and "of the table" not in prose
    assert "results/local" not in prose and "results/runs" not in prose


def test_what_paper_tables_taught_is_what_the_rows_say():
    """Numbers typed into the prose of notebook 11, from the committed rows and tables."""
    prose = learned("11_paper_tables.ipynb")
    rows = ROOT / "results" / "metrics" / cleanumamba.TEST_SET
    pesq = {
        mixer: pd.read_csv(rows / f"{name}.csv", index_col="file")["pesq_wb"]
        for mixer, name in cleanumamba.MIXERS.items()
    }
    said = []
    for mixer, words in (("mha", "attention"), ("mamba_s4", "the S4 scan"), ("lstm", "the LSTM")):
        gain = mean_interval((pesq["mamba"] - pesq[mixer]).to_numpy())
        said.append(f"of {words} by {gain.mean:.3f} [{gain.low:.3f}, {gain.high:.3f}]")
    compared = cleanumamba.tables(ROOT / "results")
    worst = {
        metric: max(table.rows[f"{metric}_difference"].abs().max() for table in compared.values())
        for metric in cleanumamba.METRICS
    }
    said.append(
        f"the largest difference is {worst['pesq_wb']:.3f} in PESQ-WB, {worst['pesq_nb']:.3f} in "
        f"PESQ-NB and {worst['stoi_percent']:.2f} points in STOI"
    )
    pruned = pd.read_csv(rows / "CleanUMamba-3N-E8_pruned-500K.csv")["pesq_wb"].mean()
    said.append(f"492K scores {pruned:.3f} in PESQ-WB")
    said.append(f"trained at its size {pesq['mamba'].mean():.3f}")
    said += spectral_costs_said()
    for words in said:
        assert words in prose


def spectral_costs_said() -> list[str]:
    """The costs in the prose of notebook 11, from the committed table."""
    costs = pd.read_csv(ROOT / "results" / "tables" / "spectral_costs.csv", index_col="model")
    names = spectral.ADVANCED, spectral.CAUSAL, spectral.WHOLE
    printed, short, long = (
        [abs(costs.loc[name, f"change_{way}_percent"]) for name in names]
        for way in ("published", "4s", "10s")
    )
    assert costs.loc[names[0], "change_4s_percent"] > 0 > costs.loc[names[0], "change_10s_percent"]
    return [
        f"{printed[0]} % less than the Conformer for the advanced model, {printed[1]} and "
        f"{printed[2]} % less than the Transformer",
        f"the advanced model takes {short[0]} % more than the Conformer and on 10 s {long[0]} % "
        f"less; the basic ones take {short[1]} and {short[2]} % less",
    ]


def test_what_streaming_taught_is_what_the_rows_say():
    """Numbers typed into the prose of notebook 10, from the committed rows and tables."""
    prose = learned("10_streaming_and_cost.ipynb")
    dev = pd.read_csv(ROOT / "results" / "streamed" / "level_dev_pairs.csv")
    mean = dev.groupby(["gain_db", "silence_s"])["loss"].mean()
    near = dev[(dev["silence_s"] == 0) & (dev["gain_db"].abs() <= 12)]
    loss = near.groupby(["checkpoint", "gain_db"])["loss"].mean()
    assert f"{-mean[0, 0]:.3f} PESQ-WB better" in prose
    assert f"{loss.max():.3f} worse at most" in prose
    assert f"costs {mean[0, 60]:.3f}" in prose and f"lose {mean[-26, 0]:.3f}" in prose
    assert loss.max() <= 0.10 and loss.xs(0, level="gain_db").max() <= 0.03
    table = cleanumamba.streamed(ROOT / "results").groupby("test_set")["loss"].agg(["min", "max"])
    dns, voicebank = table.loc["dns2020_no_reverb"], table.loc["voicebank_demand_test_118"]
    assert f"loses {dns['min']:.3f} to {dns['max']:.3f} on DNS-2020" in prose
    assert f"between {voicebank['min']:.3f} and {voicebank['max']:.3f} on the 118" in prose


def test_what_training_taught_is_what_the_rows_say():
    """The claims of notebook 02, from the committed rows of its run at profile quick."""
    prose = learned("02_train_cleanumamba.ipynb")
    dev = pd.read_csv(ROOT / "results" / "dev" / "cleanumamba-tiny.csv")
    wide = dev.pivot(index="file", columns="system", values=["si_sdr", "pesq_wb"])
    scores, quality = wide["si_sdr"], wide["pesq_wb"]
    assert len(scores) == 40 and "In SI-SDR, both intervals of its gain are above 0" in prose
    for other in ("noisy", "wiener"):
        assert paired_difference(scores["cleanumamba"], scores[other]).low > 0
    assert paired_difference(quality["cleanumamba"], quality["noisy"]).low > 0
    assert paired_difference(quality["cleanumamba"], quality["wiener"]).low < 0
    means = scores.groupby(scores.index.str.split("_").str[-1]).mean()
    gain = means["cleanumamba"] - means["wiener"]
    assert gain[["impulsive", "modulated"]].min() > gain.drop(["impulsive", "modulated"]).max()
    assert means["cleanumamba"].idxmin() == "babble"


def gains_of(name: str, system: str, other: str, metric: str) -> Difference:
    """Of the committed dev rows of a training at profile quick."""
    dev = pd.read_csv(ROOT / "results" / "dev" / f"{name}.csv")
    wide = dev.pivot(index="file", columns="system", values=metric)
    assert len(wide) == 40
    return paired_difference(wide[system], wide[other])


def test_what_training_a_semamba_taught_is_what_the_rows_say():
    prose = learned("03_train_semamba.ipynb")
    gain = partial(gains_of, "semamba-tiny", "semamba_advanced")
    assert "In PESQ-WB, both intervals of its gain are above 0" in prose
    assert gain("noisy", "pesq_wb").low > 0 and gain("wiener", "pesq_wb").low > 0
    assert "In SI-SDR its gain over the noisy files is above 0; the interval over the" in prose
    assert gain("noisy", "si_sdr").low > 0 > gain("wiener", "si_sdr").low
    assert "a hundredth of the published parameters" in prose
    sizes = [
        n_params(SEMambaAdvanced(c))
        for c in (EXPERIMENTS["semamba-tiny"].model, EXPERIMENTS["semamba"].model)
    ]
    assert 1 / 110 < sizes[0] / sizes[1] < 1 / 90
    assert "PCS, which is not trained, raises PESQ-WB again and lowers SI-SDR" in prose
    stretched = partial(gains_of, "semamba-tiny", "stretched", "semamba_advanced")
    assert stretched("pesq_wb").low > 0 > stretched("si_sdr").high
    dev = pd.read_csv(ROOT / "results" / "dev" / "semamba-tiny.csv")
    by_band = dev.assign(band=dev["snr_db"] // 5).pivot_table("si_sdr", "band", "system")
    ahead = by_band["semamba_advanced"] - by_band["wiener"]
    assert "better than the filter in loud noise" in prose and ahead.iloc[0] > 0 > ahead.iloc[-1]


def test_what_training_an_mpsenet_taught_is_what_the_rows_say():
    prose = learned("04_train_mpsenet_mamba.ipynb")
    gain = partial(gains_of, "mpsenet-mamba-tiny", "mpsenet_mamba")
    assert (
        "In PESQ-WB and in SI-SDR, the interval of its gain over the noisy files is above 0"
        in prose
    )
    assert "Over the filter, both intervals include 0." in prose
    for metric in ("pesq_wb", "si_sdr"):
        assert gain("noisy", metric).low > 0 > gain("wiener", metric).low
    dev = pd.read_csv(ROOT / "results" / "dev" / "mpsenet-mamba-tiny.csv")
    by_band = dev.assign(band=dev["snr_db"] // 5).pivot_table("si_sdr", "band", "system")
    assert "the filter has the better SI-SDR at high SNR" in prose
    assert by_band["wiener"].iloc[-1] > by_band["mpsenet_mamba"].iloc[-1]


def separation_rows(name: str) -> pd.DataFrame:
    """Means over the speakers of each mixture, of a separation at profile quick."""
    rows = pd.read_csv(ROOT / "results" / "dev" / f"{name}.csv")
    assert rows["file"].nunique() == 40 and len(rows) == 2 * 2 * 40
    assert rows["failed"].isna().all()
    return rows.groupby(["system", "file"]).mean(numeric_only=True).reset_index("file")


def separation_gain(dev: pd.DataFrame, system: str, metric: str) -> Difference:
    """Over the mixture itself."""
    wide = dev.pivot(columns="file", values=metric).T
    return paired_difference(wide[system], wide["mixture"])


def test_what_training_a_sepmamba_taught_is_what_the_rows_say():
    prose = learned("05_train_sepmamba.ipynb")
    dev = separation_rows("sepmamba-tiny")
    gain = {
        m: separation_gain(dev, "sepmamba", m) for m in ("si_sdri", "sdr", "sir", "stoi", "pesq_nb")
    }
    assert "In SI-SDRi, SDR and SIR, the intervals of its gain are above 0" in prose
    assert min(gain[metric].low for metric in ("si_sdri", "sdr", "sir")) > 2
    assert "STOI gains little, and PESQ-NB is slightly below the mixture" in prose
    assert 0 < gain["stoi"].low < gain["stoi"].high < 0.1 and -0.1 < gain["pesq_nb"].high < 0
    of = dev.loc["sepmamba"].set_index("file")
    far = of["pitch_apart"] > 5
    assert "Speakers within 5 semitones gain 1.6 dB, the others 8.1 dB" in prose
    assert [round(of["si_sdri"][which].mean(), 1) for which in (~far, far)] == [1.6, 8.1]
    correlation = of[["pitch_apart", "level_apart_db", "si_sdri"]].corr("spearman")["si_sdri"]
    assert "The model separates by pitch" in prose and "The level has no effect" in prose
    assert correlation["pitch_apart"] > 0.5 > 0.2 > abs(correlation["level_apart_db"])
    other = separation_rows("umambanet-tiny").loc["umambanet"].set_index("file")
    assert "It gains 0.6 dB more on the same mixtures, in about the same time" in prose
    ahead = paired_difference(other["si_sdri"], of["si_sdri"])
    assert ahead.low > 0 and round(ahead.mean, 1) == 0.6
    assert "and gains 6.3 dB" in prose and round(gain["si_sdri"].mean, 1) == 6.3
    ratio = (
        EXPERIMENTS["sepmamba-s"].training.n_steps / EXPERIMENTS["sepmamba-tiny"].training.n_steps
    )
    assert "thousands of times the steps, of four times the length" in prose and ratio > 2000
    printed = pd.read_csv(ROOT / "results/published/sepmamba_wsj0_2mix.csv", index_col=0)
    assert "published with 22.7 dB on WSJ0-2mix" in prose
    assert printed.loc["SepMamba (M) + DM"].iloc[0] == 22.7


def test_what_training_a_umambanet_taught_is_what_the_rows_say():
    prose = learned("06_train_umambanet.ipynb")
    dev = separation_rows("umambanet-tiny")
    gain = {
        m: separation_gain(dev, "umambanet", m)
        for m in ("si_snri", "sdr", "sir", "stoi", "pesq_nb")
    }
    assert "In SI-SNRi, SDR and SIR, the intervals of its gain are far above 0" in prose
    assert min(gain[metric].low for metric in ("si_snri", "sdr", "sir")) > 5
    assert "SIR gains most" in prose and gain["sir"].low > gain["sdr"].high
    assert "STOI gains little, and in PESQ-NB the interval includes 0" in prose
    assert 0 < gain["stoi"].low < gain["stoi"].high < 0.1 and gain["pesq_nb"].low < 0
    of = dev.loc["umambanet"].set_index("file")
    far = of["pitch_apart"] > 5
    assert "more than 5 semitones apart are all separated, by 4 dB or more" in prose
    assert "Closer ones gain 5.3 dB at most, and some mixtures become worse" in prose
    assert of["si_sdri"][far].min() > 4 and round(of["si_sdri"][~far].max(), 1) == 5.3
    assert of["si_sdri"][~far].min() < 0
    correlation = of[["pitch_apart", "level_apart_db", "si_sdri"]].corr("spearman")["si_sdri"]
    assert "The model separates by pitch" in prose and "The level has no effect" in prose
    assert correlation["pitch_apart"] > 0.5 > 0.2 > abs(correlation["level_apart_db"])
    noisy = separation_gain(separation_rows("umambanet-tiny-noisy"), "umambanet", "si_snri")
    assert "the same network and steps gain 1.4 dB" in prose and round(noisy.mean, 1) == 1.4
    recorded = separation_rows("umambanet-recorded")
    assert "gains 3.4 dB on unseen speakers" in prose
    assert round(separation_gain(recorded, "umambanet", "si_snri").mean, 1) == 3.4
    of = recorded.loc["umambanet"].set_index("file")
    assert "23 of 40 mixtures by more than 4 dB, while 7 become worse" in prose
    assert len(of) == 40 and (of["si_sdri"] > 4).sum() == 23 and (of["si_sdri"] < 0).sum() == 7
    assert "Here pitch does not predict the gain (rank correlation 0.13)" in prose
    assert round(of[["pitch_apart", "si_sdri"]].corr("spearman").iloc[0, 1], 2) == 0.13
    steps = EXPERIMENTS["umambanet-two-speakers"].training.n_steps
    assert "the published size, trained for 4000 steps" in prose and steps == 4000
