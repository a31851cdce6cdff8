"""Sound files in: one reader for the whole package, so that every error names its file."""

from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from speechlab.errors import UserError

# What counts as a sound file in a folder.
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".aif", ".aiff")


def load(path: str | Path, sample_rate: int | None = None) -> tuple[torch.Tensor, int]:
    """Read a sound file.

    Returns the waveform, (C, T) float32 with full scale at 1 (a float file may go beyond), and its
    rate in Hz. With `sample_rate` it is resampled (soxr, HQ) where the file has another rate.
    Raises UserError for a file that is missing, unreadable, empty, or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the name and the folder")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)  # (T, C)
    except (soundfile.LibsndfileError, OSError) as error:
        reason = str(error).rpartition(": ")[2].rstrip(". ") or "unknown format"
        raise UserError(
            f"{path}: not readable as sound ({reason}); convert it to WAV or FLAC"
        ) from error
    if not len(samples):
        raise UserError(f"{path}: no samples in it; replace the file or leave it out")
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: holds NaN or infinite samples; write the file anew")
    if sample_rate is not None and sample_rate != rate:
        samples, rate = soxr.resample(samples, rate, sample_rate, quality="HQ"), sample_rate
    return torch.from_numpy(np.ascontiguousarray(samples.T)), rate
