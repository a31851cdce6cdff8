"""Scores of a model on whole dev files, for validation in training and for the notebooks.

A file of at most `Model.chunk_s` goes through the model at once, a longer one as `enhance` and
`separate` give it: the memory of a pass does not grow with the file. Test sets are scored so, too.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import tee

import torch
from torch import Tensor

from speechlab.data.mixing import whole_pairs
from speechlab.data.recordings import Source
from speechlab.errors import UserError
from speechlab.evaluation import separation_metrics
from speechlab.evaluation.separation_metrics import Speaker
from speechlab.inference.enhance import enhance_blocks
from speechlab.inference.separate import separate_blocks
from speechlab.inference.stream import Stream
from speechlab.models.base import Model


def score_files(
    model: Model, mixtures: Sequence[Source], names: Sequence[str], heard: str = "alone"
) -> Iterator[tuple[str, float, list[Speaker]]]:
    """Name and seconds of each ready mixture, and the scores of its sources in the best order.

    names: in `separation_metrics.METRICS`.
    heard: a name in HEARD.

    UserError where the model gives another number of sources.
    """
    rate = model.sample_rate
    pairs, again = tee(whole_pairs(mixtures, rate))
    every = HEARD[heard](model, (mixture for _, mixture, _ in again))
    for (name, mixture, sources), estimates in zip(pairs, every, strict=True):
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


@torch.inference_mode()
def _streamed(model: Model, mixtures: Iterable[Tensor]) -> Iterator[Tensor]:
    """Estimates (S, T) of mixtures (1, T) that are one stream, one after another."""
    stream, lengths, ready = Stream(model, level="published"), [], torch.zeros(model.n_sources, 0)

    def given() -> Iterator[Tensor]:
        for mixture in mixtures:
            lengths.append(mixture.shape[-1])
            chunks = mixture[None].to(model.device).split(model.sample_rate, -1)
            yield torch.cat([stream.feed(chunk) for chunk in chunks], -1)
        yield stream.flush()

    for estimate in given():
        ready = torch.cat([ready, estimate[0].cpu()], -1)
        while lengths and lengths[0] <= ready.shape[-1]:
            yield ready[:, : lengths[0]]
            ready = ready[:, lengths.pop(0) :]


# How the files are heard: each from rest, or as one long recording
HEARD: dict[str, Callable[[Model, Iterable[Tensor]], Iterator[Tensor]]] = {
    "alone": lambda model, mixtures: (estimated(model, mixture) for mixture in mixtures),
    "stream": _streamed,
}
