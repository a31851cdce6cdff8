"""Time and memory of a model: what is measured is that of the call."""

import ctypes
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from speechlab.config import override
from speechlab.evaluation import cost, memory
from speechlab.models.cleanumamba import CleanUMamba, ablation_config
from tests.support.small_models import SMALL
from tests.support.warm import ROOT

TINY = SMALL["cleanumamba"]
MEGABYTE = 2**20


def test_latency():
    assert cost.latency_ms(CleanUMamba(TINY)) == 1000 * 21 / 16000
    assert cost.latency_ms(CleanUMamba(override(TINY, normalize="utterance"))) == math.inf


def test_real_time_factor_is_time_over_length():
    class Slow(torch.nn.Linear):
        sample_rate = 16000

        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            assert noisy.shape == (1, 1, 1600) and torch.get_num_threads() == 1
            end = time.process_time() + 0.02
            while time.process_time() < end:
                pass
            return noisy

    assert 0.2 <= cost.real_time_factor(Slow(1, 1), seconds=0.1) < 1


def test_peak_memory_is_that_of_the_call():
    """Fifty megabytes for a moment; nothing kept, nothing of the imports."""
    peak = memory.peak_memory(np.ones, 50 * MEGABYTE // 8)
    if math.isnan(peak):
        pytest.skip("this system does not give the resident set of a process")
    assert 49 * MEGABYTE <= peak <= 60 * MEGABYTE


# What 800 arrays of 64 KiB add where as many were freed before, below one that stays
TAKEN_AGAIN = """
import numpy as np
from speechlab.evaluation import memory
freed = [np.ones(2**16 // 8) for _ in range(800)]
stays = np.ones(2**16 // 8)
del freed
print(memory.added_memory(lambda: [np.ones(2**16 // 8) for _ in range(800)]))
"""


def test_memory_freed_before_does_not_hide_what_a_call_takes():
    added = float(subprocess.check_output([sys.executable, "-c", TAKEN_AGAIN], cwd=ROOT))
    if math.isnan(added) or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this system does not give the resident set, or keeps freed memory")
    assert 49 * MEGABYTE <= added <= 60 * MEGABYTE


def test_stream_cost_is_that_of_its_stream():
    model = CleanUMamba(override(ablation_config(), normalize="running")).eval()
    found = cost.stream_cost(model, 0.1 * torch.randn(1, 1, 16 * 256), "modules")
    assert (found.latency_samples, found.hop_ms) == (765, 16.0)
    assert found.n_params == 441_601
    assert 0 < found.median_ms <= found.p95_ms
    assert found.state_bytes > 0
