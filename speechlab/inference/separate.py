"""Separate mixtures into one file per speaker: files and folders in, a folder per speaker out.

    file ─ blocks (C, n) ─ resampled ─► level of the whole: a first pass
         ├─► at that level, chunks ─ model, speakers in one order ─► a temporary file
         └─► a gain for each speaker ─ resampled back ─► <output>/s1/<relative path>.wav, s2/…

The layout is that of mixture sets on disk (mix, s1, s2): an evaluation compares the output for
`<set>/mix` with `<set>/s1` and `<set>/s2`.

A model that streams carries its state; any other takes overlapping chunks (`ordering.in_order`).
Memory use does not grow with a recording. Writes are atomic, and `separate.csv` beside the folders
has a row per mixture. A mixture is done when all its files exist.

As published, SepMamba has no level and fails far from the level of its training, where all mixtures
have one peak. So a separator without a level gets each channel of a file at that peak (`PEAK`), and
its estimates are scaled back: quiet and loud recordings are separated equally well. A bang sets no
peak and no level: a short loud event comes to the model as loud as the loudest of the rest, and its
estimates are scaled back, too (`INPUT_LEVELS`).

A training with SI-SDR ignores level and sign: estimates can be inverted, and several times as loud
as the mixture. So each speaker of a channel gets one gain for the whole recording, with which the
speakers add up to the mixture (`LEVELS`).
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechlab.audio import files
from speechlab.audio.folders import names_of_sources
from speechlab.audio.level import LEVELS as MODEL_LEVELS
from speechlab.audio.robust import Prepared, Softened, Survey
from speechlab.errors import UserError, unknown
from speechlab.inference.batch import Result, check_subtype, digest, run, write
from speechlab.inference.jobs import OTHER, Job, plan, single
from speechlab.inference.ordering import Cut, across_channels, in_order
from speechlab.inference.overlap_add import FADE_S, joined
from speechlab.inference.stream import Stream
from speechlab.losses.pit import reordered
from speechlab.models.base import Model, check_finite, with_level
from speechlab.models.device import moved
from speechlab.progress import Report
from speechlab.storage.kept import KeptSignal

LOG = "separate.csv"
# Seconds of a chunk. An utterance is one chunk. Of a conversation each second is processed 1.4
# times (1.5 with chunks of 16 s), and memory is that of half a minute.
CHUNK_S = 30.0
CHUNK_MIN_S = 1.0
CHANNELS = 16  # most of a file: they are put into one order together, in memory
PEAK = 0.9  # of the input of a model without a level, as in SepMamba's training, arXiv 2410.20997
FEED_S = 1.0  # seconds a stream is fed at once; longer chunks take more memory and are not faster
SILENT_DB = 60.0  # below the loudest: the gain of such an estimate is limited, it may be noise only
ALIKE = 1e-3  # subtracted share of correlations, so that equal estimates have bounded gains
LEAST = 1e-20  # energy that counts as none


def separate_blocks(
    model: Model, blocks: Iterable[Tensor], chunk_s: float = CHUNK_S
) -> Iterator[Tensor]:
    """A mixture in blocks (C, n) at the model's rate -> estimates in blocks (C, S, m), as long.

    chunk_s: seconds of a chunk; without effect on a model that streams. For a mono mixture of at
    most one chunk the estimate is `model(whole)`. Channels are separated one by one, with the
    speakers in the same order in all. Levels are the model's; a model without one gets the mixture
    unchanged. A level of the whole needs the blocks twice: a list or a `Recording`. UserError for
    an iterator then, for a model with one source, and for one with wrong output shapes.
    """
    _check(model, chunk_s)
    level = None if model.level.causal else model.level.of_blocks(blocks)
    return _at_level(model, blocks, chunk_s, level, "the mixture")


def _of_file(
    model: Model, mixture: Iterable[Tensor], chunk_s: float, level: Tensor | None, name: str
) -> Iterator[Tensor]:
    """The same for a file; a model without a level gets each channel at PEAK.

    level: see INPUT_LEVELS.
    """
    if level is None and not model.level.causal:
        level = model.level.of_blocks(mixture)
    elif not model.level.divides:
        level = _whole_peak(mixture) / PEAK
    return _at_level(model, mixture, chunk_s, level, name)


def _robust(model: Model, survey: Survey) -> tuple[Tensor, Tensor | None]:
    level = None if model.level.causal else survey.level(model.config.normalize)
    return survey.gains, level


# Levels of the input: functions of a model and the survey of its mixture, which give the gains of
# the mixture's blocks, and its level (C, 1, 1) or None: the model's own
INPUT_LEVELS: dict[str, Callable[[Model, Survey], tuple[Tensor, Tensor | None]]] = {
    "robust": _robust,  # a bang, long silence or soft input changes no level
    "published": lambda model, survey: (torch.ones_like(survey.gains), None),
}


def _whole_peak(blocks: Iterable[Tensor]) -> Tensor:
    """Peak of each channel of a signal in blocks (C, n): (C, 1, 1)."""
    peak = torch.zeros(1)
    for block in blocks:
        if block.shape[-1]:
            peak = torch.maximum(peak, block.abs().amax(-1))
    return peak[:, None, None]


def _at_level(
    model: Model, blocks: Iterable[Tensor], chunk_s: float, level: Tensor | None, name: str
) -> Iterator[Tensor]:
    """level: of the whole, (C, 1, 1), instead of the model's own; None: the model's own.

    Where it is 0 the mixture is silent, and so are the estimates. name: of the mixture, for errors.
    """
    model = model if model.level.causal else with_level(model, MODEL_LEVELS["none"])
    level = torch.ones(1, 1, 1) if level is None else level
    if model.look_ahead is not None:
        return _streamed(model, blocks, level, name)
    cut = Cut.of(chunk_s, model.sample_rate)
    estimates = in_order(lambda mixture: _separated(model, mixture, level, name), blocks, cut)
    return joined(estimates, cut.overlap, round(FADE_S * model.sample_rate))


@torch.inference_mode()
def _separated(model: Model, mixture: Tensor, level: Tensor, name: str) -> Tensor:
    """(C, n) -> (C, S, n), one channel after another, which needs less memory."""
    scaled = _scaled(mixture[:, None], level)
    estimates = [model(channel[None].to(model.device)).cpu() for channel in scaled]
    wanted = (1, model.n_sources, mixture.shape[-1])
    return torch.cat([_checked(estimate, wanted, model, name) for estimate in estimates]) * level


@torch.inference_mode()
def _streamed(model: Model, blocks: Iterable[Tensor], level: Tensor, name: str) -> Iterator[Tensor]:
    """Within a channel the model keeps the order; across channels it is found per CHUNK_S seconds.

    The first of these in which a channel has speech decides. Before that it has noise in any order.
    """
    stream = Stream(model, "modules", "published", name)
    cut = Cut.of(CHUNK_S, model.sample_rate)

    def estimates() -> Iterator[Tensor]:
        n_left = 0
        for block in files.rechunk(blocks, max(1, round(FEED_S * model.sample_rate))):
            scaled = _scaled(block[:, None], level).to(model.device)
            estimate = stream.feed(scaled).cpu()  # (C, S, m)
            wanted = (len(block), model.n_sources, estimate.shape[-1])
            yield _checked(estimate, wanted, model, name) * level
            n_left += block.shape[-1] - estimate.shape[-1]
        rest = stream.flush().cpu()
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
    """The mixture at unit level; silence, whose level may be 0, stays silence."""
    return mixture / level.clamp_min(torch.finfo(level.dtype).tiny)


def _checked(estimate: Tensor, wanted: tuple[int, ...], model: Model, name: str) -> Tensor:
    if estimate.shape != wanted:
        kind, shape = type(model).__name__, tuple(estimate.shape)
        raise UserError(
            f"{name}: {kind} gave {shape} instead of {wanted} ({model.n_sources} speakers, as long "
            "as the mixture); correct its forward or its n_sources"
        )
    return check_finite(estimate, name)


def _as_mixed(estimates: Iterable[Tensor], mixture: Iterable[Tensor]) -> Iterator[Tensor]:
    """Estimates (C, S, n) and their mixture (C, n) in blocks -> estimates with one gain each.

    A temporary file keeps the estimates until the gains of the whole recording are known.
    UserError for a full disk.
    """
    with KeptSignal() as kept:
        products = torch.tensor(0.0, dtype=torch.float64)
        for block, mixed in zip(estimates, mixture, strict=True):
            kept.append(block)
            both = torch.cat([block, mixed[:, None]], 1).double()
            products = products + both @ both.mT
        gains = mixing_gains(products)[..., None]
        yield from ((block * gains).to(block) for block in kept)


def mixing_gains(products: Tensor) -> Tensor:
    """Gains (C, S) with which the estimates of each channel add up to its mixture: least squares.

    products: inner products of the estimates and, last, the mixture, (C, S + 1, S + 1) float64.
    An estimate SILENT_DB below the loudest gets half of its gain, and less below that. Equal
    estimates share one gain.
    """
    energies = products.diagonal(dim1=1, dim2=2)[:, :-1]
    floor = energies.amax(1, keepdim=True) * 10 ** (-SILENT_DB / 10)
    norms = (energies + floor).clamp_min(LEAST).sqrt()  # (C, S)
    correlations = (1 - ALIKE) * (products[:, :-1, :-1] / (norms[:, :, None] * norms[:, None]))
    correlations.diagonal(dim1=1, dim2=2).fill_(1)
    with_mixture = products[:, :-1, -1:] / norms[..., None]
    return torch.linalg.solve(correlations, with_mixture)[..., 0] / norms


# Levels of the output: functions of estimates (C, S, n) and their mixture (C, n), both in blocks
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
    level: str = "mixture",
    input_level: str = "robust",
) -> Result:
    """Separate one file into `targets`, one per speaker; rate, channels and number of frames stay.

    subtype, advance: see `batch.write`.
    chunk_s: see `separate_blocks`.
    level: "mixture", one gain per speaker with which they add up to the mixture; "model", the
        estimates of the model in the scale of the mixture.
    input_level: name in INPUT_LEVELS.

    An offset in the signal is removed and not restored, as it belongs to no speaker. This takes one
    pass over the file, a level of the whole one more.
    UserError for a file that cannot be read or written, for an input that is a target, and for a
    model with wrong output shapes; then there is no new target.
    """
    _check(model, chunk_s, level, input_level)
    _check_targets(model, source, targets)
    mixture = files.Recording(source, model.sample_rate)
    if mixture.n_channels > CHANNELS:
        raise UserError(
            f"{source}: {mixture.n_channels} channels; at most {CHANNELS} are separated together, "
            "take fewer"
        )

    blocks, whole_level = _prepared(model, mixture, input_level)

    def estimates() -> Iterator[Tensor]:
        for block in _of_file(model, blocks, chunk_s, whole_level, str(source)):
            advance(block.shape[-1] / mixture.length)
            yield block

    seconds = (files.rechunk(x, model.sample_rate) for x in (estimates(), blocks))
    separated = _at_file_rate(model, mixture, blocks.restored(LEVELS[level](*seconds)))
    return write(mixture, targets, separated, subtype, lambda part: None)


def _prepared(
    model: Model, mixture: files.Recording, input_level: str
) -> tuple[Softened, Tensor | None]:
    """The mixture as the model gets it, and its level (C, 1, 1) or None: the model's own."""
    survey = Survey.of(mixture, model.sample_rate)
    gains, level = INPUT_LEVELS[input_level](model, survey)
    return Softened(Prepared(mixture, survey.offset, None), gains, survey.length), level


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
    device: str | None = None,
    input_level: str = "robust",
) -> list[Result]:
    """Separate files and folders into `<output>/s1/<relative path>.wav`, s2, …: a result for each.

    inputs, output, overwrite, progress, device: see `enhance_all`.
    subtype, chunk_s, level, input_level: see `separate_file`.
    tell: receives a line for each failing file, unreadable folder, file with clipped samples, and
        folder with other files.

    UserError before any work as for `enhance_all`, and for files in s3 and above where the model
    has two sources.
    """
    _check(model, chunk_s, level, input_level)
    names = names_of_sources(model.n_sources)
    alone, output = single(inputs, output, overwrite, names), Path(output)
    check_subtype(subtype, output.suffix if alone else ".wav")
    model = moved(model, device)

    def work(job: Job, advance: Callable[[float], Any]) -> Result:
        result = separate_file(
            model, job.source, job.targets, subtype, chunk_s, advance, level, input_level
        )
        if result.clipped:
            tell(
                f"{job.source}: {result.clipped} samples of its speakers were clipped at full "
                "scale; the subtype FLOAT keeps them"
            )
        return result

    if alone:
        with Report("separate", 1, shown=progress) as report:
            return [work(alone, advance=report.update)]
    jobs = plan(inputs, output, names, tell)
    _refuse_more_sources(jobs, output, model.n_sources)
    cut = chunk_s if model.needs_whole else None  # without effect on a stream's estimate
    marks = [f"input_level={input_level}"] if input_level != "published" else []  # as of 0.1
    made_with = digest(model, subtype, cut, level, PEAK, *marks)
    return run(jobs, output / LOG, made_with, work, overwrite, progress, tell)


