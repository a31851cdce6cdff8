"""Figures of spectra and of the terms of a metric GAN; `test_figures` checks units and bytes."""

from math import pi

import numpy as np
import pandas as pd
import pytest

from speechlab.report import figures_spectral

TABLE = pd.DataFrame(np.eye(5, 4), index=np.linspace(0, 8000, 5), columns=np.linspace(0, 1, 4))
PHASES = pd.DataFrame(np.full((5, 4), np.nan), index=TABLE.index, columns=TABLE.columns)


def history() -> pd.DataFrame:
    names = ("discriminator", "discriminator.clean", "discriminator.grad_norm", "generator.phase")
    return pd.DataFrame({"step": [1, 2], "lr": 1.0} | {name: [3.0, 2.0] for name in names})


def errors() -> pd.DataFrame:
    return pd.DataFrame({"noisy": [0.01, 0.02, -3.1, np.nan], "semamba_advanced": [0.01] * 4})


FIGURES = {
    "terms": lambda: figures_spectral.terms(history()),
    "magnitudes": lambda: figures_spectral.magnitudes({"as it is": TABLE, "raised": TABLE**0.3}),
    "phases": lambda: figures_spectral.phases({"noisy": TABLE, "clean": PHASES}),
    "phase_errors": lambda: figures_spectral.phase_errors(errors()),
}


def scales(figure) -> list[tuple[float, float]]:
    """Values of the first and last colour of every panel."""
    return [axes.collections[0].get_clim() for axes in figure.axes if axes.get_title("left")]


def test_terms_are_drawn_and_no_other_column():
    panels = figures_spectral.terms(history()).axes
    titles = [axes.get_title("left") for axes in panels]
    assert titles == ["discriminator: clean", "generator: phase"]
    assert [axes.get_ylabel() for axes in panels] == ["", "(rad)"]
    assert panels[0].lines[0].get_xydata().tolist() == [[1, 3], [2, 2]]
    assert all(axes.get_ylim()[0] == 0 for axes in panels)


def test_magnitudes_have_a_scale_each_and_phases_one_for_the_whole_circle():
    assert scales(FIGURES["magnitudes"]()) == [(0, 1), (0, 1)]
    assert set(scales(FIGURES["phases"]())) == {(-pi, pi)}


def test_phase_errors_are_shares_of_what_there_is():
    [axes] = FIGURES["phase_errors"]().axes
    for stairs in axes.patches:
        assert stairs.get_data().values.sum() == pytest.approx(100)
