"""Figures of spectra, phases and metric GANs: a table in, a figure out.

Spectra are tables (F, L): frequencies in Hz as index, seconds as columns.
"""

from collections.abc import Mapping
from math import pi

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from speechlab.report.figures import COLOURS, LABELS, STYLE, colour_bar, picture

UNITS = {"phase": "(rad)", "unscored": "(share)"}  # of terms of a metric GAN; others have none
N_COLUMNS = 3


def terms(history: pd.DataFrame, colour: str = COLOURS["noisy"]) -> Figure:
    """Every term of a loss over the steps, a panel each, from 0.

    history: step, and the terms in columns "<phase>.<term>"; other columns are ignored.
    """
    names = [name for name in history if "." in name and not name.endswith(".grad_norm")]
    n_rows = max(1, -(-len(names) // N_COLUMNS))
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 0.5 + 1.25 * n_rows))
        panels = figure.subplots(n_rows, N_COLUMNS, sharex=True, squeeze=False).ravel()
        for axes, name in zip(panels, names, strict=False):
            phase, _, term = name.partition(".")
            axes.plot(history["step"], history[name], color=colour)
            axes.set_title(f"{phase}: {term}", fontsize=8)
            axes.set_ylabel(UNITS.get(term, ""))
            axes.set_ylim(0, max(0.1, 1.05 * history[name].max()))
        for axes in panels[len(names) :]:
            axes.remove()
        for axes in panels[max(0, len(names) - N_COLUMNS) : len(names)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("training step")
    return figure


def magnitudes(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Magnitudes below each other, each with its own scale from 0 to its maximum: title -> table.

    So brightness shows the share in a mean square over the bins.
    """
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 0.6 + 1.5 * len(tables)))
        panels = figure.subplots(len(tables), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, table) in zip(panels, tables.items(), strict=True):
            image = picture(axes, title, table, (0, table.to_numpy().max()))
            axes.set_ylabel("frequency (kHz)")
            colour_bar(image, [axes], "magnitude")
        panels[-1].set_xlabel("time (s)")
    return figure


def phases(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Wrapped phases side by side in cyclic colours; NaN is white."""
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 2.5))
        panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
        for axes, (title, table) in zip(panels, tables.items(), strict=True):
            image = picture(axes, title, table, (-pi, pi), cmap="twilight")
            axes.set_xlabel("time (s)")
        panels[0].set_ylabel("frequency (kHz)")
        bar = colour_bar(image, panels.tolist(), "phase (rad)", ticks=[-pi, 0, pi])
        bar.ax.set_yticklabels(["-π", "0", "π"])
    return figure


def phase_errors(errors: pd.DataFrame, n_bins: int = 36) -> Figure:
    """Histograms of phase errors.

    errors: radians in -π to π, a column per system, a name in LABELS.
    """
    edges = np.linspace(-pi, pi, n_bins + 1)
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 2.5))
        axes = figure.add_subplot()
        for name in errors:
            count, _ = np.histogram(errors[name].dropna(), edges)
            share = 100 * count / max(1, count.sum())
            axes.stairs(share, edges, color=COLOURS[name], label=LABELS[name], linewidth=1.5)
        chance = {"color": "#BBBBBB", "linestyle": (0, (4, 3)), "linewidth": 1}
        axes.axhline(100 / n_bins, label="chance level", **chance)
        axes.set_xticks([-pi, -pi / 2, 0, pi / 2, pi], ["-π", "-π/2", "0", "π/2", "π"])
        axes.set(xlabel="phase error (rad)", ylabel="share of the bins (%)")
        figure.legend(loc="outside upper center", ncols=len(errors.columns) + 1)
    return figure
