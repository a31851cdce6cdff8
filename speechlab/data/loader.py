"""Batches of examples from any position, made in this process or in others.

A batch is a pure function of (examples, batch size, seed, position). The order of an epoch is drawn
from (seed, epoch), and an example depends on its key. Processes and ranks only divide the work.
"""

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speechlab.data.mixing import Examples, generator
from speechlab.errors import UserError
from speechlab.parallel import context, obey_parent

Key = tuple[int, int]  # epoch, index
Arrays = tuple[np.ndarray, np.ndarray]  # noisy (B, 1, T), clean (B, S, T)

ORDER = 1  # stream of random numbers: examples have 0
PREFETCHED = 4  # batches that a process makes in advance


class Batch(NamedTuple):
    noisy: Tensor  # (B, 1, T) float32
    clean: Tensor  # (B, S, T)
    n_examples: int  # of the global batch, all ranks together
    position: int  # of the next batch, counted from the first of epoch 0

    def to(self, device: torch.device) -> "Batch":
        """The same with its signals on a device."""
        return self._replace(noisy=self.noisy.to(device), clean=self.clean.to(device))


def batches(
    examples: Examples,
    batch_size: int,
    seed: int,
    position: int = 0,
    n_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Endless batches from a position on; closing the iterator ends its processes.

    examples: the examples of an epoch.
    batch_size: of the global batch; the last of the ceil(len(examples) / batch_size) batches of an
        epoch may be smaller.
    seed: of order and examples.
    position: of the first batch, counted from epoch 0.
    n_workers: processes that make the batches; 0: this one.
    rank: gets every world_size-th example of a batch; B and T are 0 if it gets none.
    world_size: number of ranks.

    Raises UserError of an example, or if a process dies; ValueError for impossible arguments.
    """
    _check(examples, batch_size, position, n_workers, rank, world_size)
    order = _Order(len(examples), batch_size, seed, rank, world_size)
    return _batches(_Made(examples, seed), order, position, n_workers)


def _batches(dataset: "_Made", order: "_Order", position: int, n_workers: int) -> Iterator[Batch]:
    keys = (order.keys(at) for at in count(position))
    made = _made_elsewhere(dataset, keys, n_workers) if n_workers else map(dataset.made, keys)
    for at, arrays in enumerate(made, position):
        noisy, clean = map(torch.from_numpy, arrays)
        yield Batch(noisy, clean, order.n_examples(at), at + 1)


class _Order:
    """The examples of the batch at a position."""

    def __init__(self, n: int, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.n_batches = -(-n // batch_size)  # of an epoch
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def keys(self, position: int) -> list[Key]:
        """Keys of this rank."""
        epoch, batch = divmod(position, self.n_batches)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = generator(self.seed, epoch, 0, ORDER).permutation(self.n)
        chosen = self._order[batch * self.batch_size :][: self.batch_size]
        return [(epoch, int(index)) for index in chosen[self.rank :: self.world_size]]

    def n_examples(self, position: int) -> int:
        """Number of examples of all ranks."""
        return min(self.batch_size, self.n - position % self.n_batches * self.batch_size)


class _Made(Dataset):
    """Batches by their keys."""

    def __init__(self, examples: Examples, seed: int) -> None:
        self.examples, self.seed = examples, seed

    def made(self, keys: list[Key]) -> Arrays:
        if not keys:
            return np.zeros((0, 1, 0), "f4"), np.zeros((0, self.examples.n_sources, 0), "f4")
        made = [self.examples.example(self.seed, *key) for key in keys]
        noisy, clean = (np.stack([part.numpy() for part in of]) for of in zip(*made, strict=True))
        return noisy, clean

    def __getitem__(self, keys: list[Key]) -> Arrays | UserError:
        """In another process. Errors are returned: torch would wrap raised ones in a traceback."""
        try:
            return self.made(keys)
        except UserError as error:
            return error


def _made_elsewhere(dataset: _Made, keys: Iterator[list[Key]], n_workers: int) -> Iterator[Arrays]:
    """Batches of the keys, in their order, from processes of one thread each.

    Processes are not forked: a fork would copy locks of running threads. They send arrays:
    tensors need shared memory, which is often small in containers.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        num_workers=n_workers,
        prefetch_factor=PREFETCHED,
        worker_init_fn=_begin,
        multiprocessing_context=context(__name__),
        collate_fn=_as_is,
        generator=torch.Generator(),  # the global one stays as it is
    )
    try:
        for made in loader:
            if isinstance(made, UserError):
                raise made
            yield made
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that reads data died: memory is short, or the calling script has no "
            '`if __name__ == "__main__":`; mend that, or set n_workers to 0'
        ) from error


def _begin(_: int) -> None:
    # torch checks the fork server, which survives a killed parent
    obey_parent()


def _as_is(made: Arrays | UserError) -> Arrays | UserError:
    return made


def _check(
    examples: Examples, batch_size: int, position: int, n_workers: int, rank: int, world_size: int
) -> None:
    if not len(examples):
        raise ValueError("no examples to make batches of")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    if position < 0 or n_workers < 0:
        raise ValueError(f"position and n_workers must not be below 0: {position}, {n_workers}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of world_size {world_size}")
