"""Figures of the study: a table in, a figure out. Nothing here computes or reads a result."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from speechlab.files import replacing

STYLE = str(Path(__file__).with_name("speechlab.mplstyle"))

# One colour per architecture, in every figure (Okabe and Ito's palette for all kinds of sight).
COLOURS = {
    "E8": "#0072B2",
    "E6": "#D55E00",
    "mamba": "#0072B2",
    "mamba2": "#56B4E9",
    "mamba_s4": "#009E73",
    "mha": "#D55E00",
    "lstm": "#CC79A7",
    "noisy": "#777777",
}
MARKERS = {"E8": "o", "E6": "s"}
RING = {"marker": "o", "markersize": 8, "markerfacecolor": "white"}
LABELS = {
    "mamba": "Mamba",
    "mamba2": "Mamba-2",
    "mamba_s4": "Mamba, S4 scan",
    "mha": "attention",
    "lstm": "LSTM",
    "E8": "E8, 48 ms look-ahead",
    "E6": "E6, 12 ms look-ahead",
    "noisy": "noisy, unprocessed",
    "pesq_wb": "PESQ-WB (MOS-LQO)",
    "pesq_nb": "PESQ-NB (MOS-LQO)",
    "stoi_percent": "STOI (%)",
}


def pesq_against_parameters(table: pd.DataFrame) -> Figure:
    """Quality against size of the pruned CleanUMamba: rings published, dots reproduced.

    table: rows of `tables.pruning`, with variant, family, params_published, n_params and
    pesq_wb_published, pesq_wb, pesq_wb_low, pesq_wb_high; the row "noisy" is the reference level.
    """
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 4.2))
        axes = figure.add_subplot()
        for family, rows in table.groupby("family", sort=False):
            _published_curve(axes, rows, family)
            _reproduced_points(axes, rows, family)
        _reference(axes, table.loc[table["variant"] == "noisy", "pesq_wb"])
        axes.set(xscale="log", xlim=(1.4e5, 9e7))
        axes.margins(y=0.08)
        axes.set(xlabel="parameters", ylabel=LABELS["pesq_wb"])
        axes.set_xticks([2e5, 5e5, 1e6, 2e6, 5e6, 1e7, 2e7, 5e7])
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(handles=_key(), loc="lower right", bbox_to_anchor=(1, 0.13))
    return figure


def _thousands(n: float, _: int) -> str:
    return f"{n / 1e6:g}M" if n >= 1e6 else f"{n / 1e3:g}K"


def _published_curve(axes: Axes, rows: pd.DataFrame, family: str) -> None:
    """The published models as rings; a line joins a parent with what was pruned from it."""
    colour, ring = COLOURS[family], RING | {"marker": MARKERS[family]}
    rows = rows.dropna(subset="pesq_wb_published").sort_values("params_published")
    full = rows["variant"] == "full"  # trained with another loss: a model on its own
    for part, line in ((rows[~full], "-"), (rows[full], "none")):
        x, y = part["params_published"], part["pesq_wb_published"]
        axes.plot(x, y, color=colour, linestyle=line, **ring)
    for _, row in rows[full].iterrows():
        _label(axes, row, f"{family}, full-band loss", colour, above=True)
    if (~full).any():
        above = family == "E8"  # the upper curve
        last = rows[~full].iloc[-2 if above else -1]
        _label(axes, last, LABELS[family], colour, above)


def _label(axes: Axes, row: pd.Series, text: str, colour: str, above: bool) -> None:
    """Direct label that ends at a published point."""
    point = row["params_published"], row["pesq_wb_published"]
    offset = {"xytext": (4, 8) if above else (16, -30), "textcoords": "offset points"}
    axes.annotate(text, point, color=colour, ha="right", fontsize=8, **offset)


def _reproduced_points(axes: Axes, rows: pd.DataFrame, family: str) -> None:
    rows = rows.dropna(subset="pesq_wb")
    axes.vlines(rows["n_params"], rows["pesq_wb_low"], rows["pesq_wb_high"], COLOURS[family])
    x, y = rows["n_params"], rows["pesq_wb"]
    axes.plot(x, y, MARKERS[family], color=COLOURS[family], zorder=3)


def _reference(axes: Axes, level: pd.Series) -> None:
    for value in level.dropna():
        axes.axhline(value, color=COLOURS["noisy"], linestyle=(0, (4, 3)), linewidth=1)
        text = f"{LABELS['noisy']}: {value:.2f}"
        where = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        axes.text(0.995, value + 0.015, text, color=COLOURS["noisy"], fontsize=8, **where)


def _key() -> list[Line2D]:
    """Ring and dot in grey: they mean the same in every colour."""
    dot = {"marker": "o", "linestyle": "none", "color": "#555555"}
    return [
        Line2D([], [], label="published", **dot | RING),
        Line2D([], [], label="reproduced, with the 95 % interval of the mean", **dot),
    ]


def mixers(table: pd.DataFrame) -> Figure:
    """The mixer ablation, one panel per metric: rings published, dots and intervals reproduced.

    table: rows of `tables.ablation`, with mixer and, per metric, <metric>_published, <metric>,
    <metric>_low, <metric>_high.
    """
    table = table[table["mixer"] != "noisy"]
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 2.6))
        panels = figure.subplots(1, 3, sharey=True)
        for axes, metric in zip(panels, ("pesq_wb", "pesq_nb", "stoi_percent"), strict=True):
            for place, (_, row) in enumerate(table.iterrows()):
                _mixer(axes, place, row, metric)
            axes.set(xlabel=LABELS[metric])
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
        names = [LABELS[mixer] for mixer in table["mixer"]]
        panels[0].set_yticks(range(len(table)), names, fontsize=9)
        panels[0].set_ylim(len(table) - 0.5, -0.5)  # in the order of the table, from the top
        for axes in panels:
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        figure.legend(handles=_key(), loc="outside upper center", ncols=2)
    return figure


def _mixer(axes: Axes, place: int, row: pd.Series, metric: str) -> None:
    colour = COLOURS[row["mixer"]]
    axes.plot(row[f"{metric}_published"], place, color=colour, **RING)
    axes.hlines(place, row[f"{metric}_low"], row[f"{metric}_high"], colour)
    axes.plot(row[metric], place, "o", color=colour, zorder=3)


def spectrograms(levels: Mapping[str, pd.DataFrame], span_db: float = 70.0) -> Figure:
    """Spectrograms one below the other, under one scale of colours.

    levels: title -> levels in dB, (F, L) with the frequency in Hz as index and the time in seconds
    as columns, both evenly spaced. span_db: dB shown, down from the loudest point of them all.
    """
    loudest = max(table.to_numpy().max() for table in levels.values())
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 0.6 + 1.5 * len(levels)))
        panels = figure.subplots(len(levels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (title, table) in zip(panels, levels.items(), strict=True):
            seconds, khz = table.columns.to_numpy(float), table.index.to_numpy(float) / 1000
            image = axes.imshow(
                table.to_numpy(),
                extent=(seconds[0], seconds[-1], khz[0], khz[-1]),
                vmin=loudest - span_db,
                vmax=loudest,
                origin="lower",
                aspect="auto",
                interpolation="nearest",
            )
            axes.set(title=title, ylabel="frequency (kHz)")
            axes.grid(visible=False)
        panels[-1].set_xlabel("time (s)")
        figure.colorbar(image, ax=list(panels), label="level (dB)", pad=0.01).outline.set_visible(
            False
        )
    return figure


def levels(table: pd.DataFrame) -> Figure:
    """Levels over time. table: seconds as index, a column in dB per line, drawn in that order."""
    colours = ("#BBBBBB", "#333333", COLOURS["mamba"], COLOURS["mha"])
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 2.4))
        axes = figure.add_subplot()
        for name, colour in zip(table.columns, colours, strict=False):
            axes.plot(table.index, table[name], color=colour, label=name)
        axes.set(xlabel="time (s)", ylabel="level (dB)")
        figure.legend(loc="outside upper center", ncols=len(table.columns))
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as its suffix says (.svg, .png); the same figure gives the same bytes."""
    path = Path(path)
    undated = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}
    with style.context(STYLE), replacing(path) as part:
        figure.savefig(part, format=path.suffix[1:], metadata=undated.get(path.suffix))
    return path
