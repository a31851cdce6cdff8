"""A committed number is a published one, unchanged, or comes from a committed row per file."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from speechlab.data.test_sets import TEST_SETS
from speechlab.errors import UserError
from speechlab.report import cleanumamba, paper
from speechlab.report.markdown import PaperTable, per_file
from tests.support.warm import ROOT

PUBLISHED = ROOT / "results" / "published"
ABLATION = cleanumamba.published_table("ablation", PUBLISHED)
PRUNING = cleanumamba.published_table("pruning", PUBLISHED)
ALLOWED = {"pesq_wb": 0.02, "pesq_nb": 0.02, "stoi_percent": 0.15}  # between published and ours


def add_run(
    folder: Path, name: str, n_params: int | None, pesq_wb: list[float], **settings: object
) -> None:
    """A per-file CSV and its settings as `speechlab evaluate` writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"file": [f"fileid_{i}" for i in range(len(pesq_wb))], "seconds": 10.0}
    rows |= {"pesq_wb": pesq_wb, "pesq_nb": 2.5, "stoi": 0.9512}
    pd.DataFrame(rows | {"failed": ""}).to_csv(folder / f"{name}.csv", index=False)
    about = {
        "test_set": cleanumamba.PUBLISHED_ON,
        "quantize": "int16",
        "versions": {"pesq": "0.0.4"},
    }
    about |= {} if n_params is None else {"n_params": n_params}
    (folder / f"{name}.json").write_text(json.dumps(about | settings))


@pytest.fixture
def folder(tmp_path):
    """Five runs: a mixer, three pruned models (one of no published size), and the noisy files."""
    folder = tmp_path / "metrics" / "dns2020_no_reverb"
    add_run(folder, "Experiment_CleanU_Mamba", 441_601, [2.0, 2.4, 2.9])
    add_run(folder, "CleanUMamba-3N-E8_pruned-500K", 491_655, [2.4, 2.5, 2.4])
    add_run(folder, "CleanUMamba-3N-E6_pruned-500k", 456_659, [2.2, 2.3, 2.2])
    add_run(folder, "CleanUMamba-3N-E8_pruned-ours", 300_000, [2.2, 2.3, 2.4])
    add_run(folder, "noisy", None, [1.5, 1.6, 1.7])
    return folder


def test_published_tables_are_the_published_ones(shared):
    # from the text of papers, see its README
    ours = {"baselines_voicebank_demand.csv", "umambanet_sizes.csv"}
    paths = {path.name: path for path in PUBLISHED.glob("*.csv")}
    assert ours < paths.keys()
    for name in paths.keys() - ours:
        assert paths[name].read_bytes() == (shared / "published" / name).read_bytes()


def test_sizes_are_numbers():
    assert ABLATION["params_published"].tolist() == [442_000, 451_000, 443_000, 443_000]
    assert PRUNING["params_published"].iloc[[0, 6]].tolist() == [41_370_000, 990_000]
    with pytest.raises(UserError, match="no such table"):
        cleanumamba.published_table("nothing", PUBLISHED)


def test_the_published_test_set_is_the_one_we_know():
    known = TEST_SETS[cleanumamba.TEST_SET]
    assert (known.title, known.n_files) == (cleanumamba.PUBLISHED_ON, cleanumamba.N_PUBLISHED_ON)


def test_a_run_is_its_mean_with_an_interval(folder):
    run = cleanumamba.reproduced(folder).set_index("checkpoint").loc["Experiment_CleanU_Mamba"]
    assert run["pesq_wb"] == pytest.approx(np.mean([2.0, 2.4, 2.9]))
    assert run["pesq_wb_low"] < run["pesq_wb"] < run["pesq_wb_high"]
    assert run["stoi_percent"] == pytest.approx(95.12)
    assert (run["n"], run["n_failed"], run["n_params"]) == (3, 0, 441_601)


def test_failures_are_counted_and_never_averaged(folder):
    add_run(folder, "noisy", None, [1.5, float("nan"), 1.7])
    runs = cleanumamba.reproduced(folder)
    noisy = runs.set_index("checkpoint").loc["noisy"]
    assert noisy["pesq_wb"] == pytest.approx(1.6)
    assert (noisy["n"], noisy["n_failed"]) == (3, 1)
    assert "1 files failed" in cleanumamba.note(runs)


def test_a_folder_that_is_missing_has_no_runs(tmp_path):
    runs = cleanumamba.reproduced(tmp_path / "nothing")
    assert runs.empty
    assert "nothing is reproduced" in cleanumamba.note(runs)
    assert len(cleanumamba.ablation(ABLATION, runs)) == 5
    assert len(cleanumamba.pruning(PRUNING, runs)) == len(PRUNING)


