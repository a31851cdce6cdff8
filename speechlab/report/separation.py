"""Tables of SepMamba and U-Mamba-Net: printed, counted again, and measured here, side by side.

published/*.csv, benchmarks/separation_macs.csv (`counted`, the only part that needs PyTorch) and
benchmarks/separation.csv (rows of `benchmarks/separation.py`, where it was run) ->
tables/sepmamba_wsj0_2mix.* and tables/umambanet_libri2mix.*, all under results/.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from speechlab.errors import UserError
from speechlab.report.cleanumamba import markdown_table, number, replace_text, write_tables

if TYPE_CHECKING:
    from torch import nn

COUNTS = Path("benchmarks/separation_macs.csv")
MEASURED = Path("benchmarks/separation.csv")
PRINTED = ("sepmamba_wsj0_2mix", "umambanet_libri2mix", "umambanet_sizes")
SECONDS = 4  # of the inputs that are counted and shown here; SepMamba trains on as many

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
    "DPRNN, cascaded multi-task": None,  # two networks, of sizes that are not told
}
MAIN, RIVAL = "U-Mamba-Net, F = 128", "DPRNN"
PRINTED_AS = {"U-Mamba-Net": MAIN}
COUNTED = tuple(
    dict.fromkeys(
        name for names in (BUILT, ADDED, UMAMBANET) for name in names.values() if name is not None
    )
)
MISSING = "not at hand"  # papers print more than we were given
UNBUILT = "not built here"
UNMEASURED = "not measured"

Row = dict[str, Any]


def build(name: str) -> "nn.Module":
    """The network of a name in `COUNTED` at its published size, with random weights."""
    from speechlab.models import SYSTEMS

    config = configuration(name)
    return dict(SYSTEMS.values())[type(config)](config)


def configuration(name: str) -> Any:
    """Its configuration; UserError for another name.

    dprnn_16 is the DPRNN that U-Mamba-Net's paper compares with: at 23.9 GMACs its windows cannot
    be of 2 samples. Those of 16, with chunks of 100 frames, are our guess.
    """
    from dataclasses import replace

    from speechlab.models import sepmamba, umambanet
    from speechlab.models.baselines import conv_tasnet, dprnn, sepformer, sudormrf

    published = {"conv_tasnet": conv_tasnet, "dprnn": dprnn, "sepformer": sepformer}
    published["sudormrf"] = sudormrf
    configs = {key: module.CONFIGS["published"] for key, module in published.items()}
    configs |= sepmamba.CONFIGS
    configs |= {f"umambanet_{key}": config for key, config in umambanet.CONFIGS.items()}
    configs["dprnn_16"] = replace(configs["dprnn"], kernel_size=16, stride=8, chunk_size=100)
    if name not in configs:
        raise UserError(f"no separation model {name!r}; there are {', '.join(configs)}")
    return configs[name]


def counted(models: Iterable[str] = COUNTED) -> pd.DataFrame:
    """Sizes and multiply-accumulates by the rule of `complexity`, on the meta device.

    Columns: model, n_params, macs_per_second_4s (per second of an input of that length).
    """
    import torch  # not needed to make the tables

    from speechlab.models.macs import macs_per_second, n_params

    rows = []
    for name in models:
        with torch.device("meta"):
            model = build(name)
        macs = round(macs_per_second(model, SECONDS))
        rows.append(
            {"model": name, "n_params": n_params(model), f"macs_per_second_{SECONDS}s": macs}
        )
    return pd.DataFrame(rows)


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """What the rounds of `benchmarks/separation.py` say: a row per setting, pass and model.

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
    paths = {name: Path(folder) / f"{name}.csv" for name in PRINTED}
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"{path}: no such table; restore it from the repository")
    return {name: pd.read_csv(path) for name, path in paths.items()}


