"""Enhance files and folders: noisy recordings in, a folder of enhanced ones out.

    file ─ blocks (C, n) ─ resampled ─► chunks ─ network, state carried ─► resampled back ─► .wav
                                   └─ level and offset of the whole, where needed: a first pass

Memory use does not grow with a recording, except for the Wiener filter, which has no chunks.
Writes are atomic. Interrupt at any time and rerun the command to resume; `enhance.csv` beside the
files has a row for each of them.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechlab.audio import files
from speechlab.audio.level import LEVELS as MODEL_LEVELS
from speechlab.audio.level import KnownLevel, Level, guarded, repeatable
from speechlab.audio.offset import Filtered
from speechlab.audio.pcs import check_rate, pcs_blocks
from speechlab.audio.robust import Prepared, Survey
from speechlab.errors import UserError, unknown
from speechlab.inference.batch import Result, check_subtype, digest, run, write
from speechlab.inference.jobs import Job, plan, single
from speechlab.inference.long_recordings import CHANNELS, in_groups, in_one_pass, overlapped
from speechlab.inference.stream import refusal
from speechlab.models.base import Model, check_finite, with_level
from speechlab.models.device import moved
from speechlab.progress import Report
from speechlab.weights import checkpoints

LOG = "enhance.csv"
CHUNK_S = 1.0  # seconds; longer chunks take more memory and are not faster
POSTS: dict[str, Callable[[Iterable[Tensor], int], Iterator[Tensor]]] = {  # post-processing
    "none": lambda blocks, sample_rate: iter(blocks),
    "pcs400": pcs_blocks,  # perceptual contrast stretching, at the estimate's level
}


def load_causal(checkpoint: str | Path, **overrides: Any) -> Model:
    """A checkpoint for a live stream: with the running level where its own is not causal.

    overrides: as in `load`.

    UserError for a model that cannot stream with any level, or that separates.
    """
    model = checkpoints.load(checkpoint, **overrides)
    _refuse_separators(model)
    if model.look_ahead is None and model.needs_whole is None:
        model = checkpoints.load(checkpoint, **overrides, normalize="running")
    if reason := refusal(model):
        raise UserError(f"{checkpoint}: {reason}")
    return model


def enhance_blocks(
    model: Model,
    blocks: Iterable[Tensor],
    chunk_s: float = CHUNK_S,
    name: str = "the input",
    level: str = "published",
    post: str = "none",
) -> Iterator[Tensor]:
    """Noisy blocks (C, n) at the model's rate -> the estimate in blocks (C, m), of equal length.

    chunk_s: seconds per chunk.
    name: of the input, for errors.
    level: name in LEVELS. With "published" the samples are those of `model(whole)` to float32
        rounding, for any block lengths.
    post: name in POSTS.

    Each channel is a signal of its own; of more than CHANNELS, groups are enhanced one after
    another, and their blocks come at the end. A level of the whole needs the blocks twice, and a
    spectral model many times (`long_recordings`): then they must be a list or a `Recording`, not
    an iterator, else UserError. UserError for an estimate that is not finite.
    """
    _refuse_separators(model)

    def passed(model: Model, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        def enhanced(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
            return PASSES[model.long_recordings](model, blocks, chunk_s)

        comes_once = iter(blocks) is blocks
        n_channels = 0 if comes_once else len(next(iter(blocks), ()))
        estimates = in_groups(enhanced, blocks) if n_channels > CHANNELS else enhanced(blocks)
        return POSTS[post]((check_finite(x, name) for x in estimates), model.sample_rate)

    return LEVELS[level](model, blocks, passed, name)


Pass = Callable[[Model, Iterable[Tensor]], Iterator[Tensor]]


def _robust(model: Model, blocks: Iterable[Tensor], passed: Pass, name: str) -> Iterator[Tensor]:
    """A model that streams gets the samples of a stream; another one the prepared file."""
    if model.look_ahead is not None:
        filtered = Filtered(blocks, model.sample_rate, name)
        return passed(with_level(model, guarded(model.level)), filtered)
    survey = Survey.of(repeatable(blocks), model.sample_rate)
    level = survey.level(model.config.normalize) if not model.level.causal else None
    prepared = Prepared(blocks, survey.offset, level)
    model = model if level is None else with_level(model, MODEL_LEVELS["none"])
    return prepared.restored(passed(model, prepared))


# How a recording gets to its level: functions of a model, blocks (C, n), the
# pass that enhances, and the name of the input
LEVELS: dict[str, Callable[[Model, Iterable[Tensor], Pass, str], Iterator[Tensor]]] = {
    "robust": _robust,  # without offset; a bang, long silence or soft input changes no level
    "published": lambda model, blocks, passed, name: passed(model, blocks),
}


def _in_chunks(model: Model, blocks: Iterable[Tensor], chunk_s: float) -> Iterator[Tensor]:
    """The network carries its state; a level of the whole is computed first."""
    level = model.level if model.level.causal else KnownLevel(model.level.of_blocks(blocks))
    length = max(1, round(chunk_s * model.sample_rate / model.hop_length)) * model.hop_length
    chunks = (block.unsqueeze(1) for block in files.rechunk(blocks, length))  # (C, 1, n)
    return (estimate.squeeze(1) for estimate in _carried(model, level, chunks))


@torch.inference_mode()
def _carried(model: Model, level_of: Level, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Chunks (B, 1, n) -> the final samples after each, and the rest at the end."""
    state = level_state = levels = None
    n_in = 0
    for chunk in chunks:
        level, level_state = level_of.step(chunk, model.sample_rate, level_state)
        level = level.expand(chunk.shape)
        levels = level if levels is None else torch.cat([levels, level], -1)
        n_in += chunk.shape[-1]
        x, state = model.network((chunk / level).to(model.device), state, False)
        x = x.cpu()
        settled, levels = levels.tensor_split([x.shape[-1]], -1)
        yield x * settled
    if levels is not None:
        padding = levels.new_zeros(levels.shape[0], 1, model.padded_length(n_in) - n_in)
        x, _ = model.network(padding.to(model.device), state, True)
        yield x.cpu()[..., : levels.shape[-1]] * levels