def test_new_runs_stand_beside_the_committed_and_replace_none(folder, tmp_path):
    """A study reads both folders and writes to its own."""
    results, local = tmp_path, tmp_path / "local"
    own = local / "metrics" / folder.name
    add_run(own, "Experiment_CleanU_Mamba", 441_601, [1.0, 1.0])
    add_run(own, "Experiment_CleanU_LSTM", 443_009, [2.0, 2.2])
    runs = cleanumamba.reproduced(folder, own)
    means = runs.set_index("checkpoint")["pesq_wb"]
    assert len(means) == 6 and means.index.is_monotonic_increasing
    assert means["Experiment_CleanU_Mamba"] == pytest.approx(2.4333, abs=1e-4)
    assert means["Experiment_CleanU_LSTM"] == pytest.approx(2.1)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    tables = cleanumamba.tables(ROOT / "results", [results, local], folder.name)
    written = paper.write(tables, local)
    assert len(written) == 6 and all(local in path.parents for path in written)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert per_file("noisy", folder.name, [local, results]).parent == folder
    assert per_file("none", folder.name, [local, results]) is None


def test_rows_of_another_origin_are_told(folder):
    (folder / "noisy.json").unlink()
    with pytest.raises(UserError, match=r"noisy\.csv: lacks noisy\.json"):
        cleanumamba.reproduced(folder)
    pd.DataFrame({"file": ["a"], "pesq_wb": 1.0}).to_csv(folder / "noisy.csv", index=False)
    with pytest.raises(UserError, match="lacks the columns pesq_nb, stoi"):
        cleanumamba.reproduced(folder)


def test_ablation_puts_ours_beside_the_published(folder):
    table = cleanumamba.ablation(ABLATION, cleanumamba.reproduced(folder)).set_index("mixer")
    assert list(table.index) == [*cleanumamba.MIXERS, "noisy"]
    mamba = table.loc["mamba"]
    assert (mamba["params_published"], mamba["n_params"]) == (442_000, 441_601)
    assert mamba["pesq_wb_published"] == 2.42
    assert mamba["pesq_wb"] == 2.433
    assert mamba["pesq_wb_difference"] == 0.013
    assert mamba["stoi_percent_difference"] == 0.02
    assert table.loc["mamba2", ["pesq_wb_published", "pesq_wb"]].isna().all()
    assert pd.isna(table.loc["lstm", "pesq_wb"]) and table.loc["lstm", "pesq_wb_published"] == 2.32
    assert pd.isna(table.loc["noisy", "pesq_wb_difference"])


def test_pruned_runs_find_the_row_of_their_size(folder):
    table = cleanumamba.pruning(PRUNING, cleanumamba.reproduced(folder))
    assert len(table) == len(PRUNING) + 2
    found = table.dropna(subset="checkpoint").set_index("checkpoint")
    assert found.loc["CleanUMamba-3N-E8_pruned-500K", "params_published"] == 492_000
    assert found.loc["CleanUMamba-3N-E6_pruned-500k", "params_published"] == 457_000
    ours = found.loc["CleanUMamba-3N-E8_pruned-ours"]
    assert pd.isna(ours["params_published"]) and ours["family"] == "E8"
    assert list(found.index[-2:]) == ["CleanUMamba-3N-E8_pruned-ours", "noisy"]
    assert table["pesq_wb_published"].notna().sum() == len(PRUNING)


def test_a_full_model_is_not_taken_for_the_high_one(folder):
    add_run(folder, "CleanUMamba-3N-E8-high", 41_376_385, [3.0, 3.1, 3.0])
    table = cleanumamba.pruning(PRUNING, cleanumamba.reproduced(folder)).set_index("checkpoint")
    assert table.loc["CleanUMamba-3N-E8-high", "pesq_wb_published"] == 3.017


def test_other_sets_have_no_difference(folder):
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace(cleanumamba.PUBLISHED_ON, "VoiceBank-DEMAND test"))
    runs = cleanumamba.reproduced(folder)
    for table in (cleanumamba.ablation(ABLATION, runs), cleanumamba.pruning(PRUNING, runs)):
        differences = table[[f"{metric}_difference" for metric in cleanumamba.METRICS]]
        assert differences.isna().all(axis=None)
    said = "VoiceBank-DEMAND test, 3 files; the published columns are on DNS"
    assert said in cleanumamba.note(runs)


def test_the_note_names_set_units_and_packages(folder):
    note = cleanumamba.note(cleanumamba.reproduced(folder))
    assert "DNS-2020 synthetic no_reverb, incomplete, 3 of 150 files" in note
    assert "MOS-LQO" in note and "per cent" in note and "pesq 0.0.4" in note


@pytest.mark.parametrize("intervals", [True, False])
def test_markdown_is_a_table(folder, intervals):
    runs = cleanumamba.reproduced(folder)
    rows = cleanumamba.ablation(ABLATION, runs)
    text = PaperTable(rows, cleanumamba.columns(rows, intervals), "").markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 6
    assert ("[" in lines[2]) is intervals
    assert lines[2].startswith("| Mamba | 441,601 | 2.42 | 2.433")
    assert "nan" not in text.lower()


def test_committed_results_meet_the_published():
    """What is committed for the published test set is complete and within the rounding of print."""
    runs = cleanumamba.reproduced(ROOT / "results" / "metrics" / cleanumamba.TEST_SET)
    assert (runs["n"] == cleanumamba.N_PUBLISHED_ON).all() and (runs["n_failed"] == 0).all()
    for table in cleanumamba.tables(ROOT / "results").values():
        for metric, allowed in ALLOWED.items():
            assert not (table.rows[f"{metric}_difference"].abs() > allowed).any(), metric
