"""Tables of SepMamba and U-Mamba-Net: published, counted and measured values side by side.

published/*.csv, benchmarks/separation_macs.csv (of `benchmarks/macs.py`) and
benchmarks/separation.csv (of `benchmarks/separation.py`, if it was run) ->
tables/sepmamba_wsj0_2mix.* and tables/umambanet_libri2mix.*, all under results/.
"""

from pathlib import Path

import pandas as pd

from speechlab.report.markdown import (
    ABSENT,
    TEXT,
    Column,
    PaperTable,
    Row,
    number,
    read_counts,
    read_table,
)

COUNTS = Path("benchmarks/separation_macs.csv")
MEASURED = Path("benchmarks/separation.csv")
PRINTED = ("sepmamba_wsj0_2mix", "umambanet_libri2mix", "umambanet_sizes")
SECONDS = 4  # length of the inputs, counted and timed; SepMamba trains on as many

BASE = "sepmamba_s"  # ratios are to it
BUILT = {  # rows of SepMamba's table that are built here; dynamic mixing (DM) is the same network
    "Conv-TasNet": "conv_tasnet",
    "DualPathRNN": "dprnn",
    "SudoRM-RF": "sudormrf",
    "SepFormer": "sepformer",
    "SepFormer + DM": "sepformer",
    "SepMamba (S) + DM": "sepmamba_s",
    "SepMamba (M) + DM": "sepmamba_m",
}
ADDED = {  # rows that its table does not have
    "SepMamba (S), causal": "sepmamba_s_causal",
    "U-Mamba-Net, F = 128": "umambanet_f128",
}
UMAMBANET = {  # rows of U-Mamba-Net's table, by their printed name or ours
    "U-Mamba-Net, F = 64": "umambanet_f64",
    "U-Mamba-Net, F = 128": "umambanet_f128",
    "U-Mamba-Net, F = 192": "umambanet_f192",
    "U-Mamba-Net, F = 128, without Mamba": "umambanet_without_mamba",
    "U-Mamba-Net, F = 128, without U-Net": "umambanet_without_unet",
    "U-Mamba-Net, F = 128, two U-Nets": "umambanet_two_unets",
    "DPRNN": "dprnn_16",
    "DPRNN, cascaded multi-task": None,  # two networks, of unknown sizes
}
MAIN, RIVAL = "U-Mamba-Net, F = 128", "DPRNN"
PRINTED_AS = {"U-Mamba-Net": MAIN}
COUNTED = tuple(
    filter(None, dict.fromkeys([*BUILT.values(), *ADDED.values(), *UMAMBANET.values()]))
)


def tables(given: str | Path) -> dict[str, PaperTable]:
    """Both tables by name; given: the folder with published/ and benchmarks/."""
    printed, counts = published(Path(given) / "published"), read_counts(Path(given) / COUNTS)
    path = Path(given) / MEASURED
    first = sepmamba(printed[PRINTED[0]], counts, pd.read_csv(path) if path.is_file() else None)
    second = umambanet(printed, counts)
    return {
        PRINTED[0]: PaperTable(first, SEPMAMBA_COLUMNS, sepmamba_note(first)),
        PRINTED[1]: PaperTable(second, UMAMBANET_COLUMNS, umambanet_note(second)),
    }


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians of the rounds of `benchmarks/separation.py`: a row per setting, pass and model.

    Columns: device, threads, seconds, pass, model, ms, peak_mb, medians over rounds; ms_ratio,
    peak_ratio, to SepMamba S of the same round; reason, where there is no number. ms is CPU time
    on one CPU thread, which other programs disturb least, else wall time.
    """
    same = ["device", "threads", "seconds", "pass"]
    one_thread = (rows["device"] == "cpu") & (rows["threads"] == 1)
    rows = rows.assign(ms=rows["cpu_ms"].where(one_thread, rows["wall_ms"]))
    rows["reason"] = rows["reason"].astype(object).fillna("")  # all empty, it was read as numbers
    base = rows[rows["model"] == BASE].set_index([*same, "round"])[["ms", "peak_mb"]]
    rows = rows.join(base.add_suffix("_base"), on=[*same, "round"])
    rows["ms_ratio"] = rows["ms"] / rows["ms_base"]
    rows["peak_ratio"] = rows["peak_mb"] / rows["peak_mb_base"]
    groups = rows.groupby([*same, "model"], sort=False)
    table = groups[["ms", "peak_mb", "ms_ratio", "peak_ratio"]].median()
    return table.assign(reason=groups["reason"].max()).reset_index()


def published(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The printed tables by name, as they are. UserError where one is missing."""
    return {name: read_table(Path(folder) / f"{name}.csv") for name in PRINTED}


