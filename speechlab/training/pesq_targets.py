"""Targets of a metric discriminator: PESQ of estimates, computed in worker processes.

    estimate, clean (B, T) ─ PESQ-WB of each, in parallel ─► (PESQ - 1) / 3.5, NaN if undefined

PESQ is undefined for some clips (silence, less than 0.25 s, no utterance found), and its C code may
crash. Such a clip gives NaN.

The caller waits for all clips, and a value is a function of its clip: a training resumes exactly
with any number of processes. The time limit is for a clip that never ends. It is a hundred times
the time of 2 s of sound, and such a clip is tried once more: only a machine that hangs twice for
one clip changes a number.
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
    """PESQ-WB, or NaN if undefined."""
    try:
        return pesq_wb(*clip, SAMPLE_RATE)
    except MetricError:
        return math.nan


class PesqTargets:
    """Estimate, clean (B, T) -> targets (B,), by up to `n_workers` processes; 0: by this one."""

    def __init__(self, n_workers: int = 4) -> None:
        """With 0 workers a clip that crashes or hangs ends the training."""
        self.workers = Workers(pesq_or_nan, n_workers, LIMIT_S) if n_workers else None

    def __call__(self, estimate: Tensor, clean: Tensor) -> Tensor:
        """NaN for a clip without PESQ; no gradient passes."""
        signals = (x.detach().float().cpu().numpy() for x in (estimate, clean))
        clips = list(zip(*signals, strict=True))
        found = map(pesq_or_nan, clips) if self.workers is None else self.workers.results(clips)
        scores = [math.nan if score is None else score for score in found]
        return (torch.tensor(scores, device=clean.device).float() - LEAST) / SPAN

    def close(self) -> None:
        """End the processes; the next call starts new ones."""
        if self.workers is not None:
            self.workers.close()
