"""Separation of files: folders of mixtures in, a folder of each talker out.

    file ─ blocks (C, n) ─ resampled ─► chunks ─ model, talkers in one order ─► resampled back
         └─────────────► <output>/s1/<relative path>.wav, <output>/s2/…, <output>/separate.csv

The layout is that of mixture sets on disk (mix, s1, s2), so that what is separated from
`<set>/mix` into a folder is what an evaluation compares with `<set>/s1` and `<set>/s2`.

A model that streams carries its state; any other takes chunks that overlap (`chunks.in_order`).
Memory does not grow with a recording. As in `enhance`, a mixture's files are there or not, and the
log beside them tells what became of each: done are those of which all are there. Nothing is done
to levels: a separator that was trained without regard to them has what levels it has.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechlab import audio
from speechlab.batch import OTHER, Job, Log, Result, digest, plan, run
from speechlab.chunks import FADE_S, Cut, across_channels, in_order, joined
from speechlab.data import names_of_sources
from speechlab.enhance import check_subtype, write
from speechlab.errors import UserError
from speechlab.losses import reordered
from speechlab.streaming import Stream

LOG = "separate.csv"
# Seconds in the model at once. An utterance goes through as a whole; of a conversation the model
# hears each second 1.4 times (1.5 with chunks of 16 s), and memory is that of half a minute.
CHUNK_S = 30.0
CHUNK_MIN_S = 1.0
FEED_S = 1.0  # seconds a stream is fed at once; longer ones take more memory and are not faster


def separate_blocks(
    model: nn.Module, blocks: Iterable[Tensor], chunk_s: float = CHUNK_S
) -> Iterator[Tensor]:
    """A mixture in blocks (C, n) at the model's rate -> estimates in blocks (C, S, m), as long.

    chunk_s: seconds in the model at once; no matter for one that streams. Of a mono mixture of at
    most that, the estimate is `model(whole)`. Each channel is separated alone, with the talkers in
    the same order in all. UserError for a model that gives one estimate.
    """
    _check(model, chunk_s)
    cut = Cut.of(chunk_s, model.sample_rate)
    if model.look_ahead is not None:
        return _streamed(model, blocks, cut)
    estimates = in_order(lambda mixture: _separated(model, mixture), blocks, cut)
    return joined(estimates, cut.overlap, round(FADE_S * model.sample_rate))


@torch.inference_mode()
def _separated(model: nn.Module, mixture: Tensor) -> Tensor:
    """(C, n) -> (C, S, n); channel by channel, for their memory would add up."""
    return torch.cat([model(channel[None, None]) for channel in mixture])


@torch.inference_mode()
def _streamed(model: nn.Module, blocks: Iterable[Tensor], cut: Cut) -> Iterator[Tensor]:
    """In each channel the order is the model's; the first chunk tells who is who across them."""
    stream, order = Stream(model, "modules"), None

    def estimates() -> Iterator[Tensor]:
        for block in audio.rechunk(blocks, max(1, round(FEED_S * model.sample_rate))):
            yield stream.feed(block[:, None])  # (C, S, m)
        yield stream.flush()

    for chunk in audio.rechunk(estimates(), cut.length):
        order = across_channels(chunk, cut.frame) if order is None else order
        yield reordered(chunk, order)


def separate_file(
    model: nn.Module,
    source: str | Path,
    targets: Sequence[str | Path],
    subtype: str | None = None,
    chunk_s: float = CHUNK_S,
    advance: Callable[[float], Any] = lambda part: None,
    settle: Callable[[], Any] = lambda: None,
) -> Result:
    """Separate one file into `targets`, one per talker; rate, channels and number of frames stay.

    subtype, advance, settle: as in `enhance_file`. The result counts what is cut in all targets.
    Raises UserError for a file that cannot be read or written; then there is no new target.
    """
    _check(model, chunk_s)
    mixture = audio.Recording(source, model.sample_rate)
    estimates = _at_file_rate(model, mixture, chunk_s)
    return write(mixture, targets, estimates, subtype, advance, settle)


def _at_file_rate(model: nn.Module, mixture: audio.Recording, chunk_s: float) -> Iterator[Tensor]:
    """Blocks (S, C, n) at the file's rate, n_frames in all."""
    shape = mixture.n_channels, model.n_sources
    back = audio.Resampler(model.sample_rate, mixture.file_rate, math.prod(shape))
    for block in separate_blocks(model, mixture, chunk_s):
        yield back.feed(block.flatten(0, 1)).unflatten(0, shape).transpose(0, 1)
    yield back.flush(mixture.n_frames).unflatten(0, shape).transpose(0, 1)


def separate_all(
    model: nn.Module,
    inputs: Iterable[str | Path],
    output: str | Path,
    subtype: str | None = None,
    chunk_s: float = CHUNK_S,
    overwrite: bool = False,
    progress: bool = True,
    tell: Callable[[str], Any] = lambda line: None,
) -> list[Result]:
    """Separate files and folders into `<output>/s1/<relative path>.wav`, s2, …: a result for each.

    inputs, overwrite and what becomes of a file that fails: as in `enhance_all`. A file whose
    estimates were cut at full scale is told, too. Raises UserError before any work as that does,
    and for files in the output that its log does not know: talkers of a set, which are neither to
    be overwritten nor to pass for estimates.
    """
    output = Path(output)
    _check(model, chunk_s)
    check_subtype(subtype)
    jobs = plan(inputs, output, names_of_sources(model.n_sources))
    _refuse_strangers(jobs, Log(output / LOG))

    def work(job: Job, *callbacks: Callable[..., Any]) -> Result:
        result = separate_file(model, job.source, job.targets, subtype, chunk_s, *callbacks)
        if result.clipped:
            tell(
                f"{job.source}: {result.clipped} samples of its talkers were cut at full scale; "
                "the subtype FLOAT keeps them"
            )
        return result

    cut = chunk_s if model.look_ahead is None else None  # a stream's estimate is the same with any
    made_with = digest(model, subtype, cut)
    return run(jobs, output / LOG, made_with, work, overwrite, progress, tell)


def _refuse_strangers(jobs: Iterable[Job], log: Log) -> None:
    for job in jobs:
        found = [target for target in job.targets if target.exists()]
        if found and not log.knows(job.target):
            raise UserError(
                f"{found[0]}: is there, and {LOG} does not tell that it was made here; "
                f"move it away, or {OTHER}"
            )


def _check(model: nn.Module, chunk_s: float) -> None:
    if getattr(model, "n_sources", 1) < 2:
        raise UserError(f"{type(model).__name__} separates nobody; `speechlab enhance` takes it")
    if not CHUNK_MIN_S <= chunk_s < math.inf:
        raise UserError(f"chunks of {chunk_s} s; {CHUNK_MIN_S:g} s or more are needed")
