"""The benchmarks measure what they say: widths known without a file are those of the file."""

import numpy as np
import pytest

import speechlab
from benchmarks import cleanumamba
from speechlab.complexity import macs_per_second, n_params


@pytest.mark.parametrize("name", cleanumamba.KNOWN)
def test_random_models_have_the_widths_of_the_published(shared, name, tmp_path):
    folder = shared / "upstream_checkpoints/cleanumamba"
    published = speechlab.load(folder / f"{name}.pkl")
    model, weights = cleanumamba.build(name, tmp_path)
    assert weights == "random"
    assert n_params(model) == n_params(published)
    assert macs_per_second(model) == macs_per_second(published)


def test_a_row_of_the_streaming_benchmark(tmp_path, monkeypatch):
    """All three ways on the same hops; the first frame takes its samples and some work."""
    monkeypatch.setattr(cleanumamba, "WARM", 2)
    monkeypatch.setattr(cleanumamba, "HOPS", 60)
    monkeypatch.setattr(cleanumamba, "ROUNDS", 2)
    model, _ = cleanumamba.build(cleanumamba.HALF_MILLION, tmp_path)
    row = cleanumamba.measure(model, quick=True)
    assert row["hop_samples"] == 256 and row["hop_ms"] == 16
    assert row["first_frame_ms"] > 1000 * 766 / 16000
    assert all(np.isfinite(value) and value > 0 for value in row.values())
    assert row["speedup"] == row["modules_ms"] / row["stepped_ms"]