def published_ratios(printed: pd.DataFrame) -> pd.DataFrame:
    """Forward time, memory and MACs of SepMamba's table over those of S, by printed name."""
    table = printed.set_index("model")[["forward_ms", "memory_gb", "gmac_per_s"]]
    return table / table.loc[_printed_as(BASE)]


def _printed_as(name: str) -> str:
    return next(model for model, ours in BUILT.items() if ours == name)


def sepmamba(
    printed: pd.DataFrame, counts: pd.DataFrame, rows: pd.DataFrame | None = None
) -> pd.DataFrame:
    """A row per printed model, then `ADDED`: scores, sizes, costs, and ratios to SepMamba S.

    rows: of the benchmark; forward passes on 4 s on one CPU thread are shown.
    """
    sizes = counts.set_index("model")
    passes = _forward_passes(rows)
    ratios = published_ratios(printed)
    names = {model: BUILT.get(model) for model in printed["model"]} | ADDED
    prints = {row["model"]: row for row in printed.to_dict("records")}
    table = []
    for model, name in names.items():
        row = prints.get(model, {})
        found = {"model": model, "network": name}
        found |= {key: row.get(key) for key in ("si_snri_db", "si_sdri_db", "sdri_db")}
        found["params_published"] = number(row["params"]) if row else None
        found["gmacs_per_second_published"] = row.get("gmac_per_s")
        found["forward_ms_published"] = row.get("forward_ms")
        found["memory_gb_published"] = row.get("memory_gb")
        if row:
            found["forward_ratio_published"] = ratios.loc[model, "forward_ms"]
            found["memory_ratio_published"] = ratios.loc[model, "memory_gb"]
        if name:
            found["n_params"] = sizes.loc[name, "n_params"]
            found["gmacs_per_second"] = sizes.loc[name, f"macs_per_second_{SECONDS}s"] / 1e9
        table.append(found | passes.get(name, {}))
    return _typed(pd.DataFrame(table, columns=SEPMAMBA_COLUMNS))


SEPMAMBA_COLUMNS = ["model", "network", "si_snri_db", "si_sdri_db", "sdri_db"]
SEPMAMBA_COLUMNS += [
    name + end
    for name, ends in {
        "params": ("_published",),
        "n_params": ("",),
        "gmacs_per_second": ("_published", ""),
        "forward_ms": ("_published", ""),
        "memory_gb": ("_published", ""),
        "forward_ratio": ("_published", ""),
        "memory_ratio": ("_published", ""),
        "reason": ("",),
    }.items()
    for end in ends
]


