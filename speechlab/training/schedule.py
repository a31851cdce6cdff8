"""The settings of a training, and the learning rate over its steps."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from speechlab.config import Range, Size
from speechlab.errors import UserError


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of `fit`, besides objective, examples and dev scores."""

    # length and batches
    n_steps: Annotated[int, Range(1, 10**9)] = 10_000  # optimiser steps
    batch_size: Size = 4  # examples at once, over all processes
    accumulate: Size = 1  # batches per step
    seed: int = 0  # of examples and of the model's random draws
    # of PyTorch on the CPU; another number changes rounding
    n_threads: Annotated[int, Range(1, 1024)] = 1
    # processes that make examples, and as many that compute PESQ; 0: this one
    n_workers: Annotated[int, Range(0, 1024)] = 0
    # optimiser of every phase without its own
    optimizer: Literal["adam", "adamw"] = "adamw"  # they differ in weight_decay
    lr: float = 1e-4  # learning rate at a schedule factor of 1
    betas: tuple[float, float] = (0.9, 0.999)  # per step; Adam's averages
    weight_decay: float = 0.0  # adamw: per step and lr; adam: added to the gradient
    clip_norm: float = 0.0  # largest gradient norm of a phase; 0: no clipping
    # schedule: a factor on every learning rate
    schedule: Literal["constant", "cosine", "exponential"] = "cosine"  # after the warm-up
    warmup: float = 0.05  # fraction of n_steps over which the factor rises to 1
    warmup_start: float = 0.04  # factor of the first step of a warm-up
    decay: float = 0.99  # factor per epoch of "exponential"
    # numbers
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of autocast
    ema: float = 0.0  # decay per step of the averaged weights, which are scored and saved; 0: none
    # scores on dev
    metric: str = "si_sdr"  # column of the dev scores; fewest failed files are best, then its mean
    direction: Literal["max", "min"] = "max"  # which direction is better
    validate_every: int = 1000  # steps
    patience: int = 0  # validations without a new best before the end; 0: no early end
    # records
    log_every: int = 50  # steps per row of history.csv
    checkpoint_every: int = 500  # steps; after every validation too
    max_bad_steps: int = 25  # in a row; float16 may halve its scale of 2^16 this often at the start
    loggers: tuple[str, ...] = ("csv",)  # names in `loggers.LOGGERS`; csv is always one


FREE = ("n_workers", "loggers", "checkpoint_every")  # change no number
CHANGEABLE = (  # by `resume`: they do not affect earlier steps
    *("n_steps", "lr", "schedule", "warmup", "warmup_start", "decay", "clip_norm"),
    *("validate_every", "patience", "log_every", "max_bad_steps", "n_threads", *FREE),
)
_LEAST = {"n_workers": 0, "seed": 0, "patience": 0}  # others: 1


def check(config: TrainingConfig) -> None:
    """UserError for an impossible value."""
    for name, value in vars(config).items():
        if type(value) is int and value < _LEAST.get(name, 1) and name not in _REALS:
            raise UserError(f"{name} is {value}; it must be {_LEAST.get(name, 1)} or more")
    for name in _REALS:
        low, high = _REALS[name]
        value = getattr(config, name)
        if not low <= value <= high:  # NaN is in no range
            raise UserError(f"{name} is {value}; it must lie in {low} to {high:g}")
    if config.ema == 1 or not all(0 <= beta < 1 for beta in config.betas):
        raise UserError("ema and betas must be less than 1: at 1 nothing is learnt")


_REALS = {
    **dict.fromkeys(("lr", "weight_decay"), (0, 1000)),  # float32 overflows beyond
    "clip_norm": (0, 1e30),
    **dict.fromkeys(("warmup", "warmup_start", "decay", "ema"), (0, 1)),
}


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
