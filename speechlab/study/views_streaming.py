"""What notebook 10 shows of the running level: PESQ-WB of file and stream, by condition."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

ROWS = Path("streamed/level_dev_pairs.csv")  # in the folder of results
CONDITION = ["checkpoint", "gain_db", "silence_s"]


def level_rows(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row per recording and condition, and what its stream loses. rows: may be none."""
    columns = ["checkpoint", "file", "gain_db", "silence_s", "utterance", "running"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(loss=table["utterance"] - table["running"])


def level_means(rows: pd.DataFrame, results: str | Path) -> pd.DataFrame:
    """The mean PESQ-WB of `level_rows` by condition.

    Where nothing was measured, the means of the committed rows in `results`; the notebook says so.
    """
    if rows.empty:
        from IPython.display import display

        told = "Not measured here: pairs or weights are missing. The committed rows are shown "
        display({"text/markdown": f"{told}instead, `results/{ROWS.as_posix()}`."}, raw=True)
        rows = pd.read_csv(Path(results) / ROWS)
    means = rows.groupby(CONDITION, sort=False)[["utterance", "running", "loss"]].mean()
    return means.round(3)
