"""Sound files of a fraction of a second, laid out as the real corpora are."""

from pathlib import Path

import numpy as np
import soundfile


def noise(path: Path, seconds: float = 0.1, sample_rate: int = 16000, **options) -> Path:
    """White noise that is the path's own: two files are equal only where their names are.

    options: level (of full scale, 0.1), n_channels (1), subtype, format, as soundfile has them.
    """
    level, n_channels = options.pop("level", 0.1), options.pop("n_channels", 1)
    seed = list(path.name.encode())
    shape = (round(seconds * sample_rate), n_channels)
    samples = level * np.random.default_rng(seed).standard_normal(shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(samples, -0.9, 0.9), sample_rate, **options)
    return path


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by their path in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def silent(line: str) -> None:
    """Tells nobody."""
