"""Tensors in a temporary file: what is read more than once and does not fit in memory."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

import torch
from torch import Tensor

from speechlab.errors import UserError, reason


class Kept(contextlib.ExitStack):
    """Tuples of tensors, which can be iterated any number of times: `with Kept() as kept:`."""

    def __init__(self) -> None:
        super().__init__()
        # unbuffered: else a full disk is reported only when the file is closed
        self.file = self.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
        self.entries: list[tuple[tuple[int, ...], torch.Size]] = []  # positions, shape

    def append(self, *tensors: Tensor) -> None:
        """Tensors of one shape; a repeated one is stored once. UserError for a full disk."""
        places: dict[int, int] = {}
        for x in tensors:
            if id(x) not in places:
                places[id(x)] = self.file.seek(0, os.SEEK_END)
                try:
                    left = memoryview(x.float().cpu().numpy().tobytes())
                    while left:  # a full disk writes fewer bytes without an error
                        left = left[self.file.write(left) :]
                except OSError as error:
                    raise UserError(
                        f"{tempfile.gettempdir()}: {reason(error)}; a long recording needs space "
                        "for temporary files, in the folder that TMPDIR names"
                    ) from error
        self.entries.append((tuple(places[id(x)] for x in tensors), tensors[0].shape))
        self.like = tensors[0].new_zeros(())

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for places, shape in self.entries:
            read = {place: self._read(place, shape) for place in places}
            yield tuple(read[place] for place in places)

    def _read(self, place: int, shape: torch.Size) -> Tensor:
        self.file.seek(place)
        content = bytearray(self.file.read(4 * shape.numel()))
        return torch.frombuffer(content, dtype=torch.float32).reshape(shape).to(self.like)


class KeptSignal(Kept):
    """A signal in blocks (C, n), which can be iterated any number of times."""

    def __iter__(self) -> Iterator[Tensor]:
        return (block for (block,) in super().__iter__())
