"""Figures of separation: a table in, a figure out, as `report.figures`."""

import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from speechlab.report.figures import COLOURS, LABELS, STYLE

APART = ("pitch_apart", "level_apart_db")


def by_likeness(table: pd.DataFrame, system: str, metric: str = "si_sdri") -> Figure:
    """What each mixture gains against how far apart its two talkers are; 0 is the mixture itself.

    table: a row per mixture with the metric and APART; NaN is left out.
    """
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 2.7))
        panels = figure.subplots(1, len(APART), sharey=True)
        for axes, name in zip(panels, APART, strict=True):
            axes.plot(table[name], table[metric], "o", color=COLOURS[system], alpha=0.7)
            axes.axhline(0, color=COLOURS["mixture"], linestyle=(0, (4, 3)), linewidth=1)
            axes.set(xlabel=LABELS[name])
            axes.set_xlim(left=0)
        panels[0].set_ylabel(LABELS[metric])
    return figure
