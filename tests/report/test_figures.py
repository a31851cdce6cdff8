"""Figures come from the table alone, carry units and give the same bytes every time."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from speechlab.report import figures
from speechlab.study import runner
from speechlab.study.experiment import n_sources
from speechlab.study.experiments import EXPERIMENTS
from tests.report import test_figures_spectral

METRICS = ("pesq_wb", "pesq_nb", "stoi_percent")
UNITLESS = {"parameters", "training step", "loss", "magnitude"}


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
N_STEPS = [25, 50, 75, 100]


def history(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"step": N_STEPS, "loss": [3.0, 2.0, 1.5, 1.4], **columns})


def validations() -> pd.DataFrame:
    return pd.DataFrame({"step": [50, 100], "si_sdr": [5.5, 8.5], "pesq_wb": [1.3, 1.5]})


def scores_by_snr(systems: tuple[str, ...] = ("noisy", "wiener", "cleanumamba")) -> pd.DataFrame:
    rows = [
        {"system": system, "snr_db": snr, "si_sdr": snr + 3 * i, "pesq_wb": 1.2 + i / 2}
        for i, system in enumerate(systems)
        for snr in (-2.5, 2.5, 7.5)
    ]
    table = pd.DataFrame(rows)
    for metric in ("si_sdr", "pesq_wb"):
        table[f"{metric}_low"], table[f"{metric}_high"] = table[metric] - 0.5, table[metric] + 0.5
    return table


def examples() -> pd.DataFrame:
    return pd.DataFrame({"snr_db": np.linspace(-5, 15, 40), "level_db": np.linspace(-35, -15, 40)})


def gained() -> pd.DataFrame:
    values = {"pitch_apart": [1.0, np.nan, 12.0], "level_apart_db": [0.0, 2.0, 4.5]}
    return pd.DataFrame(values | {"si_sdri": [-1.0, 3.0, 7.0]}, index=["a", "b", "c"])


FIGURES = {
    "distributions": lambda: figures.distributions(examples()),
    "training": lambda: figures.training(history(), validations(), {"noisy": 5.3, "wiener": 8.0}),
    "by_snr": lambda: figures.by_snr(scores_by_snr()),
    "mixers": lambda: figures.mixers(ablation()),
    "pesq_against_parameters": lambda: figures.pesq_against_parameters(pruning()),
    "spectrograms": lambda: figures.spectrograms(LEVELS),
    "by_likeness": lambda: figures.by_likeness(gained(), "sepmamba"),
    **test_figures_spectral.FIGURES,
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_units_on_every_axis_and_the_same_bytes_every_time(name, tmp_path):
    made = [FIGURES[name]() for _ in range(2)]
    assert isinstance(made[0], Figure)
    named = [text for axes in made[0].axes for text in (axes.get_xlabel(), axes.get_ylabel())]
    assert all("(" in text for text in named if text and text not in UNITLESS)
    assert sum(map(bool, named)) >= 2
    check_bytes(made, tmp_path, ".svg")


def check_bytes(made, folder, suffix):
    """Of two figures, each saved in a folder of its own."""
    files = [figures.save(made[i], folder / str(i) / f"a{suffix}") for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [path.name for path in (folder / "0").iterdir()] == [f"a{suffix}"]


def test_an_image_has_the_same_bytes_every_time(tmp_path):
    check_bytes([FIGURES["mixers"]() for _ in range(2)], tmp_path, ".png")


@pytest.mark.parametrize("columns", [{"run": False}, {"published": False}])
def test_a_half_empty_table_is_drawn(columns, tmp_path):
    figures.save(figures.mixers(ablation(**columns)), tmp_path / "a.svg")
    figures.save(figures.pesq_against_parameters(pruning(**columns)), tmp_path / "b.svg")


def test_the_callers_table_stays_as_it_is():
    for make, draw in (
        (ablation, figures.mixers),
        (pruning, figures.pesq_against_parameters),
        (examples, figures.distributions),
        (scores_by_snr, figures.by_snr),
        (gained, lambda table: figures.by_likeness(table, "umambanet")),
    ):
        table = make()
        draw(table)
        pd.testing.assert_frame_equal(table, make())


def test_published_and_reproduced_are_drawn_where_they_are():
    axes = figures.pesq_against_parameters(pruning()).axes[0]
    drawn = {tuple(point) for line in axes.lines for point in line.get_xydata().astype(float)}
    table = pruning().dropna()
    for x, y in (("params_published", "pesq_wb_published"), ("n_params", "pesq_wb")):
        assert set(zip(table[x].astype(float), table[y], strict=True)) <= drawn
    assert any("3.00" in text.get_text() for text in axes.texts)  # the level of the noisy files


def test_spectrograms_share_one_scale_below_the_loudest():
    figure = figures.spectrograms(LEVELS, span_db=50)
    assert set(test_figures_spectral.scales(figure)) == {(-50.0, 0.0)}
    assert [axes.get_title("left") for axes in figure.axes[:2]] == ["noisy", "enhanced"]


def test_spectrograms_fill_the_columns_row_by_row():
    figure = figures.spectrograms({**LEVELS, "clean": LEVELS["noisy"]}, n_columns=2)
    panels = [axes for axes in figure.axes if axes.get_title("left")]
    places = [(round(axes.get_position().y0, 2), axes.get_position().x0) for axes in panels]
    assert [axes.get_title("left") for axes in panels] == ["noisy", "enhanced", "clean"]
    assert places[0][0] == places[1][0] > places[2][0]
    assert places[0][1] == places[2][1] < places[1][1]


def test_distributions_count_every_value_and_leave_out_what_is_missing():
    table = examples()
    table.loc[:9, "snr_db"] = np.nan
    panels = figures.distributions(table).axes
    assert [sum(bar.get_height() for bar in axes.patches) for axes in panels] == [30, 40]
    assert [axes.get_xlabel() for axes in panels] == ["SNR (dB)", "level of the mixture (dB)"]


def test_the_curves_of_a_training_are_drawn_where_they_are():
    losses, scores = figures.training(history(), validations(), {"noisy": 5.3, "wiener": 8.0}).axes
    assert losses.lines[0].get_xydata().tolist() == history()[["step", "loss"]].values.tolist()
    drawn = [line.get_xydata() for line in scores.lines]
    assert drawn[0].tolist() == validations()[["step", "si_sdr"]].values.tolist()
    assert [line[0, 1] for line in drawn[1:]] == [5.3, 8.0]
    assert any("Wiener filter: 8.0" in text.get_text() for text in scores.texts)


def test_a_training_that_has_only_begun_is_drawn(tmp_path):
    empty = pd.DataFrame()
    figures.save(figures.training(empty, empty, {}), tmp_path / "a.svg")
    figures.save(figures.training(history(), empty, {"noisy": 5.3}), tmp_path / "b.svg")


def test_scores_by_snr_have_a_panel_per_metric_and_a_colour_per_system():
    figure = figures.by_snr(scores_by_snr())
    assert [axes.get_ylabel() for axes in figure.axes] == ["SI-SDR (dB)", "PESQ-WB (MOS-LQO)"]
    for axes in figure.axes:
        colours = [line.get_color() for line in axes.lines]
        assert colours == [figures.COLOURS[name] for name in ("noisy", "wiener", "cleanumamba")]
        assert len(axes.collections) == 3  # the intervals of each
    [legend] = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["noisy, unprocessed", "Wiener filter", "CleanUMamba"]


def test_every_mixture_is_a_dot_where_it_is():
    axes = figures.by_likeness(gained(), "sepmamba").axes
    names = (
        "pitch difference of the speakers (semitones)",
        "level difference of the speakers (dB)",
    )
    assert tuple(panel.get_xlabel() for panel in axes) == names
    assert axes[0].get_ylabel() == "SI-SDRi (dB)"
    drawn = axes[1].lines[0].get_xydata().tolist()
    assert drawn == gained()[["level_apart_db", "si_sdri"]].to_numpy().tolist()


def test_every_separator_that_is_trained_has_a_colour():
    separators = {e.system for e in EXPERIMENTS.values() if n_sources(e) > 1}
    assert {"mixture"} | separators <= figures.COLOURS.keys() & figures.LABELS.keys()
    assert {"sepmamba", "umambanet"} <= runner.TRAINED.keys()


def test_every_mixer_has_a_colour_of_its_own():
    mixers = ("mamba", "mamba2", "mamba_s4", "mha", "lstm")
    assert len({to_rgb(figures.COLOURS[mixer]) for mixer in mixers}) == len(mixers)
