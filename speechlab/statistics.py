"""Means with their uncertainty."""

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap


class Mean(NamedTuple):
    mean: float
    low: float  # ends of the confidence interval, in the unit of the values
    high: float
    n: int


def mean_interval(values: np.ndarray, confidence: float = 0.95, seed: int = 0) -> Mean:
    """Mean of independent values, (n,), with its bootstrap percentile interval (9999 draws).

    NaN is refused with a ValueError: the caller drops failures and says how many. The interval of
    one value is NaN, and so is the mean of none. The same seed gives the same numbers.
    """
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("values hold NaN or infinity: drop them first and count them")
    if len(values) < 2:
        return Mean(float(values[0]) if len(values) else np.nan, np.nan, np.nan, len(values))
    drawn = bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        method="percentile",
        batch=1000,  # bounds the memory
        rng=np.random.default_rng(seed),
    )
    low, high = drawn.confidence_interval
    return Mean(float(values.mean()), float(low), float(high), len(values))
