"""Scores of a model on whole dev files, for validation in training and for the notebooks."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from speechlab.data.mixing import whole_pairs
from speechlab.data.recordings import Source
from speechlab.errors import UserError
from speechlab.evaluation import separation_metrics
from speechlab.evaluation.separation_metrics import Speaker


def score_files(
    model: nn.Module, mixtures: Sequence[Source], names: Sequence[str]
) -> Iterator[tuple[str, float, list[Speaker]]]:
    """Name and seconds of each ready mixture, and the scores of its sources in the best order.

    UserError where the model gives another number of sources. names: in
    `separation_metrics.METRICS`.
    """
    rate = model.sample_rate
    for name, mixture, sources in whole_pairs(mixtures, rate):
        estimates = estimated(model, mixture)
        if estimates.shape != sources.shape:
            shapes = f"{tuple(estimates.shape)} for sources {tuple(sources.shape)}"
            raise UserError(f"{name}: the model gave {shapes}; take mixtures of as many sources")
        signals = (part.numpy() for part in (estimates, sources, mixture[0]))
        yield name, len(mixture[0]) / rate, separation_metrics.score(*signals, rate, names)


def estimated(model: nn.Module, mixture: Tensor) -> Tensor:
    """mixture (1, T) -> estimates (S, T) on the CPU, in the order in which the model gives them."""
    device = next(model.parameters(), mixture).device
    with torch.inference_mode():
        return model(mixture[None].to(device))[0].cpu()