@torch.inference_mode()
def _at_once(model: Model, blocks: Iterable[Tensor], chunk_s: float) -> Iterator[Tensor]:
    """All samples in memory."""
    held = list(blocks)
    if held:
        yield model(torch.cat(held, -1).unsqueeze(1).to(model.device)).squeeze(1).cpu()


# Model.long_recordings -> function of model, blocks (C, n) and seconds of a chunk with state
PASSES: dict[str, Callable[[Model, Iterable[Tensor], float], Iterator[Tensor]]] = {
    "chunks": _in_chunks,
    "one_pass": lambda model, blocks, chunk_s: in_one_pass(model, blocks),
    "overlap": lambda model, blocks, chunk_s: overlapped(model, blocks),
    "whole": _at_once,
}


def enhance_file(
    model: Model,
    source: str | Path,
    target: str | Path,
    mix: float = 1.0,
    subtype: str | None = None,
    chunk_s: float = CHUNK_S,
    advance: Callable[[float], Any] = lambda part: None,
    post: str = "none",
    level: str = "robust",
) -> Result:
    """Enhance one file; rate, channels and number of frames stay.

    mix: 1 is the estimate, 0 the input, between them their weighted sum, aligned to the sample.
    subtype, advance: see `batch.write`.
    chunk_s: seconds per chunk.
    post: name in POSTS; post-processing of the estimate before it is mixed.
    level: name in LEVELS: "robust" or, as in the papers' tables, "published".

    UserError for a file that cannot be read or written; then there is no target.
    """
    _check(model, mix, post, level)
    noisy = files.Recording(source, model.sample_rate)
    wet = partial(enhance_blocks, model, noisy, chunk_s, str(source), level, post)
    estimates = (block[None] for block in _at_file_rate(wet, noisy, mix))
    return write(noisy, [target], estimates, subtype, advance)


def _at_file_rate(
    estimate: Callable[[], Iterator[Tensor]], noisy: files.Recording, mix: float
) -> Iterator[Tensor]:
    """The mix as blocks (C, n) at the file's rate, n_frames in all."""

    def wet() -> Iterator[Tensor]:
        back = files.Resampler(noisy.sample_rate, noisy.file_rate, noisy.n_channels)
        for block in estimate():
            yield back.feed(block)
        yield back.flush(noisy.n_frames)

    if mix == 1:
        yield from wet()
        return
    dry = files.Recording(noisy.path)  # at the file's rate, with all bands
    pairs = zip(*(files.rechunk(x, dry.block_length) for x in (wet(), dry)), strict=True)
    yield from (mix * estimate + (1 - mix) * samples for estimate, samples in pairs)


def enhance_all(
    model: Model,
    inputs: Iterable[str | Path],
    output: str | Path,
    mix: float = 1.0,
    subtype: str | None = None,
    overwrite: bool = False,
    chunk_s: float = CHUNK_S,
    progress: bool = True,
    tell: Callable[[str], Any] = lambda line: None,
    post: str = "none",
    level: str = "robust",
    device: str | None = None,
) -> list[Result]:
    """Enhance files and folders into `<output>/<relative path>.wav`: a result per file.

    inputs: files, folders (searched recursively) and patterns ("noisy/**/*.flac").
    output: folder of the enhanced files and of the log; or a file for one input file, see
        `jobs.single`: then there is no log, and an error is raised.
    mix, subtype, chunk_s, post, level: see `enhance_file`.
    overwrite: process also files that are done; these are skipped otherwise.
    progress: report on stderr.
    tell: receives one line for each failing file, unreadable folder and folder with other files.
    device: where the model computes, see `models.device`; None: where it is.

    UserError before any work for missing inputs, colliding names, a file in the way that no row of
    the log names, an output that holds files of other settings or inputs, and an output that
    another run writes to. A file whose input has changed is made again.
    """
    _check(model, mix, post, level)
    alone, output = single(inputs, output, overwrite), Path(output)
    check_subtype(subtype, output.suffix if alone else ".wav")
    model = moved(model, device)

    def work(job: Job, advance: Callable[[float], Any]) -> Result:
        settings = {"mix": mix, "subtype": subtype, "chunk_s": chunk_s, "post": post}
        return enhance_file(model, job.source, job.target, level=level, **settings, advance=advance)

    if alone:
        with Report("enhance", 1, shown=progress) as report:
            return [work(alone, advance=report.update)]
    marks = [f"level={level}"] if level != "published" else []  # none in logs of version 0.1
    made_with = digest(model, mix, subtype, *([post] if post != "none" else []), *marks)
    jobs = plan(inputs, output, tell=tell)
    return run(jobs, output / LOG, made_with, work, overwrite, progress, tell)


def _refuse_separators(model: Model) -> None:
    if model.n_sources > 1:
        raise UserError(f"{type(model).__name__} separates speakers; use `speechlab separate`")


def _check(model: Model, mix: float, post: str, level: str) -> None:
    _refuse_separators(model)
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    if post not in POSTS:
        raise unknown("post-processing", post, POSTS)
    if post != "none":
        check_rate(model.sample_rate)
    if not 0 <= mix <= 1:
        raise UserError(f"mix is {mix}; it must be from 0 (the input) to 1 (the estimate)")
