"""Tables of SEMamba and MP-SENet: costs counted again, and scores, beside what is printed.

published/*.csv (sizes and MACs in a note, as "2.26M params; 65.46 GFLOPs") and benchmarks/
spectral_macs.csv (`counted`, the only part that needs PyTorch) -> tables/spectral_costs.* and
tables/spectral_scores.*, all under results/.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from speechlab.errors import UserError
from speechlab.report.cleanumamba import (
    count,
    markdown_table,
    number,
    per_file,
    replace_text,
    write_tables,
)

COUNTS = Path("benchmarks/spectral_macs.csv")
TEST_SETS = ("voicebank_demand_test", "voicebank_demand_test_118")  # whole, and what we have of it
N_FILES = 824  # of the whole

LENGTHS_S = (4, 10)  # of the inputs that the full count is for
CAUSAL, WHOLE = "SEMamba basic causal", "SEMamba basic non-causal"
ADVANCED, FORWARD = "SEMamba advanced non-causal", "SEMamba advanced uni-directional"
TRANSFORMER, TRANSFORMER_WHOLE = "Transformer basic causal", "Transformer basic non-causal"
CONFORMER = "Conformer, MP-SENet's first version"
MAMBA_BRANCH = "MP-SENet + Mamba"
# (n_frames, seconds) of the printed MACs: 256 samples apart, or 100
BASIC, LARGE = (250, 4), (321, 2)
FRAMES = {
    CAUSAL: BASIC,
    TRANSFORMER: BASIC,
    WHOLE: BASIC,
    TRANSFORMER_WHOLE: BASIC,
    ADVANCED: LARGE,
    FORWARD: LARGE,
    CONFORMER: LARGE,
    "MP-SENet": LARGE,
    MAMBA_BRANCH: LARGE,
}
RIVALS = {  # what the paper compares with
    CAUSAL: TRANSFORMER,
    WHOLE: TRANSFORMER_WHOLE,
    ADVANCED: CONFORMER,
    FORWARD: CONFORMER,
}
PRINTED_AS = {ADVANCED: f"{ADVANCED} without consistency loss"}  # the same network
WAYS = ("published", "profiled", *(f"{seconds}s" for seconds in LENGTHS_S))

SCORES = {  # ours: as the published noisy row is scored
    "pesq_wb": "pesq_wb",
    "csig": "csig_int16",
    "cbak": "cbak_int16",
    "covl": "covl_int16",
    "stoi": "stoi",
}
MISSING = "not at hand"  # papers print more than we were given
HEADS = {"pesq_wb": "PESQ-WB", "csig": "CSIG", "cbak": "CBAK", "covl": "COVL", "stoi": "STOI"}
CHECKPOINTS = {  # names of `speechlab weights list`, whose rows per file are called so
    "noisy": "noisy",
    ADVANCED: "SEMamba_advanced",
    f"{ADVANCED} + PCS": "SEMamba_advanced_PCS",  # the same weights, `enhance --pcs`
    "MP-SENet": "g_best_vb",
    MAMBA_BRANCH: "best_model",
}

Row = dict[str, Any]


def counted(models: Iterable[str] = FRAMES) -> pd.DataFrame:
    """Sizes and multiply-accumulates of the models, by their names here, on the meta device.

    Columns: model, n_params, n_frames, macs_profiled (what the paper's profiler sees of so many
    frames), macs_per_second_4s and _10s (all of them, per second of an input of that length).
    """
    import torch  # not needed to make the tables

    from speechlab.models import SYSTEMS
    from speechlab.models.macs import macs_per_second, n_params, profiled_macs

    kinds, rows = dict(SYSTEMS.values()), []
    for name in models:
        with torch.device("meta"):
            configs = [_config(name, seconds) for seconds in LENGTHS_S]
            built = [kinds[type(config)](config) for config in configs]
        row = {"model": name, "n_params": n_params(built[0]), "n_frames": FRAMES[name][0]}
        row["macs_profiled"] = round(profiled_macs(built[0], FRAMES[name][0]))
        for model, seconds in zip(built, LENGTHS_S, strict=True):
            row[f"macs_per_second_{seconds}s"] = round(macs_per_second(model, seconds))
        rows.append(row)
    return pd.DataFrame(rows)


def _config(name: str, seconds: float) -> Any:
    """The configuration to count, for an input of so many seconds.

    A causal Transformer's window is all of the input. MP-SENet's axes are those of its published
    weights, whose cross-attention is a small layer.
    """
    from speechlab.config import override
    from speechlab.models import (
        MPSENetConfig,
        MPSENetConformerConfig,
        MPSENetMambaConfig,
        semamba,
        semamba_basic,
    )

    config = {
        CAUSAL: semamba_basic.CONFIGS["causal"],
        TRANSFORMER: semamba_basic.CONFIGS["transformer_causal"],
        WHOLE: semamba_basic.CONFIGS["bidirectional"],
        TRANSFORMER_WHOLE: semamba_basic.CONFIGS["transformer_bidirectional"],
        ADVANCED: semamba.CONFIGS["bidirectional"],
        FORWARD: semamba.CONFIGS["one_directional"],
        CONFORMER: MPSENetConformerConfig(),
        "MP-SENet": MPSENetConfig(axes="published"),
        MAMBA_BRANCH: MPSENetMambaConfig(axes="published"),
    }[name]
    if "window" not in getattr(config, "layer", {}):
        return config
    window = round(seconds * config.sample_rate / config.front_end.hop_length)
    return override(config, layer=dict(config.layer) | {"window": window})


def published(folder: str | Path) -> pd.DataFrame:
    """What is printed on VoiceBank-DEMAND: model, the metrics of `SCORES`, note."""
    tables = {}
    for name in ("semamba", "baselines", "mpsenet_mamba"):
        path = Path(folder) / f"{name}_voicebank_demand.csv"
        if not path.is_file():
            raise UserError(f"{path}: no such table; restore it from the repository")
        tables[name] = pd.read_csv(path)
    pairs = dict(tables.pop("mpsenet_mamba").itertuples(index=False))
    last = {"model": MAMBA_BRANCH, "note": f"{pairs['params']} params"}
    last |= {metric: float(pairs[metric]) for metric in SCORES}
    return pd.concat([*tables.values(), pd.DataFrame([last])], ignore_index=True)


def costs(printed: pd.DataFrame, counts: pd.DataFrame) -> pd.DataFrame:
    """A row per counted model, printed and counted; of printed and counted, by what it differs.

    change_*_percent: MACs against those of the rival, which is the model that the paper compares
    with; below zero is less.
    """
    notes = printed.set_index("model")["note"].fillna("")
    rows = [_cost(row, notes[PRINTED_AS.get(row["model"], row["model"])]) for row in _rows(counts)]
    macs = {row["model"]: row for row in rows}
    for row in rows:
        rival = macs.get(row["rival"])
        for way in WAYS if rival else ():
            change = 100 * (row[f"gmacs_{way}"] / rival[f"gmacs_{way}"] - 1)
            row[f"change_{way}_percent"] = round(change, 1)
    columns = ["model", "rival", "params_published", "n_params", "n_frames"]
    columns += [f"gmacs_{way}" for way in WAYS] + [f"change_{way}_percent" for way in WAYS]
    table = pd.DataFrame(rows, columns=columns)
    return table.round({f"gmacs_{way}": 4 for way in WAYS}).astype({"params_published": "Int64"})


def _rows(table: pd.DataFrame) -> list[Row]:
    return table.to_dict("records")


def _cost(row: Row, note: str) -> Row:
    size = re.search(r"([\d.]+[KM]) params", note)
    gmacs = re.search(r"([\d.]+) GFLOPs", note)
    cost = {key: row[key] for key in ("model", "n_params", "n_frames")}
    cost |= {"rival": RIVALS.get(row["model"]), "params_published": size and number(size[1])}
    cost["gmacs_published"] = float(gmacs[1]) if gmacs else float("nan")
    cost["gmacs_profiled"] = row["macs_profiled"] / 1e9
    for seconds in LENGTHS_S:
        cost[f"gmacs_{seconds}s"] = row[f"macs_per_second_{seconds}s"] / 1e9
    return cost


def costs_markdown(table: pd.DataFrame) -> str:
    """The table of `costs` for people, and under it what its numbers mean."""
    heads = ["model", "parameters published", "counted", "GMACs published", "by its profiler"]
    full = [f"in full, {seconds} s" for seconds in LENGTHS_S]
    heads += [f"GMACs per s {how}" for how in full]
    heads += [f"against the Transformer {how}" for how in ("published", "by its profiler", *full)]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in _rows(table):
        seconds = FRAMES[row["model"]][1]
        gmacs = row["gmacs_published"]
        cells = [row["model"], count(row["params_published"]), f"{row['n_params']:,d}"]
        cells.append(MISSING if pd.isna(gmacs) else f"{gmacs:.2f} in {seconds} s")
        cells.append(f"{row['gmacs_profiled']:.2f}")
        cells += [f"{row[f'gmacs_{seconds}s']:.3g}" for seconds in LENGTHS_S]
        cells += [_change(row, way, set(table["rival"])) for way in WAYS]
        lines.append(cells)
    return markdown_table(lines) + f"\n{costs_note(table)}\n"


def _change(row: Row, way: str, rivals: set[str]) -> str:
    if row["model"] in rivals:
        return "the reference"
    change = row[f"change_{way}_percent"]
    return "none claimed" if pd.isna(change) else f"{change:+.1f} %"


def costs_note(table: pd.DataFrame) -> str:
    """What stands under it: units, what either count sees, and what is left of the savings."""
    rows = table.set_index("model")
    ours, rival = rows.loc[ADVANCED], rows.loc[CONFORMER]
    short, long = LENGTHS_S
    slope = (rival[f"gmacs_{long}s"] - rival[f"gmacs_{short}s"]) / (long - short)
    even = short + (ours[f"gmacs_{short}s"] - rival[f"gmacs_{short}s"]) / slope
    change = ours[f"change_{short}s_percent"]
    verdict = "saves nothing" if change >= 0 else f"saves {-change:.1f} %"
    return (
        "GMACs are 10⁹ multiply-accumulates, which the paper calls FLOPs. *By its profiler*: "
        "counted here as that counts, which leaves out attention, Mamba's scan and two of Mamba's "
        "layers, but not norms (`evaluation.cost.profiled_macs`). *In full*: every layer, "
        "scan and attention, per second of an input of that length (`macs_per_second`). Below 0 % "
        "is less than the Transformer, which for the advanced models is the Conformer. *none "
        f"claimed*: compared with no Transformer. *{MISSING}*: not among the figures that this "
        "study was given. Axes of MP-SENet are as its published weights need them; with named "
        "ones the cross-attention of MP-SENet + Mamba costs more than all the rest.\n\n"
        f"**In full the advanced Mamba {verdict} against the Conformer on {short} s:** "
        f"{ours[f'gmacs_{short}s']:.1f} against {rival[f'gmacs_{short}s']:.1f} GMACs per second, "
        f"{change:+.1f} % where {ours['change_published_percent']:+.1f} % is published. Attention "
        f"grows with the length and Mamba does not: they are even at {even:.1f} s, and on {long} s "
        f"it is {ours[f'change_{long}s_percent']:+.1f} %. The basic models' published "
        f"{rows.loc[CAUSAL, 'change_published_percent']:+.1f} and "
        f"{rows.loc[WHOLE, 'change_published_percent']:+.1f} % are "
        f"{rows.loc[CAUSAL, f'change_{short}s_percent']:+.1f} and "
        f"{rows.loc[WHOLE, f'change_{short}s_percent']:+.1f} % in full on {short} s."
    )


def scores(printed: pd.DataFrame, *metrics: str | Path) -> pd.DataFrame:
    """A row per printed model; beside it the means of its rows per file, where there are any.

    metrics: folders with <test set>/<checkpoint>.csv, of which the first that has it counts; the
    whole test set goes before its part.
    """
    rows = []
    for row in _rows(printed):
        checkpoint = CHECKPOINTS.get(row["model"])
        paths = [per_file(checkpoint, name, *metrics) for name in TEST_SETS if checkpoint]
        path = next(filter(None, paths), None)
        rows.append({"model": row["model"], "checkpoint": checkpoint} | _scored(path))
        rows[-1] |= {f"{metric}_published": row[metric] for metric in SCORES}
    columns = [f"{metric}{end}" for metric in SCORES for end in ("_published", "")]
    table = pd.DataFrame(rows, columns=["model", "checkpoint", *columns, "n", "n_failed"])
    return table.round(dict.fromkeys(SCORES, 3)).astype({"n": "Int64", "n_failed": "Int64"})


def _scored(path: Path | None) -> Mapping[str, float]:
    if path is None:
        return {}
    files = pd.read_csv(path)
    missing = set(SCORES.values()) - set(files.columns)
    if missing:
        names = ", ".join(sorted(missing))
        raise UserError(f"{path}: lacks the columns {names}; run `speechlab evaluate` again")
    means = {metric: files[ours].mean() for metric, ours in SCORES.items()}
    n_failed = files[list(SCORES.values())].isna().any(axis=1).sum()
    return means | {"n": len(files), "n_failed": n_failed}


def scores_markdown(table: pd.DataFrame) -> str:
    """The table of `scores` for people."""
    heads = ["model", *(f"{head} published" for head in HEADS.values()), "measured here"]
    lines = [heads, ["---", *["---:"] * len(SCORES), "---"]]
    for row in _rows(table):
        cells = [row[f"{metric}_published"] for metric in SCORES]
        texts = [MISSING if pd.isna(value) else f"{value:.2f}" for value in cells]
        lines.append([row["model"], *texts, _measured(row)])
    note = (
        f"VoiceBank-DEMAND test, {N_FILES} files. PESQ in MOS-LQO; CSIG, CBAK, COVL from 1 to 5; "
        "STOI from 0 to 1; higher is better. PCS is perceptual contrast stretching of the "
        f"estimate. *{MISSING}*: not among the published figures that this study was given."
    )
    return markdown_table(lines) + f"\n{note}\n"


def _measured(row: Row) -> str:
    if not pd.isna(row["n"]):
        means = ", ".join(f"{head} {row[metric]:.2f}" for metric, head in HEADS.items())
        failed = f", {row['n_failed']} failed" if row["n_failed"] else ""
        return f"{means}, on {row['n']} of {N_FILES} files{failed}"
    if row["model"] == "noisy":
        return "not measured: no test set here"
    where = "are published" if pd.isna(row["checkpoint"]) else "here"
    return f"not measured: no weights {where}"


def write(
    results: str | Path, source: str | Path | None = None, output: str | Path | None = None
) -> list[Path]:
    """Write both tables under `output`, from its counts and rows per file; returns their paths.

    source: the folder of the published tables, where it is not in `results`; output: `results`
    unless given; what both have of rows per file is read from `results`.
    """
    output = Path(output or results)
    if not (output / COUNTS).is_file():
        fix = "restore it from the repository, or run notebooks/11_paper_tables.ipynb"
        raise UserError(f"{output / COUNTS}: no such table; {fix}")
    printed = published(source or Path(results) / "published")
    cost = costs(printed, pd.read_csv(output / COUNTS))
    score = scores(printed, Path(results) / "metrics", output / "metrics")
    return write_tables(
        output / "tables",
        {
            "spectral_costs": (cost, costs_markdown(cost)),
            "spectral_scores": (score, scores_markdown(score)),
        },
    )


def write_counts(results: str | Path, counts: pd.DataFrame) -> Path:
    """Write what `counted` gives to where `write` reads it."""
    path = Path(results) / COUNTS
    replace_text(path, counts.to_csv(index=False, lineterminator="\n"))
    return path
