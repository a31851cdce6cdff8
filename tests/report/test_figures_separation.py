"""Figures of separation come from the table alone and carry units."""

import numpy as np
import pandas as pd
import pytest

from speechlab.report import figures, figures_separation
from speechlab.study import experiments, runner
from speechlab.study.experiments import EXPERIMENTS


def gained() -> pd.DataFrame:
    values = {"pitch_apart": [1.0, np.nan, 12.0], "level_apart_db": [0.0, 2.0, 4.5]}
    return pd.DataFrame(values | {"si_sdri": [-1.0, 3.0, 7.0]}, index=["a", "b", "c"])


def test_every_mixture_is_a_dot_where_it_is():
    table = gained()
    figure = figures_separation.by_likeness(table, "sepmamba")
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "talkers apart in pitch (semitones)",
        "talkers apart in level (dB)",
    ]
    assert figure.axes[0].get_ylabel() == "SI-SDRi (dB)"
    drawn = figure.axes[1].lines[0].get_xydata().tolist()
    assert drawn == table[["level_apart_db", "si_sdri"]].to_numpy().tolist()
    pd.testing.assert_frame_equal(table, gained())


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_table_gives_the_same_bytes(suffix, tmp_path):
    made = [figures_separation.by_likeness(gained(), "umambanet") for _ in range(2)]
    files = [figures.save(f, tmp_path / f"{i}{suffix}") for i, f in enumerate(made)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_is_trained_has_a_colour():
    of_talkers = {e.system for e in EXPERIMENTS.values() if experiments.n_sources(e) > 1}
    assert {"mixture"} | of_talkers <= figures.COLOURS.keys() & figures.LABELS.keys()
    assert {"sepmamba", "umambanet"} <= runner.TRAINED.keys()
