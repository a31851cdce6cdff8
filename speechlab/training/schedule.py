"""The settings of a training, and the learning rate over its steps."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from speechlab.config import Range, Size

Factor = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 0.999999)]  # per step, of an average; at 1 nothing is learnt
Rate = Annotated[float, Range(0, 1000)]  # float32 overflows beyond
Steps = Annotated[int, Range(1, 10**9)]


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of `fit`, besides objective, examples and dev scores."""

    # length and batches
    n_steps: Steps = 10_000  # optimiser steps
    batch_size: Size = 4  # examples at once, over all processes
    accumulate: Size = 1  # batches per step
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0  # of examples and of the model's random draws
    # of PyTorch on the CPU; another number changes rounding
    n_threads: Annotated[int, Range(1, 1024)] = 1
    # processes that make examples, and as many that compute PESQ; 0: this one
    n_workers: Annotated[int, Range(0, 1024)] = 0
    # optimiser of every phase without its own
    optimizer: Literal["adam", "adamw"] = "adamw"  # they differ in weight_decay
    lr: Rate = 1e-4  # learning rate at a schedule factor of 1
    betas: tuple[Decay, Decay] = (0.9, 0.999)  # per step; Adam's averages
    weight_decay: Rate = 0.0  # adamw: per step and lr; adam: added to the gradient
    # largest gradient norm of a phase; 0: no clipping
    clip_norm: Annotated[float, Range(0, 1e30)] = 0.0
    # schedule: a factor on every learning rate
    schedule: Literal["constant", "cosine", "exponential"] = "cosine"  # after the warm-up
    warmup: Factor = 0.05  # fraction of n_steps over which the factor rises to 1
    warmup_start: Factor = 0.04  # factor of the first step of a warm-up
    decay: Factor = 0.99  # factor per epoch of "exponential"
    # numbers
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of autocast
    # decay per step of the averaged weights, which are scored and saved; 0: none
    ema: Decay = 0.0
    # scores on dev
    metric: str = "si_sdr"  # column of the dev scores; fewest failed files are best, then its mean
    direction: Literal["max", "min"] = "max"  # which direction is better
    validate_every: Steps = 1000  # steps
    # validations without a new best before the end; 0: no early end
    patience: Annotated[int, Range(0, 10**9)] = 0
    # records
    log_every: Steps = 50  # steps per row of history.csv
    checkpoint_every: Steps = 500  # steps; after every validation too
    # in a row; float16 may halve its scale of 2^16 this often at the start
    max_bad_steps: Steps = 25
    loggers: tuple[str, ...] = ("csv",)  # names in `loggers.LOGGERS`; csv is always one


FREE = ("n_workers", "loggers", "checkpoint_every")  # change no number
CHANGEABLE = (  # by `resume`: they do not affect earlier steps
    *("n_steps", "lr", "schedule", "warmup", "warmup_start", "decay", "clip_norm"),
    *("validate_every", "patience", "log_every", "max_bad_steps", "n_threads", *FREE),
)


def factor(config: TrainingConfig, step: int, epoch: int) -> float:
    """Multiplies the learning rates in a step, counted from 0."""
    n_warm = round(config.warmup * config.n_steps)
    if step < n_warm:
        return config.warmup_start + (1 - config.warmup_start) * step / n_warm
    if config.schedule == "cosine":
        done = (step - n_warm) / max(1, config.n_steps - n_warm)
        return 0.5 * (1 + math.cos(math.pi * min(1, done)))
    return config.decay**epoch if config.schedule == "exponential" else 1.0


def epoch_of(step: int, config: TrainingConfig, length: int) -> int:
    """The epoch, from 0, in which a step begins; length: examples in an epoch."""
    return step * config.accumulate // math.ceil(length / config.batch_size)
