"""Figures of the study: a table in, a figure out. Figures compute nothing and read no file."""

import io
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from speechlab.storage.atomic import write

STYLE = str(Path(__file__).with_name("style.mplstyle"))

# One colour per architecture, in every figure (Okabe and Ito's palette for all kinds of sight).
SYSTEMS = {  # name -> colour, label
    "E8": ("#0072B2", "E8, 48 ms look-ahead"),
    "E6": ("#D55E00", "E6, 12 ms look-ahead"),
    "mamba": ("#0072B2", "Mamba"),
    "mamba2": ("#56B4E9", "Mamba-2"),
    "mamba_s4": ("#009E73", "Mamba, S4 scan"),
    "mha": ("#D55E00", "attention"),
    "lstm": ("#CC79A7", "LSTM"),
    "noisy": ("#777777", "noisy, unprocessed"),
    "wiener": ("#E69F00", "Wiener filter"),
    "cleanumamba": ("#0072B2", "CleanUMamba"),  # as Mamba
    "semamba_advanced": ("#009E73", "SEMamba"),
    "semamba_basic": ("#009E73", "SEMamba, basic"),
    "mpsenet": ("#CC79A7", "MP-SENet"),
    "mpsenet_conformer": ("#CC79A7", "MP-SENet, Conformer"),
    "mpsenet_mamba": ("#CC79A7", "MP-SENet + Mamba"),
    "stretched": ("#333333", "the network, then PCS"),
    "mixture": ("#777777", "mixture, unprocessed"),  # as noisy: the input
    "sepmamba": ("#56B4E9", "SepMamba"),
    "umambanet": ("#D55E00", "U-Mamba-Net"),
    "conv_tasnet": ("#E69F00", "Conv-TasNet"),
    "dprnn": ("#CC79A7", "DPRNN"),
    "sepformer": ("#009E73", "SepFormer"),
    "sudormrf": ("#0072B2", "SuDoRM-RF"),
}
COLOURS = {name: colour for name, (colour, _) in SYSTEMS.items()}
APART = ("pitch_apart", "level_apart_db")  # distances of two speakers
MARKERS = {"E8": "o", "E6": "s"}
RING = {"marker": "o", "markersize": 8, "markerfacecolor": "white"}
LABELS = {name: label for name, (_, label) in SYSTEMS.items()} | {
    "pesq_wb": "PESQ-WB (MOS-LQO)",
    "pesq_nb": "PESQ-NB (MOS-LQO)",
    "stoi_percent": "STOI (%)",
    "stoi": "STOI (0 to 1)",
    "si_sdr": "SI-SDR (dB)",
    "si_snri": "SI-SNRi (dB)",
    "si_sdri": "SI-SDRi (dB)",
    "sdr": "SDR (dB)",
    "sir": "SIR (dB)",
    "level_apart_db": "level difference of the speakers (dB)",
    "pitch_apart": "pitch difference of the speakers (semitones)",
    "snr_db": "SNR (dB)",
    "level_db": "level of the mixture (dB)",  # 0: full scale
    "loss": "loss",
}


def pesq_against_parameters(table: pd.DataFrame) -> Figure:
    """Quality against size of the pruned CleanUMamba: rings published, dots reproduced.

    table: rows of `cleanumamba.pruning`, with variant, family, params_published, n_params and
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
    """Ring and dot in grey, valid for every colour."""
    dot = {"marker": "o", "linestyle": "none", "color": "#555555"}
    return [
        Line2D([], [], label="published", **dot | RING),
        Line2D([], [], label="reproduced, with the 95 % interval of the mean", **dot),
    ]


def mixers(table: pd.DataFrame) -> Figure:
    """The mixer ablation, one panel per metric: rings published, dots and intervals reproduced.

    table: rows of `cleanumamba.ablation`, with mixer and, per metric, <metric>_published, <metric>,
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
        panels[0].set_ylim(len(table) - 0.5, -0.5)  # first row on top
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


def spectrograms(
    levels: Mapping[str, pd.DataFrame], span_db: float = 70.0, n_columns: int = 1
) -> Figure:
    """Spectrograms in rows and columns with one colour scale.

    levels: title -> levels in dB, (F, L): frequencies in Hz as index, seconds as columns.
    span_db: range of the colours, down from the loudest point of all.
    """
    loudest = max(table.to_numpy().max() for table in levels.values())
    n_rows = -(-len(levels) // n_columns)
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 0.6 + 1.5 * n_rows))
        grid = figure.subplots(n_rows, n_columns, sharex="col", sharey=True, squeeze=False)
        panels = grid.ravel()
        for axes, (title, table) in zip(panels, levels.items(), strict=False):
            drawn = picture(axes, title, table, (loudest - span_db, loudest))
        for axes in panels[len(levels) :]:
            axes.remove()
        for axes in grid[:, 0]:
            axes.set_ylabel("frequency (kHz)")
        for axes in panels[len(levels) - n_columns : len(levels)]:  # lowest of each column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("time (s)")
        colour_bar(drawn, grid.ravel()[: len(levels)].tolist(), "level (dB)")
    return figure