def published_ratios(printed: pd.DataFrame) -> pd.DataFrame:
    """Forward time, memory and MACs of SepMamba's table over those of S, by printed name."""
    table = printed.set_index("model")[["forward_ms", "memory_gb", "gmac_per_s"]]
    return table / table.loc[next(model for model, ours in BUILT.items() if ours == BASE)]


def sepmamba(
    printed: pd.DataFrame, counts: pd.DataFrame, rows: pd.DataFrame | None = None
) -> pd.DataFrame:
    """A row per printed model, then `ADDED`: scores, sizes, costs, and ratios to SepMamba S.

    rows: of the benchmark; the table shows forward passes on 4 s on one CPU thread.
    """
    networks = {model: BUILT.get(model) for model in printed["model"]} | ADDED
    table = pd.DataFrame({"network": networks}).rename_axis("model")
    names = {name: f"{name}_published" for name in ("params", "forward_ms", "memory_gb")}
    names |= {"gmac_per_s": "gmacs_per_second_published"}
    table = table.join(printed.set_index("model").rename(columns=names))
    table["params_published"] = table["params_published"].map(number, na_action="ignore")
    ratios = published_ratios(printed)[["forward_ms", "memory_gb"]]
    table[["forward_ratio_published", "memory_ratio_published"]] = ratios
    table = table.join(_sizes(counts), on="network").join(_forward_passes(rows), on="network")
    keys = [column.key for column in SEPMAMBA_COLUMNS[1:]]
    return _typed(table.reset_index()[["model", "network", *keys, "reason"]])


def _sizes(counts: pd.DataFrame) -> pd.DataFrame:
    """n_params and gmacs_per_second by network."""
    gmacs = counts[f"macs_per_second_{SECONDS}s"] / 1e9
    counts = counts.assign(gmacs_per_second=gmacs)
    return counts.set_index("model")[["n_params", "gmacs_per_second"]]


