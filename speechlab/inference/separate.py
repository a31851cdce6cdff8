"""Separation of files: folders of mixtures in, a folder of each talker out.

    file ─ blocks (C, n) ─ resampled ─► level of the whole: a first pass
         ├─► at that level, chunks ─ model, talkers in one order ─► a temporary file
         └─► a gain for each talker ─ resampled back ─► <output>/s1/<relative path>.wav, s2/…

The layout is that of mixture sets on disk (mix, s1, s2), so that what is separated from
`<set>/mix` into a folder is what an evaluation compares with `<set>/s1` and `<set>/s2`.

A model that streams carries its state; any other takes chunks that overlap (`chunks.in_order`).
Memory does not grow with a recording. As in `enhance`, a mixture's files are there or not, and the
log beside them, separate.csv, tells what became of each: done are those of which all are there.

SepMamba, which as published has no level, fails far from that of its training, whose mixtures all
have one peak. So a separator without a level of its own gets each channel of a file at that peak
(`PEAK`), and its estimates are scaled back: soft and loud recordings come apart alike.

A separator that was trained by SI-SDR, which regards neither level nor sign, has estimates of any
level and sign: several times the mixture, and upside down. So each talker of a channel gets one
gain for the whole recording: the talkers then add up to the mixture (`LEVELS`).
"""

import copy
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechlab.audio import files
from speechlab.audio.level import LEVELS as MODEL_LEVELS
from speechlab.config import override
from speechlab.data.test_sets import names_of_sources
from speechlab.errors import UserError
from speechlab.inference.batch import OTHER, Job, Log, Result, digest, plan, run
from speechlab.inference.enhance import check_subtype, write
from speechlab.inference.long_recordings import Kept
from speechlab.inference.overlap_add import FADE_S, Cut, across_channels, in_order, joined
from speechlab.inference.stream import Stream
from speechlab.losses.waveform import reordered
from speechlab.models.base import Model

LOG = "separate.csv"
# Seconds in the model at once. An utterance goes through as a whole; of a conversation the model
# hears each second 1.4 times (1.5 with chunks of 16 s), and memory is that of half a minute.
CHUNK_S = 30.0
CHUNK_MIN_S = 1.0
PEAK = 0.9  # of what a model without a level gets; that of SepMamba's trainings, arXiv 2410.20997
FEED_S = 1.0  # seconds a stream is fed at once; longer ones take more memory and are not faster
SILENT_DB = 60.0  # below the loudest: an estimate whose gain is held down, for it may be no one's
ALIKE = 1e-3  # of a correlation that is not believed, lest estimates that are alike get any gain
LEAST = 1e-20  # energy that counts as none


def separate_blocks(
    model: Model, blocks: Iterable[Tensor], chunk_s: float = CHUNK_S
) -> Iterator[Tensor]:
    """A mixture in blocks (C, n) at the model's rate -> estimates in blocks (C, S, m), as long.

    chunk_s: seconds in the model at once; no matter for one that streams. Of a mono mixture of at
    most that, the estimate is `model(whole)`. Each channel is separated alone, with the talkers in
    the same order in all; levels are the model's, and a model without one gets the mixture as it
    is. With the utterance level, which is the whole mixture's, the blocks are gone through twice:
    a list or a `Recording`, not an iterator. UserError for an iterator there, for a model that
    gives one estimate, and for one of wrong shapes.
    """
    _check(model, chunk_s)
    level = None if model.level.causal else model.level.of_blocks(blocks)
    return _at_level(model, blocks, chunk_s, level, "the mixture")


def _of_file(model: Model, mixture: files.Recording, chunk_s: float) -> Iterator[Tensor]:
    """The same of a file, of which a model without a level gets each channel at PEAK."""
    level = None
    if not model.level.causal:
        level = model.level.of_blocks(mixture)
    elif not model.level.divides:
        level = _whole_peak(mixture) / PEAK
    return _at_level(model, mixture, chunk_s, level, str(mixture.path))