def picture(
    axes: Axes,
    title: str,
    table: pd.DataFrame,
    limits: tuple[float, float],
    cmap: str | None = None,
) -> QuadMesh:
    """Values over time and frequency.

    table: as `spectrograms` takes them.
    limits: values of the first and last colour.
    cmap: name of the colours; None: those of the style.
    """
    seconds, khz = table.columns.to_numpy(float), table.index.to_numpy(float) / 1000
    axes.set_title(title)
    axes.grid(visible=False)
    scale = {"vmin": limits[0], "vmax": limits[1], "cmap": cmap}
    return axes.pcolormesh(seconds, khz, table, shading="nearest", rasterized=True, **scale)


def colour_bar(image: QuadMesh, axes: list[Axes], label: str, **options: object) -> Colorbar:
    """A bar without outline beside `axes`."""
    bar = axes[0].figure.colorbar(image, ax=axes, pad=0.01, label=label, **options)
    bar.outline.set_visible(False)
    return bar


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


def distributions(table: pd.DataFrame) -> Figure:
    """Histograms: a panel per column, a name in LABELS; NaN is left out."""
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 2.2))
        panels = figure.subplots(1, len(table.columns), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, table.columns, strict=True):
            axes.hist(table[name].dropna(), bins=20, color="#BBBBBB", edgecolor="white")
            axes.set(xlabel=LABELS[name])
        panels[0].set_ylabel("examples (count)")
    return figure


def training(
    history: pd.DataFrame,
    validations: pd.DataFrame,
    references: Mapping[str, float],
    metric: str = "si_sdr",
    system: str = "cleanumamba",
) -> Figure:
    """The loss of a training and its dev score.

    history: step, loss; may be empty.
    validations: step and the metric; may be empty.
    references: the metric of untrained systems on the same files, by names in LABELS: lines.
    metric: the dev score.
    system: a name in COLOURS.
    """
    colour = COLOURS[system]
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 2.6))
        losses, scores = figure.subplots(1, 2)
        if len(history):
            losses.plot(history["step"], history["loss"], color=colour)
        if len(validations):
            scores.plot(validations["step"], validations[metric], "o-", color=colour)
        for name, level in references.items():
            scores.axhline(level, color=COLOURS[name], linestyle=(0, (4, 3)), linewidth=1)
            text = f"{LABELS[name]}: {level:.2f}"
            # below the line, at the right: the curve is above it by then
            place = {"xytext": (-2, -2), "textcoords": "offset points", "ha": "right", "va": "top"}
            at = {"xy": (1, level), "xycoords": scores.get_yaxis_transform()}
            scores.annotate(text, **at, **place, color=COLOURS[name], fontsize=8)
        losses.set(xlabel="training step", ylabel=LABELS["loss"])
        scores.set(xlabel="training step", ylabel=f"dev {LABELS[metric]}")
        scores.margins(y=0.12)  # room for the lowest label
    return figure


def by_snr(table: pd.DataFrame, metrics: tuple[str, ...] = ("si_sdr", "pesq_wb")) -> Figure:
    """Scores of several systems against the input SNR, a panel per metric.

    table: system (a name in COLOURS), snr_db and, per metric, <metric>, <metric>_low and
    <metric>_high, the mean and its interval.
    """
    with style.context(STYLE):
        figure = Figure(figsize=(6.4, 2.9))
        panels = figure.subplots(1, len(metrics), squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            for system, rows in table.groupby("system", sort=False):
                x, colour = rows["snr_db"], COLOURS[system]
                axes.plot(x, rows[metric], "o-", color=colour, label=LABELS[system])
                axes.vlines(x, rows[f"{metric}_low"], rows[f"{metric}_high"], colour)
            axes.set(xlabel=LABELS["snr_db"], ylabel=LABELS[metric])
        lines = panels[0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside upper center", ncols=table["system"].nunique())
    return figure


def by_likeness(table: pd.DataFrame, system: str, metric: str = "si_sdri") -> Figure:
    """Gain of each mixture against the distance of its two speakers; 0 is the mixture itself.

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


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as .svg or .png, by its suffix; the same figure gives the same bytes."""
    path, image = Path(path), io.BytesIO()
    undated = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}
    with style.context(STYLE):
        figure.savefig(image, format=path.suffix[1:], metadata=undated.get(path.suffix))
    write(path, image.getvalue())
    return path
