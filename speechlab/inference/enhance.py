"""Enhancement of files: folders of recordings in, the same folders of enhanced ones out.

    file ─ blocks (C, n) ─ resampled ─► chunks ─ network, state carried ─► resampled back ─► .wav
                                   └─ level of the whole, where the model needs it: a first pass

Memory does not grow with a recording, but for the Wiener filter, which has no chunks. A file is
there whole or not at all, so that an interrupted run goes on where it was; `enhance.csv` beside the
files tells what became of each.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechlab.audio import files
from speechlab.audio.level import KnownLevel, Level
from speechlab.audio.pcs import check_rate, pcs_blocks
from speechlab.errors import UserError
from speechlab.inference.batch import Job, Result, digest, plan, run
from speechlab.inference.long_recordings import in_one_pass, overlapped
from speechlab.inference.stream import refusal
from speechlab.models.base import Model
from speechlab.weights import checkpoints

LOG = "enhance.csv"
CHUNK_S = 1.0  # seconds; longer ones take more memory and are not faster
POSTS: dict[str, Callable[[Iterable[Tensor], int], Iterator[Tensor]]] = {  # done to an estimate
    "none": lambda blocks, sample_rate: iter(blocks),
    "pcs400": pcs_blocks,  # perceptual contrast stretching, at the estimate's level
}


def load_causal(checkpoint: str | Path) -> Model:
    """A checkpoint as a live stream uses it: with the running level where its own is not causal.

    UserError for a model that no level makes causal, or that separates.
    """
    model = checkpoints.load(checkpoint)
    _refuse_separators(model)
    if model.look_ahead is None and model.needs_whole is None:
        model = checkpoints.load(checkpoint, normalize="running")
    if reason := refusal(model):
        raise UserError(f"{checkpoint}: {reason}")
    return model


def enhance_blocks(
    model: Model, blocks: Iterable[Tensor], chunk_s: float = CHUNK_S
) -> Iterator[Tensor]:
    """Noisy blocks (C, n) at the model's rate -> the estimate in blocks (C, m), as long in all.

    Each channel is a signal of its own. The samples are those of `model(whole)` to float32
    rounding, however the blocks are cut. With the utterance level the blocks are gone through
    twice, and by a spectral model many times (`overlap`): they must be a list or a `Recording`,
    not an iterator, and UserError says so.
    """
    _refuse_separators(model)
    return PASSES[model.long_recordings](model, blocks, chunk_s)


def _in_chunks(model: Model, blocks: Iterable[Tensor], chunk_s: float) -> Iterator[Tensor]:
    """The network carries its state; a level of the whole is found first."""
    level = model.level if model.level.causal else KnownLevel(model.level.of_blocks(blocks))
    length = max(1, round(chunk_s * model.sample_rate / model.hop_length)) * model.hop_length
    chunks = (block.unsqueeze(1) for block in files.rechunk(blocks, length))  # (C, 1, n)
    return (estimate.squeeze(1) for estimate in _driven(model, level, chunks))


@torch.inference_mode()
def _at_once(model: Model, blocks: Iterable[Tensor], chunk_s: float) -> Iterator[Tensor]:
    held = list(blocks)
    if held:
        yield model(torch.cat(held, -1).unsqueeze(1)).squeeze(1)


# Model.long_recordings -> function of model, blocks (C, n) and seconds of a chunk with state
PASSES: dict[str, Callable[[Model, Iterable[Tensor], float], Iterator[Tensor]]] = {
    "chunks": _in_chunks,
    "one_pass": lambda model, blocks, chunk_s: in_one_pass(model, blocks),
    "overlap": lambda model, blocks, chunk_s: overlapped(model, blocks),
    "whole": _at_once,
}


@torch.inference_mode()
def _driven(model: Model, known: Level, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Chunks (B, 1, n) -> what is settled after each, and the rest at the end."""
    state = level_state = levels = None
    n_in = 0
    for chunk in chunks:
        level, level_state = known.step(chunk, model.sample_rate, level_state)
        level = level.expand(chunk.shape)
        levels = level if levels is None else torch.cat([levels, level], -1)
        n_in += chunk.shape[-1]
        x, state = model.network(chunk / level, state, False)
        settled, levels = levels.tensor_split([x.shape[-1]], -1)
        yield x * settled
    if levels is not None:
        padding = levels.new_zeros(levels.shape[0], 1, model.padded_length(n_in) - n_in)
        x, _ = model.network(padding, state, True)
        yield x[..., : levels.shape[-1]] * levels