def _whole_peak(blocks: Iterable[Tensor]) -> Tensor:
    """Of each channel of a signal in blocks (C, n), (C, 1, 1)."""
    peak = torch.zeros(1)
    for block in blocks:
        if block.shape[-1]:
            peak = torch.maximum(peak, block.abs().amax(-1))
    return peak[:, None, None]


def _at_level(
    model: Model, blocks: Iterable[Tensor], chunk_s: float, level: Tensor | None, name: str
) -> Iterator[Tensor]:
    """level: of the whole, (C, 1, 1), in the place of the model's own; None: the model sees to it.

    Where it is 0 there is silence, and so are the estimates.
    """
    model = _at_unit_level(model)
    level = torch.ones(1, 1, 1) if level is None else level
    if model.look_ahead is not None:
        return _streamed(model, blocks, level, name)
    cut = Cut.of(chunk_s, model.sample_rate)
    estimates = in_order(lambda mixture: _separated(model, mixture, level, name), blocks, cut)
    return joined(estimates, cut.overlap, round(FADE_S * model.sample_rate))


def _at_unit_level(model: Model) -> Model:
    """The model without the level that needs the whole: if no layer does, it then streams."""
    if model.level.causal:
        return model
    model = copy.copy(model)  # of the module alone, which shares its layers
    model.config, model.level = override(model.config, normalize="none"), MODEL_LEVELS["none"]
    return model


@torch.inference_mode()
def _separated(model: Model, mixture: Tensor, level: Tensor, name: str) -> Tensor:
    """(C, n) -> (C, S, n); channel by channel, for their memory would add up."""
    scaled = _scaled(mixture[:, None], level)
    estimates = [model(channel[None]) for channel in scaled]
    wanted = (1, model.n_sources, mixture.shape[-1])
    return torch.cat([_checked(estimate, wanted, model, name) for estimate in estimates]) * level


@torch.inference_mode()
def _streamed(model: Model, blocks: Iterable[Tensor], level: Tensor, name: str) -> Iterator[Tensor]:
    """In each channel the order is the model's; who is who across them is told by CHUNK_S each.

    The first of these in which a channel is heard tells; till then it has noise in any order.
    """
    stream, cut = Stream(model, "modules"), Cut.of(CHUNK_S, model.sample_rate)

    def estimates() -> Iterator[Tensor]:
        n_left = 0
        for block in files.rechunk(blocks, max(1, round(FEED_S * model.sample_rate))):
            estimate = stream.feed(_scaled(block[:, None], level))  # (C, S, m)
            wanted = (len(block), model.n_sources, estimate.shape[-1])
            yield _checked(estimate, wanted, model, name) * level
            n_left += block.shape[-1] - estimate.shape[-1]
        rest = stream.flush()
        yield _checked(rest, (len(rest), model.n_sources, n_left), model, name) * level

    order = before = None
    for chunk in files.rechunk(estimates(), cut.length):
        chunk = chunk if order is None else reordered(chunk, order)
        moved = across_channels(chunk, cut.frame, before)
        order = moved if order is None else order.gather(1, moved)
        power = chunk.square().mean((1, 2))  # (C,)
        before = power if before is None else torch.maximum(before, power)
        yield reordered(chunk, moved)


def _scaled(mixture: Tensor, level: Tensor) -> Tensor:
    """At unit level; silence, whose level may be 0, stays what it is."""
    return mixture / level.clamp_min(torch.finfo(level.dtype).tiny)


def _checked(estimate: Tensor, wanted: tuple[int, ...], model: Model, name: str) -> Tensor:
    if estimate.shape != wanted:
        kind, shape = type(model).__name__, tuple(estimate.shape)
        raise UserError(
            f"{name}: {kind} gave {shape} where {model.n_sources} talkers as long as the mixture "
            f"are {wanted}; mend its forward, or its n_sources"
        )
    return estimate


