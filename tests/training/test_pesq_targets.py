"""PESQ as a target: the metric's number, NaN where there is none, whoever computes it."""

import os
import signal

import numpy as np
import pytest
import soundfile
import torch

from speechlab.evaluation.metrics import pesq_wb
from speechlab.training.pesq_targets import PesqTargets


@pytest.fixture(scope="module")
def clips(shared):
    """Estimate and clean (5, 8000): two with a PESQ, silence, a NaN, a silent estimate."""
    folder = shared / "audio/pairs/voicebank_demand_train"
    path = sorted((folder / "clean").glob("*.flac"))[0]
    paths = (folder / part / path.name for part in ("clean", "noisy"))
    clean, noisy = (soundfile.read(x, dtype="float32")[0][8000:16000] for x in paths)
    clean, estimate = torch.tensor(np.stack([clean] * 5)), torch.tensor(np.stack([noisy] * 5))
    estimate[1] = 0.5 * (clean[1] + estimate[1])
    clean[2] = 0
    estimate[3, 17] = torch.nan
    estimate[4] = 0
    return estimate, clean


def test_targets_are_the_metrics_numbers_by_any_number_of_processes(clips):
    here, there = PesqTargets(0), PesqTargets(2)
    try:
        found = there(*clips)
        assert torch.equal(here(*clips).nan_to_num(-9), found.nan_to_num(-9))
        estimate, clean = (x.numpy() for x in clips)
        for i in range(2):
            expected = (pesq_wb(estimate[i], clean[i], 16000) - 1) / 3.5
            assert found[i].item() == pytest.approx(expected, abs=1e-6)
        assert found.isnan().tolist() == [False, False, True, True, True]
        for worker in there.workers._idle:
            os.kill(worker.process.pid, signal.SIGKILL)
        assert torch.equal(there(*clips).nan_to_num(-9), found.nan_to_num(-9))
    finally:
        there.close()


def test_a_perfect_estimate_has_the_best_score(clips):
    _, clean = clips
    assert PesqTargets(0)(clean[:1], clean[:1]).item() == pytest.approx((4.644 - 1) / 3.5, abs=1e-3)


def test_too_short_for_pesq_is_nan():
    noise = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    assert PesqTargets(0)(noise, noise).isnan().all()
    assert PesqTargets(2)(noise[:0], noise[:0]).shape == (0,)


def test_no_gradient_passes_and_half_precision_is_read(clips):
    estimate, clean = (x[:1].to(torch.bfloat16) for x in clips)
    found = PesqTargets(0)(estimate.requires_grad_(), clean)
    assert not found.requires_grad and found.dtype == torch.float32 and found.isfinite().all()
