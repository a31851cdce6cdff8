"""Estimates of a model: a long file in chunks scores as the file at once, in validation too."""

from pathlib import Path

import numpy as np
import pytest
import torch

from speechlab.evaluation import dev_files, estimates
from speechlab.evaluation.metrics import METRICS
from speechlab.models import SYSTEMS
from tests.evaluation.conftest import drawn
from tests.support.small_models import SMALL


@pytest.mark.parametrize("name", ["cleanumamba", "sepmamba"])
def test_a_long_file_scores_as_at_once_and_the_model_gets_chunks(monkeypatch, name):
    """A causal model; one that enhances, and one that separates."""
    torch.manual_seed(0)
    model = SYSTEMS[name][1](SMALL[name]).eval()
    monkeypatch.setattr(estimates, "loaded", lambda *_: model)
    rate, seen, network = model.sample_rate, [], model.network
    monkeypatch.setattr(
        model, "network", lambda x, *rest, **last: seen.append(x) or network(x, *rest, **last)
    )
    noisy, lengths, made = drawn(0, round(2.5 * rate)), {}, {}
    for chunk_s in (30.0, 1.0):
        monkeypatch.setattr(model, "chunk_s", chunk_s)
        made[chunk_s] = estimates.processed(Path(name), noisy, rate, model.n_sources)
        lengths[chunk_s] = [x.shape[-1] for x in seen]
        seen.clear()
    assert len(lengths[30.0]) == 1 and max(lengths[1.0]) <= rate
    of_dev = dev_files.estimated(model, torch.from_numpy(noisy.astype(np.float32))[None])
    assert np.array_equal(of_dev.double().numpy(), made[1.0])
    for at_once, in_chunks in zip(made[30.0], made[1.0], strict=True):
        rms = np.sqrt(np.mean(at_once**2))
        clean = at_once + 0.1 * rms * drawn(1, len(noisy))
        scores = [METRICS["si_sdr"](estimate, clean, rate) for estimate in (at_once, in_chunks)]
        assert scores[0] == pytest.approx(20, abs=1)
        assert scores[1] == pytest.approx(scores[0], abs=1e-3)
