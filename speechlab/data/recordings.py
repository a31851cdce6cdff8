"""Segments of the recordings of prepared corpora, at any rate and speed.

Only the part of a file that a segment needs is read. The first channel is used.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch

from speechlab.audio.files import Resampler, resampled_length
from speechlab.data.manifest import Item
from speechlab.errors import UserError

CONTEXT_S = 0.02  # read on both sides of a segment, for the resampler
ALONE = {"sources": (), "sha256": ""}  # fields of a source, made from the item of its mixture


class Source(NamedTuple):
    """A recording and the folder of its corpus."""

    folder: Path
    item: Item


def speakers(mixtures: Iterable[Source]) -> list[Source]:
    """The sources of mixtures as speech of one speaker each, for new mixtures.

    Mixtures with noise (a known SNR) or unnamed speakers are skipped.
    """
    return [
        Source(folder, replace(item, name=path, kind="speech", path=path, **ALONE, speakers=(who,)))
        for folder, item in mixtures
        if item.snr_db is None and len(item.speakers) == len(item.sources)
        for path, who in zip(item.sources, item.speakers, strict=True)
    ]


def available(source: Source, sample_rate: int, speed: float = 1.0) -> int:
    """Number of samples of a recording at a rate in Hz and a speed."""
    return resampled_length(source.item.n_frames, _file_rate(source, speed), sample_rate)


def crop(
    source: Source, path: str, begin: int, length: int, sample_rate: int, speed: float = 1.0
) -> np.ndarray:
    """Samples [begin, begin + length) of `available`, (length,) float32, with the item's gain.

    source: the recording.
    path: one of the files of its item, in the corpus folder.
    begin: first sample, at `sample_rate`.
    length: in samples, at `sample_rate`.
    sample_rate: of the segment, Hz.
    speed: factor of speed and pitch.

    UserError if the file is missing, damaged, or differs from the manifest.
    """
    rate = _file_rate(source, speed)
    divisor = math.gcd(rate, sample_rate)
    # input and output samples of one step of both grids
    step_in, step_out = rate // divisor, sample_rate // divisor
    n_context = 0 if rate == sample_rate else round(CONTEXT_S * sample_rate)
    n_steps = max(0, begin - n_context) // step_out
    first = n_steps * step_in
    last = min(-(-(begin + length + n_context) * rate // sample_rate), source.item.n_frames)
    samples = _read(source, path, first, last - first)
    if rate != sample_rate:
        resampler = Resampler(rate, sample_rate, 1)
        feed = torch.from_numpy(samples)[None]  # (1, n)
        parts = resampler.feed(feed), resampler.flush()
        samples = np.concatenate([part[0].numpy() for part in parts])
    begin -= n_steps * step_out
    gain = np.float32(10 ** (source.item.gain_db / 20))
    return gain * samples[begin : begin + length]


def _file_rate(source: Source, speed: float) -> int:
    """Rate of a file in Hz, times the speed."""
    return round(source.item.sample_rate * speed)


def _read(source: Source, path: str, begin: int, n_frames: int) -> np.ndarray:
    """(n_frames,) of the first channel."""
    file, item = source.folder / path, source.item
    wanted = f"{item.n_frames} samples at {item.sample_rate} Hz"
    if not file.is_file():
        raise UserError(f"{file}: no such file; prepare the corpus again")
    try:
        with soundfile.SoundFile(os.fsencode(file)) as sound:
            found = f"{sound.frames} samples at {sound.samplerate} Hz"
            if found != wanted:
                raise UserError(f"{file}: {found}, not {wanted}; prepare the corpus again")
            sound.seek(begin)
            samples = sound.read(n_frames, dtype="float32", always_2d=True)[:, 0]
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{file}: not readable as sound; prepare the corpus again") from error
    if len(samples) != n_frames or not np.isfinite(samples).all():
        raise UserError(f"{file}: damaged, or not finite; prepare the corpus again")
    return np.ascontiguousarray(samples)