def _as_mixed(estimates: Iterable[Tensor], mixture: Iterable[Tensor]) -> Iterator[Tensor]:
    """Estimates (C, S, n) in blocks, those of their mixture (C, n) -> each with its one gain.

    They wait in a temporary file for the gains, of the whole recording; UserError: a full disk.
    """
    with tempfile.TemporaryFile(buffering=0) as file:
        kept, products = Kept(file), torch.tensor(0.0, dtype=torch.float64)
        for block, mixed in zip(estimates, mixture, strict=True):
            kept.append(block)
            both = torch.cat([block, mixed[:, None]], 1).double()
            products = products + both @ both.mT
        gains = mixing_gains(products)[..., None]
        yield from ((block * gains).to(block) for (block,) in kept)


def mixing_gains(products: Tensor) -> Tensor:
    """Gains (C, S) with which the estimates of each channel add up to its mixture: least squares.

    products: inner products of the estimates and, last, the mixture, (C, S + 1, S + 1) float64.
    An estimate that is SILENT_DB below the loudest gets half of its gain, and less below that.
    Estimates of the same share one.
    """
    energies = products.diagonal(dim1=1, dim2=2)[:, :-1]
    floor = energies.amax(1, keepdim=True) * 10 ** (-SILENT_DB / 10)
    norms = (energies + floor).clamp_min(LEAST).sqrt()  # (C, S)
    correlations = products[:, :-1, :-1] / (norms[:, :, None] * norms[:, None])
    correlations = (1 - ALIKE) * correlations
    correlations.diagonal(dim1=1, dim2=2).fill_(1)
    with_mixture = products[:, :-1, -1:] / norms[..., None]
    return torch.linalg.solve(correlations, with_mixture)[..., 0] / norms


# What becomes of the levels of estimates (C, S, n) in blocks, beside those of their mixture (C, n)
LEVELS: dict[str, Callable[[Iterable[Tensor], Iterable[Tensor]], Iterator[Tensor]]] = {
    "mixture": _as_mixed,
    "model": lambda estimates, mixture: iter(estimates),
}


def separate_file(
    model: Model,
    source: str | Path,
    targets: Sequence[str | Path],
    subtype: str | None = None,
    chunk_s: float = CHUNK_S,
    advance: Callable[[float], Any] = lambda part: None,
    settle: Callable[[], Any] = lambda: None,
    level: str = "mixture",
) -> Result:
    """Separate one file into `targets`, one per talker; rate, channels and number of frames stay.

    subtype, advance, settle: as in `enhance_file`. level: in LEVELS; "mixture", a gain for each
    talker with which they add up to the mixture; "model", as the model has it, in the scale of the
    mixture. The result counts what is cut in all targets.

    A model with `normalize="utterance"` gets the level of the whole file, which is read once more
    for it, and one without a level of its own the file with a peak of PEAK in each channel, scaled
    back.
    Raises UserError for a file that cannot be read or written, for one that is itself a target, and
    for a model of wrong shapes; then there is no new target.
    """
    _check(model, chunk_s, level)
    _check_targets(model, source, targets)
    mixture = files.Recording(source, model.sample_rate)

    def estimates() -> Iterator[Tensor]:
        for block in _of_file(model, mixture, chunk_s):
            advance(block.shape[-1] / mixture.length)
            yield block

    seconds = (files.rechunk(x, model.sample_rate) for x in (estimates(), mixture))
    blocks = _at_file_rate(model, mixture, LEVELS[level](*seconds))
    return write(mixture, targets, blocks, subtype, lambda part: None, settle)


def _at_file_rate(
    model: Model, mixture: files.Recording, estimates: Iterable[Tensor]
) -> Iterator[Tensor]:
    """Blocks (C, S, m) -> blocks (S, C, n) at the file's rate, n_frames in all."""
    shape = mixture.n_channels, model.n_sources
    back = files.Resampler(model.sample_rate, mixture.file_rate, math.prod(shape))
    for block in estimates:
        yield back.feed(block.flatten(0, 1)).unflatten(0, shape).transpose(0, 1)
    yield back.flush(mixture.n_frames).unflatten(0, shape).transpose(0, 1)


