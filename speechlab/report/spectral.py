"""Tables of SEMamba and MP-SENet: counted costs and our scores beside the published ones.

published/*_voicebank_demand.csv (sizes and MACs in a note, as "2.26M params; 65.46 GFLOPs"),
benchmarks/spectral_macs.csv (of `benchmarks/macs.py`) and metrics/ -> tables/spectral_costs.* and
tables/spectral_scores.*, all under results/.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from speechlab.errors import UserError
from speechlab.report.markdown import (
    ABSENT,
    TEXT,
    Column,
    PaperTable,
    Row,
    count,
    number,
    per_file,
    read_counts,
    read_table,
    records,
)

COUNTS = Path("benchmarks/spectral_macs.csv")
TEST_SETS = ("voicebank_demand_test", "voicebank_demand_test_118")  # all files, and our part
N_FILES = 824  # of all

LENGTHS_S = (4, 10)  # of the inputs that the full count is for
CAUSAL, WHOLE = "SEMamba basic causal", "SEMamba basic non-causal"
ADVANCED, FORWARD = "SEMamba advanced non-causal", "SEMamba advanced uni-directional"
TRANSFORMER, TRANSFORMER_WHOLE = "Transformer basic causal", "Transformer basic non-causal"
CONFORMER = "Conformer, MP-SENet's first version"
MAMBA_BRANCH = "MP-SENet + Mamba"
# (n_frames, seconds) of the printed MACs: 256 samples apart, or 100
BASIC, LARGE = (250, 4), (321, 2)
FRAMES = dict.fromkeys((CAUSAL, TRANSFORMER, WHOLE, TRANSFORMER_WHOLE), BASIC) | dict.fromkeys(
    (ADVANCED, FORWARD, CONFORMER, "MP-SENet", MAMBA_BRANCH), LARGE
)
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
HEADS = {"pesq_wb": "PESQ-WB", "csig": "CSIG", "cbak": "CBAK", "covl": "COVL", "stoi": "STOI"}
CHECKPOINTS = {  # names of `speechlab weights list`, whose rows per file are called so
    "noisy": "noisy",
    ADVANCED: "SEMamba_advanced",
    f"{ADVANCED} + PCS": "SEMamba_advanced_PCS",  # the same weights, `enhance --pcs`
    "MP-SENet": "g_best_vb",
    MAMBA_BRANCH: "best_model",
}
SCORES_NOTE = (
    f"VoiceBank-DEMAND test, {N_FILES} files. PESQ in MOS-LQO; CSIG, CBAK, COVL from 1 to 5; "
    "STOI from 0 to 1; higher is better. PCS is perceptual contrast stretching of the "
    f"estimate. {ABSENT}: no value in `results/published`."
)


def tables(given: str | Path, results: Sequence[str | Path] = ()) -> dict[str, PaperTable]:
    """Costs and scores, by name. given, results: as `paper.tables` takes them."""
    printed = published(Path(given) / "published")
    cost = costs(printed, read_counts(Path(given) / COUNTS))
    score = scores(printed, *(results or [given]))
    return {
        "spectral_costs": PaperTable(cost, _costs_columns(), costs_note(cost)),
        "spectral_scores": PaperTable(score, _scores_columns(), SCORES_NOTE),
    }


def published(folder: str | Path) -> pd.DataFrame:
    """What is printed on VoiceBank-DEMAND: model, the metrics of `SCORES`, note."""
    names = ("semamba", "baselines", "mpsenet_mamba")
    *models, pairs = (read_table(Path(folder) / f"{name}_voicebank_demand.csv") for name in names)
    pairs = dict(pairs.itertuples(index=False))
    last = {"model": MAMBA_BRANCH, "note": f"{pairs['params']} params"}
    last |= {metric: float(pairs[metric]) for metric in SCORES}
    return pd.concat([*models, pd.DataFrame([last])], ignore_index=True)


def costs(printed: pd.DataFrame, counts: pd.DataFrame) -> pd.DataFrame:
    """A row per counted model: printed and counted size and MACs, and their change to the rival.

    change_*_percent: MACs against those of the rival, which is the model that the paper compares
    with; below zero is less.
    """
    notes = printed.set_index("model")["note"].fillna("")
    notes = notes[counts["model"].replace(PRINTED_AS)].reset_index(drop=True)
    table = counts[["model", "n_params", "n_frames"]].assign(rival=counts["model"].map(RIVALS))
    sizes = notes.str.extract(r"([\d.]+[KM]) params", expand=False)
    table["params_published"] = sizes.map(number, na_action="ignore")
    gmacs = notes.str.extract(r"([\d.]+) GFLOPs", expand=False).astype(float)
    table["gmacs_published"], table["gmacs_profiled"] = gmacs, counts["macs_profiled"] / 1e9
    for seconds in LENGTHS_S:
        table[f"gmacs_{seconds}s"] = counts[f"macs_per_second_{seconds}s"] / 1e9
    for way in WAYS:
        macs = table.set_index("model")[f"gmacs_{way}"]
        change = 100 * (table[f"gmacs_{way}"] / table["rival"].map(macs) - 1)
        table[f"change_{way}_percent"] = change.round(1)
    columns = ["model", "rival", "params_published", "n_params", "n_frames"]
    columns += [f"gmacs_{way}" for way in WAYS] + [f"change_{way}_percent" for way in WAYS]
    table = table[columns].round({f"gmacs_{way}": 4 for way in WAYS})
    return table.astype({"params_published": "Int64"})


def _costs_columns() -> list[Column]:
    full = [f"in full, {seconds} s" for seconds in LENGTHS_S]
    reference = Column("model", "", _compared_with)
    shown = [
        Column("model", "model", align=TEXT),
        Column(
            "params_published", "parameters published", lambda row: count(row["params_published"])
        ),
        Column("n_params", "counted", "{:,d}"),
        Column("gmacs_published", "GMACs published", _printed_gmacs),
        Column("gmacs_profiled", "by its profiler", "{:.2f}"),
    ]
    for seconds, how in zip(LENGTHS_S, full, strict=True):
        shown.append(Column(f"gmacs_{seconds}s", f"GMACs per s {how}", "{:.3g}"))
    for way, how in zip(WAYS, ("published", "by its profiler", *full), strict=True):
        head = f"against the Transformer {how}"
        shown.append(Column(f"change_{way}_percent", head, "{:+.1f} %", reference))
    return shown


def _printed_gmacs(row: Row) -> str:
    return f"{row['gmacs_published']:.2f} in {FRAMES[row['model']][1]} s"


def _compared_with(row: Row) -> str:
    return "the reference" if row["model"] in RIVALS.values() else ABSENT


def costs_note(table: pd.DataFrame) -> str:
    """The text below it: units, what each count includes, and the savings by either."""
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
        "layers, but not norms (`speechlab.models.macs.profiled_macs`). *In full*: every layer, "
        "scan and attention, per second of an input of that length (`macs_per_second`). Below 0 % "
        "is less than the Transformer, which for the advanced models is the Conformer. "
        f"{ABSENT}: no value in `results/published`, or no Transformer to compare with. "
        "Axes of MP-SENet are as its published weights need them; with named "
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


def scores(printed: pd.DataFrame, *results: str | Path) -> pd.DataFrame:
    """A row per printed model, and the means of its rows per file if there are any.

    results: folders with metrics/<test set>/<checkpoint>.csv; the first that has a file counts,
    and the whole test set comes before its part.
    """
    rows = []
    for row in records(printed):
        checkpoint = CHECKPOINTS.get(row["model"])
        paths = [per_file(checkpoint, name, results) for name in TEST_SETS if checkpoint]
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


def _scores_columns() -> list[Column]:
    shown = [Column("model", "model", align=TEXT)]
    for metric, head in HEADS.items():
        shown.append(Column(f"{metric}_published", f"{head} published", "{:.2f}"))
    unpublished = "not measured: no weights are published"
    unmeasured = Column("checkpoint", "", _unmeasured, unpublished)
    return [*shown, Column("n", "measured here", _measured, unmeasured, TEXT)]


def _measured(row: Row) -> str:
    means = ", ".join(f"{head} {row[metric]:.2f}" for metric, head in HEADS.items())
    failed = f", {row['n_failed']} failed" if row["n_failed"] else ""
    return f"{means}, on {row['n']} of {N_FILES} files{failed}"


def _unmeasured(row: Row) -> str:
    return f"not measured: no {'test set' if row['model'] == 'noisy' else 'weights'} here"
