"""Figures come from the table alone, carry units and give the same bytes every time."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from speechlab import plots

METRICS = ("pesq_wb", "pesq_nb", "stoi_percent")


def with_metrics(table: pd.DataFrame, published: bool = True, run: bool = True) -> pd.DataFrame:
    n = len(table)
    for metric in METRICS:
        table[f"{metric}_published"] = np.linspace(2, 3, n) if published else np.nan
        for end, offset in (("", 0.0), ("_low", -0.1), ("_high", 0.1)):
            table[metric + end] = np.linspace(2, 3, n) + offset if run else np.nan
    return table


def ablation(**columns: bool) -> pd.DataFrame:
    mixers = ["mamba", "mamba2", "mamba_s4", "mha", "lstm", "noisy"]
    return with_metrics(pd.DataFrame({"mixer": mixers}), **columns)


def pruning(**columns: bool) -> pd.DataFrame:
    rows = {
        "family": ["E8", "E8", "E8", "E6", "E6", None],
        "variant": ["full", "high", "pruned", "high", "pruned", "noisy"],
        "params_published": [41_370_000, 41_370_000, 492_000, 27_210_000, 457_000, None],
        "n_params": [41_376_385, 41_376_385, 491_655, 27_211_393, 456_659, None],
    }
    table = pd.DataFrame(rows).astype({"params_published": "Int64", "n_params": "Int64"})
    return with_metrics(table, **columns)


LEVELS = {
    name: pd.DataFrame(values, index=np.linspace(0, 8000, 5), columns=np.linspace(0, 1, 4))
    for name, values in {"noisy": np.eye(5, 4) * -20, "enhanced": np.eye(5, 4) * -40 - 10}.items()
}
FIGURES = {
    "mixers": lambda: plots.mixers(ablation()),
    "pesq_against_parameters": lambda: plots.pesq_against_parameters(pruning()),
    "spectrograms": lambda: plots.spectrograms(LEVELS),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_units_on_every_axis(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    named = [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel())]
    assert all("(" in text or text == "parameters" for text in named if text)
    assert sum(map(bool, named)) >= 2


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_table_gives_the_same_bytes(name, suffix, tmp_path):
    files = [plots.save(FIGURES[name](), tmp_path / str(i) / f"{name}{suffix}") for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [path.name for path in files[0].parent.iterdir()] == [f"{name}{suffix}"]


@pytest.mark.parametrize("columns", [{"run": False}, {"published": False}])
def test_a_half_empty_table_is_drawn(columns, tmp_path):
    plots.save(plots.mixers(ablation(**columns)), tmp_path / "a.svg")
    plots.save(plots.pesq_against_parameters(pruning(**columns)), tmp_path / "b.svg")


def test_the_callers_table_stays_as_it_is():
    for make, draw in ((ablation, plots.mixers), (pruning, plots.pesq_against_parameters)):
        table = make()
        draw(table)
        pd.testing.assert_frame_equal(table, make())


def test_published_and_reproduced_are_drawn_where_they_are():
    axes = plots.pesq_against_parameters(pruning()).axes[0]
    drawn = {tuple(point) for line in axes.lines for point in line.get_xydata().astype(float)}
    table = pruning().dropna()
    for x, y in (("params_published", "pesq_wb_published"), ("n_params", "pesq_wb")):
        assert set(zip(table[x].astype(float), table[y], strict=True)) <= drawn
    assert any("3.00" in text.get_text() for text in axes.texts)  # the level of the noisy files


def test_spectrograms_share_one_scale_below_the_loudest():
    figure = plots.spectrograms(LEVELS, span_db=50)
    limits = {axes.images[0].get_clim() for axes in figure.axes if axes.images}
    assert limits == {(-50.0, 0.0)}
    assert [axes.get_title("left") for axes in figure.axes[:2]] == ["noisy", "enhanced"]


def test_every_architecture_has_one_colour_and_a_label():
    assert set(plots.COLOURS) <= set(plots.LABELS)
    mixers = ("mamba", "mamba2", "mamba_s4", "mha", "lstm")
    assert len({to_rgb(plots.COLOURS[mixer]) for mixer in mixers}) == len(mixers)
