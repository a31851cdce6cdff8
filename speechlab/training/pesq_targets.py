"""What a metric discriminator learns: the PESQ of estimates, in processes beside the training.

    estimate, clean (B, T) ─ PESQ-WB of each, at once ─► (PESQ - 1) / 3.5, NaN where there is none

PESQ is not defined for every clip (silence, less than a quarter of a second, no utterance found),
and its C code may fall. A clip without a value is NaN here and nowhere anything else.

The caller waits for all of them, and a value is a function of its clip, so that a training resumes
exactly whatever the number of processes. The time limit is there for a clip that never ends. It
is a hundred times what two seconds of sound take, and a clip that reaches it is tried once more:
only a machine that stands still twice for one clip would change a number.
"""

import math

import numpy as np
import torch
from torch import Tensor

from speechlab.evaluation.metrics import MetricError, pesq_wb
from speechlab.parallel import Workers

SAMPLE_RATE = 16000  # Hz; wide-band PESQ has no other
LEAST, SPAN = 1.0, 3.5  # of PESQ: its targets are 0 to 1.04
LIMIT_S = 60.0  # seconds for a clip

Clip = tuple[np.ndarray, np.ndarray]  # estimate, clean: (T,) each


def pesq_or_nan(clip: Clip) -> float:
    """PESQ-WB, or NaN where it has none."""
    try:
        return pesq_wb(*clip, SAMPLE_RATE)
    except MetricError:
        return math.nan


class PesqTargets:
    """Estimate, clean (B, T) -> targets (B,), by up to `n_workers` processes; 0: by this one."""

    def __init__(self, n_workers: int = 4, limit_s: float = LIMIT_S) -> None:
        """In this process a clip that falls or hangs takes the training with it."""
        self.workers = Workers(pesq_or_nan, n_workers, limit_s) if n_workers else None

    def __call__(self, estimate: Tensor, clean: Tensor) -> Tensor:
        """NaN where a clip has no PESQ; no gradient passes."""
        signals = (x.detach().float().cpu().numpy() for x in (estimate, clean))
        clips = list(zip(*signals, strict=True))
        found = map(pesq_or_nan, clips) if self.workers is None else self.workers.results(clips)
        scores = [math.nan if score is None else score for score in found]
        return (torch.tensor(scores, device=clean.device).float() - LEAST) / SPAN

    def close(self) -> None:
        """End the processes; the next call begins new ones."""
        if self.workers is not None:
            self.workers.close()
