"""Scores of a model on whole dev files, for validation in training and for the notebooks.

A file of at most `Model.chunk_s` goes through the model at once, a longer one as `enhance` and
`separate` give it: the memory of a pass does not grow with the file. Test sets are scored so, too.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from speechlab.data.mixing import whole_pairs
from speechlab.data.recordings import Source
from speechlab.errors import UserError
from speechlab.evaluation import separation_metrics
from speechlab.evaluation.separation_metrics import Speaker
from speechlab.inference.enhance import enhance_blocks
from speechlab.inference.separate import separate_blocks
from speechlab.models.base import Model


def score_files(
    model: Model, mixtures: Sequence[Source], names: Sequence[str]
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


@torch.inference_mode()
def estimated(model: Model, mixture: Tensor) -> Tensor:
    """mixture (1, T) -> estimates (S, T) on the CPU, in the order in which the model gives them."""
    blocks = mixture.split(round(model.chunk_s * model.sample_rate), -1)
    if len(blocks) == 1:
        return model(mixture[None].to(model.device))[0].cpu()
    if model.n_sources > 1:
        return torch.cat(list(separate_blocks(model, blocks)), -1)[0]
    return torch.cat(list(enhance_blocks(model, blocks)), -1)
