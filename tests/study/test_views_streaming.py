"""Where a stream was not measured the committed rows are shown, and said to be."""

import pandas as pd
import pytest

from speechlab.study import views_streaming


def rows(loss: float) -> pd.DataFrame:
    """Two recordings under one condition."""
    known = {"checkpoint": "x", "gain_db": 12, "silence_s": 0, "running": 2.0}
    files = [{"file": str(i), "utterance": 2.0 + loss + i} for i in (0, 1)]
    return views_streaming.level_rows([known | of_file for of_file in files])


@pytest.mark.parametrize("measured", [True, False])
def test_measured_or_committed(tmp_path, monkeypatch, measured):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda what, **_: shown.append(str(what)))
    path = tmp_path / views_streaming.ROWS
    path.parent.mkdir()
    rows(0.25).to_csv(path, index=False)
    given = rows(1.0) if measured else views_streaming.level_rows([])
    means = views_streaming.level_means(given, tmp_path)
    assert means.index.tolist() == [("x", 12, 0)]
    assert means["loss"].tolist() == [1.5 if measured else 0.75]
    assert bool(shown) != measured
    assert all("committed rows are shown instead" in text for text in shown)