def _forward_passes(rows: pd.DataFrame | None) -> dict[str, Row]:
    """Network -> what was measured of it, under the names of the table."""
    if rows is None:
        return {}
    asked = {"device": "cpu", "threads": 1, "seconds": SECONDS, "pass": "forward"}
    table = measured(rows)
    table = table[(table[list(asked)] == pd.Series(asked)).all(axis=1)]
    return {
        row["model"]: {
            "forward_ms": row["ms"],
            "memory_gb": row["peak_mb"] / 1e3,
            "forward_ratio": row["ms_ratio"],
            "memory_ratio": row["peak_ratio"],
            "reason": row["reason"] or None,
        }
        for row in table.to_dict("records")
    }


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers whole, others with as many digits as they deserve."""
    whole = [name for name in ("params_published", "n_params") if name in table]
    kept = {"model", "network", "reason", *whole}
    numbers = [name for name in table if name not in kept]
    table = table.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(numbers, float))
    return table.round(dict.fromkeys(numbers, 3))


def sepmamba_markdown(table: pd.DataFrame) -> str:
    """The table of `sepmamba` for people, and under it what its numbers mean."""
    heads = ["model", "SI-SNRi published", "SI-SDRi published", "SDRi published"]
    heads += ["parameters published", "counted", "GMAC/s published", "counted"]
    heads += ["forward ms published", "here", "memory GB published", "here"]
    heads += ["time / SepMamba S published", "here", "memory / SepMamba S published", "here"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in table.to_dict("records"):
        absent = UNBUILT if pd.isna(row["network"]) else row["reason"]
        absent = UNMEASURED if pd.isna(absent) else absent
        cells = [row["model"]]
        cells += [_text(row[f"{name}_db"], ".1f") for name in ("si_snri", "si_sdri", "sdri")]
        size = row["params_published"]
        cells.append(MISSING if pd.isna(size) else f"{size / 1e6:g}M")
        cells.append(_text(row["n_params"], ",d", UNBUILT))
        cells.append(_text(row["gmacs_per_second_published"], ".2f"))
        cells.append(_text(row["gmacs_per_second"], ".2f", UNBUILT))
        forms = {"forward_ms": (".2f", ".0f"), "memory_gb": (".2f", ".3f")}
        forms |= {"forward_ratio": (".2f", ".2f"), "memory_ratio": (".2f", ".2f")}
        for name, (printed, ours) in forms.items():
            cells += [_text(row[f"{name}_published"], printed), _text(row[name], ours, absent)]
        lines.append(cells)
    return markdown_table(lines) + f"\n{sepmamba_note(table)}\n"


def sepmamba_note(table: pd.DataFrame) -> str:
    """What stands under it: units, where it was measured, and what the scores are of."""
    here = f"on {SECONDS} s, on one CPU thread, as `benchmarks/separation.py` measures them"
    if table["forward_ms"].isna().all():
        here = "by `benchmarks/separation.py`, which has not been run here yet"
    rows = table.set_index("network")
    ours, other = rows.loc[BASE], rows.loc["sepformer"].iloc[0]
    times = [
        other[name] / ours[name] for name in ("gmacs_per_second_published", "gmacs_per_second")
    ]
    return (
        "Scores as published on WSJ0-2mix, in dB, higher is better; none is measured here: that "
        "corpus is licensed and not at hand. GMAC/s are 10⁹ multiply-accumulates per second "
        "of input, published by a profiler whose rule is not told, and counted here by that of "
        f"`evaluation.cost`, on {SECONDS} s. Time and memory of a forward pass: published on "
        f"the paper's GPU, an input whose length is not told; *here* {here}. So only their ratios "
        "to SepMamba (S) compare, and these only as far as a CPU is like a GPU. DM is dynamic "
        f"mixing, the same network. *{MISSING}*: not among the figures that this study was given. "
        f"*{UNBUILT}*: published alone.\n\n"
        f"SepFormer takes {times[0]:.1f} times the multiply-accumulates of SepMamba (S) as "
        f"published, and {times[1]:.1f} times as counted here."
    )


def umambanet(printed: dict[str, pd.DataFrame], counts: pd.DataFrame) -> pd.DataFrame:
    """A row per name in `UMAMBANET`: printed score and MACs, counted size and MACs.

    over_dprnn_db: SI-SNRi less that of the DPRNN of the same paper, which alone compares.
    """
    prints = pd.concat([printed[name] for name in PRINTED[1:]]).fillna({"note": ""})
    prints["model"] = prints["model"].replace(PRINTED_AS)
    prints, sizes = prints.set_index("model"), counts.set_index("model")
    rows = []
    for model, network in UMAMBANET.items():
        row = {"model": model, "network": network}
        if model in prints.index:
            gmacs = re.search(r"([\d.]+) GMAC", prints.loc[model, "note"])
            row["si_snri_db"] = prints.loc[model, "si_snri_db"]
            row["over_dprnn_db"] = row["si_snri_db"] - prints.loc[RIVAL, "si_snri_db"]
            row["gmacs_published"] = float(gmacs[1]) if gmacs else None
        if network:
            macs = sizes.loc[network, f"macs_per_second_{SECONDS}s"]
            row["n_params"] = sizes.loc[network, "n_params"]
            row |= {f"gmacs_{SECONDS}s": SECONDS * macs / 1e9, "gmacs_per_second": macs / 1e9}
        rows.append(row)
    columns = ["model", "network", "si_snri_db", "over_dprnn_db", "n_params"]
    columns += ["gmacs_published", f"gmacs_{SECONDS}s", "gmacs_per_second"]
    return _typed(pd.DataFrame(rows, columns=columns))


def umambanet_markdown(table: pd.DataFrame) -> str:
    """The table of `umambanet` for people, and under it what its numbers mean."""
    heads = ["model", "SI-SNRi published", "over DPRNN published", "parameters counted"]
    heads += ["GMACs published", f"counted in {SECONDS} s", "GMAC/s counted"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in table.to_dict("records"):
        gain = "the reference" if row["model"] == RIVAL else _text(row["over_dprnn_db"], "+.2f")
        cells = [row["model"], _text(row["si_snri_db"], ".2f"), gain]
        cells.append(_text(row["n_params"], ",d", UNBUILT))
        cells.append(_text(row["gmacs_published"], ".1f"))
        cells.append(_text(row[f"gmacs_{SECONDS}s"], ".2f", UNBUILT))
        cells.append(_text(row["gmacs_per_second"], ".3f", UNBUILT))
        lines.append(cells)
    return markdown_table(lines) + f"\n{umambanet_note(table)}\n"


def umambanet_note(table: pd.DataFrame) -> str:
    """What stands under it: of what the scores are, and how far the rebuilt sizes are theirs."""
    rows = table.set_index("model")
    counts = f"gmacs_{SECONDS}s"
    printed, ours = (rows.loc[RIVAL, k] / rows.loc[MAIN, k] for k in ("gmacs_published", counts))
    return (
        "SI-SNRi in dB on the authors' own noisy and reverberant Libri2Mix, higher is better: only "
        "gains over the DPRNN of the same paper compare. There is no public code; sizes are those "
        "of the network rebuilt in `speechlab/models/umambanet.py`, whose choices are not told. "
        f"GMACs are 10⁹ multiply-accumulates, published of an input whose length is not told. "
        "DPRNN is counted with windows of 16 samples and chunks of 100 frames, which is a guess. "
        f"*{MISSING}*: not among the figures that this study was given. *{UNBUILT}*: published "
        f"alone.\n\nDPRNN takes {printed:.1f} times the multiply-accumulates of U-Mamba-Net as "
        f"published, and {ours:.1f} times as counted here."
    )


def _text(value: Any, form: str, absent: str = MISSING) -> str:
    return absent if pd.isna(value) else f"{value:{form}}"


def write(
    results: str | Path, source: str | Path | None = None, output: str | Path | None = None
) -> list[Path]:
    """Write both tables under `output`, from its counts; returns their paths.

    Measured times are those of `results`. source: the folder of the published tables, where it is
    not in `results`; output: `results` unless given.
    """
    output = Path(output or results)
    if not (output / COUNTS).is_file():
        fix = "restore it from the repository, or run notebooks/11_paper_tables.ipynb"
        raise UserError(f"{output / COUNTS}: no such table; {fix}")
    printed = published(source or Path(results) / "published")
    counts, path = pd.read_csv(output / COUNTS), Path(results) / MEASURED
    rows = pd.read_csv(path) if path.is_file() else None
    first, second = sepmamba(printed[PRINTED[0]], counts, rows), umambanet(printed, counts)
    return write_tables(
        output / "tables",
        {
            PRINTED[0]: (first, sepmamba_markdown(first)),
            PRINTED[1]: (second, umambanet_markdown(second)),
        },
    )


def write_counts(results: str | Path, counts: pd.DataFrame) -> Path:
    """Write what `counted` gives to where `write` reads it."""
    path = Path(results) / COUNTS
    replace_text(path, counts.to_csv(index=False, lineterminator="\n"))
    return path
