"""Sizes and MACs of the separators are counted; what is printed stays printed, measured or not."""

import shutil

import pandas as pd
import pytest

from speechlab.report import separation
from speechlab.report.markdown import PaperTable
from speechlab.report.separation import BUILT, COUNTED, MAIN, RIVAL, UMAMBANET
from tests.report.test_spectral import table_of
from tests.support.warm import ROOT

RESULTS = ROOT / "results"
PRINTED = separation.published(RESULTS / "published")
PAPER = PRINTED["sepmamba_wsj0_2mix"]
COUNTS = pd.read_csv(RESULTS / separation.COUNTS)
SHOWN = separation.umambanet(PRINTED, COUNTS).set_index("model")


def test_every_model_is_counted_once_and_every_name_is_printed():
    assert COUNTS["model"].tolist() == list(COUNTED)
    assert BUILT.keys() <= set(PAPER["model"]) and PAPER["model"].is_unique
    names = set(pd.concat([PRINTED[name] for name in separation.PRINTED[1:]])["model"])
    known = {separation.PRINTED_AS.get(name, name) for name in names}
    assert known <= UMAMBANET.keys()


def test_sizes_are_the_published_ones():
    """To the printed digits but Conv-TasNet's, whose 5.1M count layers that nothing reads."""
    table = separation.sepmamba(PAPER, COUNTS).dropna(subset=["network", "params_published"])
    sizes = table.set_index("network")[["params_published", "n_params"]].astype(float)
    change = (sizes["n_params"] / sizes["params_published"] - 1).abs()
    assert (change < 0.025).all() and len(change) == len(BUILT)


def rows(**changes: float) -> pd.DataFrame:
    """Two rounds of the benchmark, twice as slow in the second; SepFormer does not fit."""
    costs = {"sepmamba_s": 100.0, "dprnn": 300.0, "sepformer": float("nan")}
    made = [
        {"round": number, "device": "cpu", "threads": 1, "seconds": 4, "pass": "forward"}
        | {"model": model, "cpu_ms": cost * (1 + number), "wall_ms": 1e6, "peak_mb": cost}
        | {"reason": "out of memory" if model == "sepformer" else ""}
        for number in range(2)
        for model, cost in costs.items()
    ]
    return pd.DataFrame(made).assign(**changes)


def test_ratios_are_of_one_round_whatever_the_machine_does():
    table = separation.measured(rows()).set_index("model")
    assert table["ms"]["dprnn"] == 450 and table["ms_ratio"]["dprnn"] == 3
    assert table["ms_ratio"]["sepmamba_s"] == table["peak_ratio"]["sepmamba_s"] == 1
    assert table["reason"].tolist() == ["", "", "out of memory"]
    slow = separation.measured(rows(threads=2)).set_index("model")
    assert slow["ms"]["dprnn"] == 1e6  # CPU time of two threads is not what one waits for


def cells(text: str) -> dict[str, list[str]]:
    return {line[0]: line[1:] for line in table_of(text)}


def test_every_printed_row_stays_measured_or_not():
    for table in (None, rows(), rows(seconds=16)):
        made = separation.sepmamba(PAPER, COUNTS, table)
        note = separation.sepmamba_note(made)
        found = cells(PaperTable(made, separation.SEPMAMBA_COLUMNS, note).grid())
        assert list(found)[2:-2] == PAPER["model"].tolist()
        assert found["TF-GridNet (L)"][:5] == ["–", "23.4", "23.5", "14.4M", "–"]
        here = [found[name][8] for name in ("DualPathRNN", "SepFormer", "Conv-TasNet", "SP-Mamba")]
        if table is not None and (table["seconds"] == 4).all():
            assert here == ["450", "out of memory", "–", "–"]
            assert "on 4 s, on one CPU thread" in note
        else:
            assert here == ["–"] * 4
            assert "has not been run here yet" in note


def test_ratios_stand_beside_the_published():
    table = separation.sepmamba(PAPER, COUNTS, rows()).set_index("model")
    found = table.loc["DualPathRNN"]
    assert found["forward_ratio_published"] == round(101.83 / 17.84, 3)
    assert found["memory_ratio_published"] == round(7.31 / 2.0, 3)
    assert found["forward_ratio"] == found["memory_ratio"] == 3
    assert (found["forward_ms"], found["memory_gb"]) == (450, 0.3)


def test_umambanet_is_compared_with_the_dprnn_of_its_paper():
    assert SHOWN.loc[MAIN, "over_dprnn_db"] == pytest.approx(0.91)
    assert SHOWN.loc[RIVAL, "gmacs_published"] == 23.9 and SHOWN.loc[MAIN, "gmacs_published"] == 2.5
    assert SHOWN["si_snri_db"].notna().sum() == 5
    counts = SHOWN["gmacs_4s"].astype(float)
    assert counts.filter(like="F = ").sort_values().index[-1] == "U-Mamba-Net, F = 192"
    without = counts.filter(like="without")
    assert (without < counts[MAIN]).all()
    assert counts["U-Mamba-Net, F = 128, two U-Nets"] > counts[MAIN]
    text = separation.tables(RESULTS)["umambanet_libri2mix"].grid()
    assert list(cells(text))[2:] == list(UMAMBANET)


def test_the_notes_follow_the_numbers():
    counts = COUNTS.set_index("model")["macs_per_second_4s"]
    ratio = counts["sepformer"] / counts["sepmamba_s"]
    note = separation.sepmamba_note(separation.sepmamba(PAPER, COUNTS))
    assert "takes 20.7 times" in note and f"{ratio:.1f} times as counted here" in note
    ratio = counts["dprnn_16"] / counts["umambanet_f128"]
    note = separation.umambanet_note(SHOWN.reset_index())
    assert "takes 9.6 times" in note and f"{ratio:.1f} times as counted here" in note


def test_times_are_shown_once_measured(tmp_path):
    shutil.copytree(RESULTS / "published", tmp_path / "published")
    (tmp_path / "benchmarks").mkdir()
    COUNTS.to_csv(tmp_path / separation.COUNTS, index=False)
    first, second = (table.markdown() for table in separation.tables(tmp_path).values())
    assert "has not been run" in first
    rows().to_csv(tmp_path / separation.MEASURED, index=False)
    timed, same = (table.markdown() for table in separation.tables(tmp_path).values())
    assert timed != first and same == second