def enhance_file(
    model: Model,
    source: str | Path,
    target: str | Path,
    mix: float = 1.0,
    subtype: str | None = None,
    chunk_s: float = CHUNK_S,
    advance: Callable[[float], Any] = lambda part: None,
    settle: Callable[[], Any] = lambda: None,
    post: str = "none",
) -> Result:
    """Enhance one file; rate, channels and number of frames stay.

    mix: 1 is the estimate, 0 the input, between them their sum, aligned to the sample. subtype:
    as "PCM_24"; default the input's, or PCM_16 where WAV has not got it. advance: is told the
    part of the file that is done since last time. settle: is called when all samples are written,
    before the file takes its name. post: in POSTS, of the estimate before it is mixed.
    Raises UserError for a file that cannot be read or written; then there is no target.
    """
    _check(model, mix, post)
    noisy = files.Recording(source, model.sample_rate)
    estimates = (block[None] for block in _at_file_rate(model, noisy, mix, chunk_s, post))
    return write(noisy, [target], estimates, subtype, advance, settle)


def write(
    recording: files.Recording,
    targets: Sequence[str | Path],
    estimates: Iterable[Tensor],
    subtype: str | None,
    advance: Callable[[float], Any],
    settle: Callable[[], Any],
) -> Result:
    """Blocks (S, C, n) of estimates of a recording, at its file's rate, into S targets.

    The rest as `enhance_file`; `clipped` counts all targets, `rtf` from here on.
    """
    began = time.perf_counter()
    source, n_frames = recording.path, recording.n_frames
    try:
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(_writer(recording, target, subtype)) for target in targets
            ]
            for block in estimates:
                for writer, samples in zip(writers, block, strict=True):
                    writer.write(samples)
                advance(block.shape[-1] / n_frames)
            settle()
    except UserError:
        raise
    except Exception as error:  # whatever a model raises is the file's reason
        raise UserError(f"{source}: the model failed: {type(error).__name__}: {error}") from error
    seconds = n_frames / recording.file_rate
    return Result(
        str(source),
        str(targets[0]),
        "ok",
        seconds=seconds,
        sample_rate=recording.file_rate,
        channels=recording.n_channels,
        clipped=sum(writer.clipped for writer in writers),
        rtf=(time.perf_counter() - began) / seconds,
    )


def _writer(recording: files.Recording, target: str | Path, subtype: str | None) -> files.Writer:
    """Of a file as the recording is, or of another subtype."""
    if subtype is None and Path(target).suffix.lower() == ".wav":
        held = files.FORMATS[".wav"][1]
        subtype = recording.subtype if recording.subtype in held else "PCM_16"
    shape = recording.file_rate, recording.n_channels, subtype, recording.n_frames
    return files.Writer(target, *shape)


def _at_file_rate(
    model: Model, noisy: files.Recording, mix: float, chunk_s: float, post: str
) -> Iterator[Tensor]:
    """The mix as blocks (C, n) at the file's rate, n_frames in all."""

    def wet() -> Iterator[Tensor]:
        back = files.Resampler(model.sample_rate, noisy.file_rate, noisy.n_channels)
        for block in POSTS[post](enhance_blocks(model, noisy, chunk_s), model.sample_rate):
            yield back.feed(block)
        yield back.flush(noisy.n_frames)

    if mix == 1:
        yield from wet()
        return
    dry = files.Recording(noisy.path)  # as it is in the file, all bands
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
) -> list[Result]:
    """Enhance files and folders into `<output>/<relative path>.wav`, a result per file.

    inputs: files, folders (searched all through) and patterns ("noisy/**/*.flac"). What is there
    already is skipped, unless `overwrite`. A file that fails, or a folder that cannot be read, gets
    its reason, in its result, in the log and by `tell`, and the rest go on.
    Raises UserError before any work for inputs that are missing, names that collide, an output
    that holds other settings' files or that another run writes to.
    """
    output = Path(output)
    _check(model, mix, post)
    check_subtype(subtype)

    def work(job: Job, *callbacks: Callable[..., Any]) -> Result:
        settings = mix, subtype, chunk_s, *callbacks, post
        return enhance_file(model, job.source, job.target, *settings)

    made_with = digest(model, mix, subtype, *([post] if post != "none" else []))
    jobs = plan(inputs, output)
    return run(jobs, output / LOG, made_with, work, overwrite, progress, tell)


def check_subtype(subtype: str | None) -> None:
    """UserError for one that a .wav file does not hold."""
    if subtype is not None and subtype not in (known := files.FORMATS[".wav"][1]):
        raise UserError(f"no subtype {subtype}; choose of {', '.join(known)}")


def _refuse_separators(model: Model) -> None:
    if model.n_sources > 1:
        raise UserError(f"{type(model).__name__} separates talkers; `speechlab separate` takes it")


def _check(model: Model, mix: float, post: str) -> None:
    _refuse_separators(model)
    if post not in POSTS:
        raise UserError(f"no post-processing '{post}'; there are: {', '.join(POSTS)}")
    if post != "none":
        check_rate(model.sample_rate)
    if not 0 <= mix <= 1:
        raise UserError(f"mix is {mix}; it goes from 0, the input, to 1, the estimate")
