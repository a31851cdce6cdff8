"""A prepared corpus of a second, and a training on it of a second, for the tests."""

import json
from pathlib import Path

import numpy as np
import soundfile

from speechlab.data import manifest
from speechlab.data.manifest import Item

RATE, N_FRAMES = 16000, 8000  # Hz; samples of every file
SETTINGS = {
    "mixture.segment_s": 0.2,
    "n_per_epoch": 9,
    **{f"model.{part}_channels": [4, 4] for part in ("down", "skip", "up")},
    "model.d_model": 4,
    "model.layers": [{"d_state": 2}],
    "losses": {"l1": 1.0},
    "training.n_steps": 6,
    "training.batch_size": 4,
    "training.validate_every": 3,
    "training.log_every": 2,
    "training.checkpoint_every": 1,
}


def prepared(folder: Path, seed: int = 0, of: str = "") -> Path:
    """Two of each kind in every split, and in dev three ready mixtures.

    of: stands before the names of speakers and recordings; other names, another corpus.
    """
    splits = {split: [] for split in manifest.SPLITS}
    for split, items in splits.items():
        for index, (kind, level) in enumerate((("speech", 0.2), ("noise", 0.05)) * 2):
            name = f"{split}_{kind}_{index}"
            path = written(folder, f"{split}/{name}.wav", level, seed)
            who = (f"{of}{split} {index}",) if kind == "speech" else ()
            made = {"speakers": who, "recordings": (of + name,)}
            items.append(Item(name, kind, path, N_FRAMES, RATE, **made))
        for index in range(3):
            name = f"{split}_mixture_{index}"
            paths = [
                written(folder, f"{split}/{side}/{name}.wav", level, seed)
                for side, level in (("noisy", 0.2), ("clean", 0.1))
            ]
            said = {"sources": (paths[1],), "recordings": (of + name,), "snr_db": 0.0}
            items.append(Item(name, "mixture", paths[0], N_FRAMES, RATE, **said))
    manifest.write(folder, splits, {"name": "toy"})
    return folder


def written(folder: Path, path: str, level: float, seed: int) -> str:
    """A file of white noise; the same name is always the same samples."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng([seed, *path.encode()]).normal(size=N_FRAMES)
    soundfile.write(folder / path, level * drawn, RATE)
    return path


def words(corpus: Path, **changes: object) -> list[str]:
    """`SETTINGS` on that corpus, --set before each; of changes, `__` stands for a dot."""
    given = {key.replace("__", "."): value for key, value in changes.items()}
    settings = SETTINGS | {"corpora": [str(corpus)]} | given
    return [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
