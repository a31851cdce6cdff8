"""Costs of SEMamba and MP-SENet are counted, not copied; the savings are computed from them."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from speechlab.errors import UserError
from speechlab.report import separation, spectral
from speechlab.report.spectral import ADVANCED, CAUSAL, CONFORMER, WHOLE
from speechlab.weights import hub
from tests.support.warm import ROOT

RESULTS = ROOT / "results"
PRINTED = spectral.published(RESULTS / "published")
COUNTS = pd.read_csv(RESULTS / spectral.COUNTS)
COSTS = spectral.costs(PRINTED, COUNTS).set_index("model")


def test_every_model_is_counted_and_printed():
    assert COUNTS["model"].tolist() == list(spectral.FRAMES)
    names = {spectral.PRINTED_AS.get(name, name) for name in spectral.FRAMES}
    assert names <= set(PRINTED["model"]) and PRINTED["model"].is_unique
    assert set(spectral.RIVALS.values()) <= set(spectral.FRAMES)
    files = {file.name for file in hub.published()}
    ours = set(spectral.CHECKPOINTS.values()) - {"noisy", "SEMamba_advanced_PCS"}
    assert ours <= files and set(spectral.CHECKPOINTS) <= set(PRINTED["model"])


def test_counts_meet_the_printed_to_every_digit():
    sizes = COSTS["params_published"].astype(float)
    assert (COSTS["n_params"] / 1e4).round().eq(sizes / 1e4).all()
    printed = COSTS["gmacs_published"].dropna()
    assert len(printed) == 7
    assert COSTS["gmacs_profiled"].round(2).loc[printed.index].eq(printed).all()


@pytest.mark.parametrize(("name", "claim"), [(CAUSAL, -66), (WHOLE, -53), (ADVANCED, -12)])
def test_savings_that_the_paper_claims(name, claim):
    assert round(COSTS.loc[name, "change_published_percent"]) == claim
    assert round(COSTS.loc[name, "change_profiled_percent"]) == claim


def test_changes_are_of_the_unrounded_counts():
    counts = COUNTS.set_index("model")
    for column in ("macs_profiled", "macs_per_second_4s", "macs_per_second_10s"):
        way = column.removeprefix("macs_").removeprefix("per_second_")
        ratio = counts.loc[ADVANCED, column] / counts.loc[CONFORMER, column]
        assert COSTS.loc[ADVANCED, f"change_{way}_percent"] == round(100 * (ratio - 1), 1)


def table_of(text: str) -> list[list[str]]:
    """Cells of a Markdown table; none is empty."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len(set(map(len, cells))) == 1 and all(cell for row in cells for cell in row)
    assert "nan" not in text.lower()
    return cells


def test_no_cell_is_empty():
    for table in spectral.tables(RESULTS).values():
        assert len(table_of(table.markdown())) == 2 + len(table.rows)


@pytest.mark.parametrize(("attention", "verdict"), [(1.0, "saves nothing"), (1.2, "saves 15.5 %")])
def test_the_note_follows_the_numbers(attention, verdict):
    counts = COUNTS.copy()
    columns = ["macs_per_second_4s", "macs_per_second_10s"]
    counts.loc[counts["model"] == CONFORMER, columns] *= attention
    note = spectral.costs_note(spectral.costs(PRINTED, counts))
    assert f"the advanced Mamba {verdict} against the Conformer on 4 s" in note


def test_the_models_are_even_where_the_note_says():
    note = spectral.costs_note(COSTS.reset_index())
    seconds = float(note.partition("even at ")[2].partition(" s")[0])
    row = COSTS.loc[CONFORMER]
    slope = (row["gmacs_10s"] - row["gmacs_4s"]) / 6
    even = row["gmacs_4s"] + slope * (seconds - 4)
    assert even == pytest.approx(COSTS.loc[ADVANCED, "gmacs_4s"], abs=0.05 * slope)


def add_rows(folder: Path, test_set: str, checkpoint: str, pesq_wb: list[float]) -> Path:
    """A row per file, as `speechlab evaluate` writes them."""
    scores = dict.fromkeys(spectral.SCORES.values(), 0.5) | {"pesq_wb": pesq_wb}
    path = folder / "metrics" / test_set / f"{checkpoint}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(scores).to_csv(path, index=False)
    return path


def shown_scores(results: Path) -> list[list[str]]:
    return table_of(spectral.tables(RESULTS, [results])["spectral_scores"].grid())


def test_scores_say_what_was_measured_and_why_not(tmp_path):
    part, whole = reversed(spectral.TEST_SETS)
    add_rows(tmp_path, part, "SEMamba_advanced", [1.0])
    add_rows(tmp_path, whole, "SEMamba_advanced", [3.5, 3.6])
    add_rows(tmp_path, part, "noisy", [2.0, float("nan"), 3.0])
    said = {row[0]: row[-1] for row in shown_scores(tmp_path)}
    ours = "PESQ-WB 3.55, CSIG 0.50, CBAK 0.50, COVL 0.50, STOI 0.50, on 2 of 824 files"
    assert said[ADVANCED] == ours
    assert said["noisy"].startswith("PESQ-WB 2.50,") and said["noisy"].endswith("1 failed")
    assert said["MP-SENet"] == "not measured: no weights here"
    assert said[CAUSAL] == "not measured: no weights are published"
    assert shown_scores(tmp_path / "no")[2][-1] == "not measured: no test set here"


@pytest.mark.parametrize(
    ("module", "table"),
    [(spectral, "semamba_voicebank_demand"), (separation, "sepmamba_wsj0_2mix")],
)
def test_what_is_missing_is_named(tmp_path, module, table):
    with pytest.raises(UserError, match=rf"{table}\.csv: no such table; restore"):
        module.tables(tmp_path)
    shutil.copytree(RESULTS / "published", tmp_path / "published")
    with pytest.raises(UserError, match=rf"{module.COUNTS}: no such table; .*benchmarks\.macs"):
        module.tables(tmp_path)


def test_missing_columns_are_named(tmp_path):
    path = add_rows(tmp_path, spectral.TEST_SETS[0], "noisy", [2.0])
    pd.read_csv(path).drop(columns="csig_int16").to_csv(path, index=False)
    with pytest.raises(UserError, match=r"noisy\.csv: lacks the columns csig_int16; run"):
        spectral.tables(RESULTS, [tmp_path])


def test_rows_of_two_folders_are_read_and_the_first_counts(tmp_path):
    """A study adds to the committed rows in a folder of its own and replaces none of them."""
    committed, local, whole = tmp_path / "a", tmp_path / "b", spectral.TEST_SETS[0]
    add_rows(committed, whole, "SEMamba_advanced", [3.5])
    add_rows(local, whole, "SEMamba_advanced", [1.5])
    add_rows(local, whole, "noisy", [2.0])
    scores = spectral.scores(PRINTED, committed, local).set_index("model")["pesq_wb"]
    assert scores[ADVANCED] == 3.5 and scores["noisy"] == 2.0