def _forward_passes(rows: pd.DataFrame | None) -> pd.DataFrame:
    """The measurements of a forward pass by network, under the names of the table."""
    names = {"ms": "forward_ms", "ms_ratio": "forward_ratio", "peak_ratio": "memory_ratio"}
    names |= {"peak_mb": "memory_gb", "reason": "reason"}
    if rows is None:
        return pd.DataFrame(columns=list(names.values()))
    asked = {"device": "cpu", "threads": 1, "seconds": SECONDS, "pass": "forward"}
    table = measured(rows)
    table = table[(table[list(asked)] == pd.Series(asked)).all(axis=1)].set_index("model")
    table["peak_mb"] /= 1e3
    table["reason"] = table["reason"].where(table["reason"] != "")
    return table.rename(columns=names)[list(names.values())]


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers whole, others with as many digits as they deserve."""
    whole = [name for name in ("params_published", "n_params") if name in table]
    kept = {"model", "network", "reason", *whole}
    numbers = [name for name in table if name not in kept]
    table = table.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(numbers, float))
    return table.round(dict.fromkeys(numbers, 3))


def _millions(row: Row) -> str:
    return f"{row['params_published'] / 1e6:g}M"


def _cost(key: str, head: str, form: str) -> list[Column]:
    """Published and measured."""
    printed = Column(f"{key}_published", f"{head} published", "{:.2f}")
    return [printed, Column(key, "here", form, Column("reason"))]


SEPMAMBA_COLUMNS = (
    Column("model", "model", align=TEXT),
    Column("si_snri_db", "SI-SNRi published", "{:.1f}"),
    Column("si_sdri_db", "SI-SDRi published", "{:.1f}"),
    Column("sdri_db", "SDRi published", "{:.1f}"),
    Column("params_published", "parameters published", _millions),
    Column("n_params", "counted", "{:,d}"),
    Column("gmacs_per_second_published", "GMAC/s published", "{:.2f}"),
    Column("gmacs_per_second", "counted", "{:.2f}"),
    *_cost("forward_ms", "forward ms", "{:.0f}"),
    *_cost("memory_gb", "memory GB", "{:.3f}"),
    *_cost("forward_ratio", "time / SepMamba S", "{:.2f}"),
    *_cost("memory_ratio", "memory / SepMamba S", "{:.2f}"),
)


def sepmamba_note(table: pd.DataFrame) -> str:
    """The text below it: units, test set of the scores, and how time and memory were measured."""
    here = f"on {SECONDS} s, on one CPU thread, as `benchmarks/separation.py` measures them"
    if table["forward_ms"].isna().all():
        here = "by `benchmarks/separation.py`, which has not been run here yet"
    rows = table.set_index("network")
    ours, other = rows.loc[BASE], rows.loc["sepformer"].iloc[0]
    times = [other[k] / ours[k] for k in ("gmacs_per_second_published", "gmacs_per_second")]
    return (
        "Scores as published on WSJ0-2mix, in dB, higher is better; none is measured here: that "
        "corpus is licensed. GMAC/s are 10⁹ multiply-accumulates per second "
        "of input, published by a profiler with an unknown rule, and counted here by that of "
        f"`speechlab.models.macs`, on {SECONDS} s. Time and memory of a forward pass: published on "
        f"the paper's GPU, an input of unknown length; *here* {here}. So only their ratios "
        "to SepMamba (S) compare, and these only as far as a CPU is like a GPU. DM is dynamic "
        f"mixing, the same network. {ABSENT}: no value in `results/published`, or not counted or "
        "measured here.\n\n"
        f"SepFormer takes {times[0]:.1f} times the multiply-accumulates of SepMamba (S) as "
        f"published, and {times[1]:.1f} times as counted here."
    )


def umambanet(printed: dict[str, pd.DataFrame], counts: pd.DataFrame) -> pd.DataFrame:
    """A row per name in `UMAMBANET`: printed score and MACs, counted size and MACs.

    over_dprnn_db: SI-SNRi less that of the DPRNN of the same paper, the only fair comparison.
    """
    prints = pd.concat([printed[name] for name in PRINTED[1:]]).replace({"model": PRINTED_AS})
    table = pd.DataFrame({"network": UMAMBANET}).rename_axis("model")
    table = table.join(prints.set_index("model")[["si_snri_db", "note"]])
    table["over_dprnn_db"] = table["si_snri_db"] - table.loc[RIVAL, "si_snri_db"]
    table["gmacs_published"] = table["note"].str.extract(r"([\d.]+) GMAC", expand=False)
    table = table.join(_sizes(counts), on="network")
    table[f"gmacs_{SECONDS}s"] = SECONDS * table["gmacs_per_second"]
    keys = [column.key for column in UMAMBANET_COLUMNS[1:]]
    return _typed(table.reset_index()[["model", "network", *keys]])


def _over_dprnn(row: Row) -> str:
    return "the reference" if row["model"] == RIVAL else f"{row['over_dprnn_db']:+.2f}"


UMAMBANET_COLUMNS = (
    Column("model", "model", align=TEXT),
    Column("si_snri_db", "SI-SNRi published", "{:.2f}"),
    Column("over_dprnn_db", "over DPRNN published", _over_dprnn),
    Column("n_params", "parameters counted", "{:,d}"),
    Column("gmacs_published", "GMACs published", "{:.1f}"),
    Column(f"gmacs_{SECONDS}s", f"counted in {SECONDS} s", "{:.2f}"),
    Column("gmacs_per_second", "GMAC/s counted", "{:.3f}"),
)


def umambanet_note(table: pd.DataFrame) -> str:
    """The text below it: test set of the scores, and where the sizes come from."""
    rows = table.set_index("model")
    counts = f"gmacs_{SECONDS}s"
    printed, ours = (rows.loc[RIVAL, k] / rows.loc[MAIN, k] for k in ("gmacs_published", counts))
    return (
        "SI-SNRi in dB on the authors' own noisy and reverberant Libri2Mix, higher is better: only "
        "gains over the DPRNN of the same paper compare. There is no public code; sizes are those "
        "of the network rebuilt in `speechlab/models/umambanet.py`, by choices of our own. "
        f"GMACs are 10⁹ multiply-accumulates, published for an input of unknown length. "
        "DPRNN is counted with windows of 16 samples and chunks of 100 frames, which is a guess. "
        f"{ABSENT}: no value in `results/published`, or not counted here.\n\n"
        f"DPRNN takes {printed:.1f} times the multiply-accumulates of U-Mamba-Net as "
        f"published, and {ours:.1f} times as counted here."
    )