def _refuse_more_sources(jobs: Iterable[Job], output: Path, n_sources: int) -> None:
    folders = [path for path in output.glob("s*") if re.fullmatch(r"s[1-9]\d*", path.name)]
    more = sorted(path for path in folders if int(path.name[1:]) > n_sources)
    for job in (job for job in jobs if not job.fault):
        name = job.target.relative_to(output / "s1")
        found = next((folder for folder in more if (folder / name).exists()), None)
        if found:
            raise UserError(
                f"{found / name}: exists, and this model has {n_sources} speakers; "
                f"move {found} away, or {OTHER}"
            )


def _check(
    model: Model, chunk_s: float, level: str = "model", input_level: str = "published"
) -> None:
    for kind, name, known in (
        ("level", level, LEVELS),
        ("level of the input", input_level, INPUT_LEVELS),
    ):
        if name not in known:
            raise unknown(kind, name, known)
    if model.n_sources < 2:
        raise UserError(f"{type(model).__name__} is an enhancement model; use `speechlab enhance`")
    if not CHUNK_MIN_S <= chunk_s < math.inf:
        raise UserError(f"chunks of {chunk_s} s are too short; use {CHUNK_MIN_S:g} s or more")


def _check_targets(model: Model, source: str | Path, targets: Sequence[str | Path]) -> None:
    paths = [Path(target) for target in targets]
    if len({path.absolute() for path in paths}) != len(paths) or len(paths) != model.n_sources:
        names = ", ".join(map(str, paths))
        raise UserError(
            f"{source}: {model.n_sources} speakers need as many different targets, not {names}"
        )
    for path in paths:
        if path.exists() and Path(source).exists() and path.samefile(source):
            raise UserError(f"{path}: is the input, and would be overwritten; name another target")