def separate_all(
    model: Model,
    inputs: Iterable[str | Path],
    output: str | Path,
    subtype: str | None = None,
    chunk_s: float = CHUNK_S,
    overwrite: bool = False,
    progress: bool = True,
    tell: Callable[[str], Any] = lambda line: None,
    level: str = "mixture",
) -> list[Result]:
    """Separate files and folders into `<output>/s1/<relative path>.wav`, s2, …: a result for each.

    inputs, overwrite and what becomes of a file that fails: as in `enhance_all`; level: as in
    `separate_file`. A file whose estimates were cut at full scale is told, too. Raises UserError
    before any work as `enhance_all` does, and for files in the output that would be mistaken: that
    its log does not know, talkers of a set, which are neither to be overwritten nor to pass for
    estimates; and in s3 and so on, where this model has two talkers.
    """
    output = Path(output)
    _check(model, chunk_s, level)
    check_subtype(subtype)
    jobs = plan(inputs, output, names_of_sources(model.n_sources))
    _refuse_strangers(jobs, Log(output / LOG))
    _refuse_more_talkers(jobs, output, model.n_sources)

    def work(job: Job, *callbacks: Callable[..., Any]) -> Result:
        settings = subtype, chunk_s, *callbacks, level
        result = separate_file(model, job.source, job.targets, *settings)
        if result.clipped:
            tell(
                f"{job.source}: {result.clipped} samples of its talkers were cut at full scale; "
                "the subtype FLOAT keeps them"
            )
        return result

    streams = _at_unit_level(model).look_ahead is not None
    cut = None if streams else chunk_s  # a stream's estimate is the same with any
    made_with = digest(model, subtype, cut, level, PEAK)
    return run(jobs, output / LOG, made_with, work, overwrite, progress, tell)


def _refuse_strangers(jobs: Iterable[Job], log: Log) -> None:
    for job in (job for job in jobs if not job.fault):
        found = [target for target in job.targets if target.exists()]
        if found and not log.knows(job.target):
            raise UserError(
                f"{found[0]}: is there, and {LOG} does not tell that it was made here; "
                f"move it away, or {OTHER}"
            )


def _refuse_more_talkers(jobs: Iterable[Job], output: Path, n_sources: int) -> None:
    folders = [path for path in output.glob("s*") if re.fullmatch(r"s[1-9]\d*", path.name)]
    more = sorted(path for path in folders if int(path.name[1:]) > n_sources)
    for job in (job for job in jobs if not job.fault):
        name = job.target.relative_to(output / "s1")
        found = next((folder for folder in more if (folder / name).exists()), None)
        if found:
            raise UserError(
                f"{found / name}: is there, and this model has {n_sources} talkers; "
                f"move {found} away, or {OTHER}"
            )


def _check(model: Model, chunk_s: float, level: str = "model") -> None:
    if level not in LEVELS:
        raise UserError(f"no level '{level}'; there are: {', '.join(LEVELS)}")
    if model.n_sources < 2:
        raise UserError(f"{type(model).__name__} separates nobody; `speechlab enhance` takes it")
    if not CHUNK_MIN_S <= chunk_s < math.inf:
        raise UserError(f"chunks of {chunk_s} s; {CHUNK_MIN_S:g} s or more are needed")


def _check_targets(model: Model, source: str | Path, targets: Sequence[str | Path]) -> None:
    paths = [Path(target) for target in targets]
    if len({path.absolute() for path in paths}) != len(paths) or len(paths) != model.n_sources:
        names = ", ".join(map(str, paths))
        raise UserError(
            f"{source}: {model.n_sources} talkers, each in a file of its own, are not in {names}"
        )
    for path in paths:
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise UserError(f"{path}: is the input, and would be overwritten; name another target")
