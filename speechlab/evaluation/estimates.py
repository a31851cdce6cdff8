"""Where the estimates of a test set come from: a model, files, or the unprocessed mixtures."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from speechlab.audio import files as audio
from speechlab.audio.folders import names_of_sources
from speechlab.data.pairs import channel_faults
from speechlab.data.test_sets import Mixture, sample_rates, sound_files
from speechlab.errors import UserError
from speechlab.evaluation.dev_files import estimated
from speechlab.evaluation.metrics import PACKAGES, RESAMPLER, versions
from speechlab.models import device as devices
from speechlab.models.base import Model, check_finite
from speechlab.models.macs import n_params
from speechlab.parallel import finished, n_processors
from speechlab.storage.atomic import sha256
from speechlab.version import __version__
from speechlab.weights import checkpoints

UNPROCESSED = {False: "noisy files", True: "mixtures"}  # in the settings; of several sources: True
LONGEST_S = 3600  # of a file that is scored: memory grows with it
CHANNELS_MOST, HEARD_S = 16, 10  # where channels are compared, to say what is wrong with them

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Estimates:
    """Of a test set: a model, or for each of its names the files, one per source."""

    record: dict[str, Any]  # for the settings: names and digests, no folders
    checkpoint: Path | None = None
    device: str = "cpu"  # of the model
    sample_rate: int | None = None  # Hz, of the model
    files: dict[str, tuple[Path, ...]] = field(default_factory=dict)  # name -> files, by source

    def of(self, mixture: Mixture) -> tuple[Path, ...]:
        """The files of its estimates; of a model there are none."""
        return self.files.get(mixture.name, ())

    def paths(self, mixture: Mixture) -> tuple[Path, ...]:
        """All files to read for its scores, each once, the sources first."""
        is_read = self.checkpoint is not None or len(mixture.sources) > 1
        input_file = (mixture.mixture,) if is_read else ()
        return tuple(dict.fromkeys((*mixture.sources, *input_file, *self.of(mixture))))


def find_estimates(
    checkpoint: str | Path | None,
    folder: str | Path | None,
    mixtures: Sequence[Mixture],
    needed: Iterable[Mixture],
    device: str = "cpu",
) -> Estimates:
    """Those of a checkpoint or else of a folder; of neither: the mixtures, for every source.

    mixtures: the whole test set; needed: those that must have estimates. UserError where a given
    file or folder is missing or has other sources.
    """
    if checkpoint is not None and folder is not None:
        raise UserError("both a checkpoint and estimates are given; give one")
    n_sources = len(mixtures[0].sources)
    if checkpoint is not None:
        return _of_model(checkpoint, n_sources, device)
    if device != "cpu":
        raise UserError("--device is for a checkpoint; estimates and noisy files need no model")
    if folder is not None:
        parts = names_of_sources(n_sources) if n_sources > 1 else ("",)
        return _of_folder(Path(folder), mixtures, needed, parts)
    files = {mixture.name: (mixture.mixture,) * n_sources for mixture in mixtures}
    return Estimates({"source": UNPROCESSED[n_sources > 1]}, files=files)


def _of_model(checkpoint: str | Path, n_sources: int, device: str) -> Estimates:
    """The model is loaded here, too, so that an unreadable file is an error before any work."""
    path = checkpoints.locate(checkpoint)
    model = checkpoints.load(path)
    if model.n_sources != n_sources:
        raise UserError(
            f"{checkpoint}: a model of {model.n_sources} source(s), the test set has {n_sources}; "
            "take a test set of as many"
        )
    record = {
        "source": "checkpoint",
        "checkpoint": Path(checkpoint).name,
        "sha256": digest([path]),
        "n_params": n_params(model),
    }
    found = str(devices.find(device))
    if found != "cpu":  # rounds differently
        record["device"] = found
    return Estimates(record, checkpoint=path, device=found, sample_rate=model.sample_rate)


def _of_folder(
    folder: Path, mixtures: Sequence[Mixture], needed: Iterable[Mixture], parts: tuple[str, ...]
) -> Estimates:
    """Files named as the mixtures, in a subfolder `parts` of each source ("": the folder itself).

    Names are compared as by `sound_files`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of estimates")
    absent = [part for part in parts if not (folder / part).is_dir()]
    if absent:
        wanted = ", ".join(f"{part}/" for part in parts)
        raise UserError(f"{folder}: has no {absent[0]}/; estimates of these sources are {wanted}")
    found = [sound_files(folder / part) for part in parts]
    files = {
        mixture.name: tuple(part[mixture.name] for part in found)
        for mixture in mixtures
        if all(mixture.name in part for part in found)
    }
    missing = [mixture.mixture.name for mixture in needed if mixture.name not in files]
    if missing:
        raise UserError(
            f"{folder}: no estimate of {len(missing)} files ({missing[0]} ...); "
            "estimates have the names of the files they are of"
        )
    every = [path for paths in files.values() for path in paths]
    record = {"source": "estimates", "estimates": folder.name, "sha256": digest(every)}
    return Estimates(record, files=files)


def rate_and_versions(
    sample_rate: int | None, estimates: Estimates, paths: Iterable[Path]
) -> dict[str, Any]:
    """For the settings: versions of packages, and the rate (Hz) where files are resampled to it."""
    resampled = sample_rate is not None and bool(sample_rates(paths) - {sample_rate})
    packages = (*PACKAGES, RESAMPLER) if resampled else PACKAGES
    model = {"torch": torch.__version__} if estimates.checkpoint else {}
    rate = {"sample_rate": sample_rate} if resampled else {}
    return {**rate, "versions": {"speechlab": __version__, **versions(packages), **model}}


def mono(path: Path, sample_rate: int | None) -> tuple[np.ndarray, int]:
    """Samples (T,) of a file at a rate in Hz, None: its own. UserError for several channels."""
    recording = audio.Recording(path, sample_rate)
    if recording.n_channels != 1:
        faults = ["", *_channel_faults(recording)]
        raise UserError(
            f"{path}: {recording.n_channels} channels; scores are for one{'; '.join(faults)}"
        )
    if (seconds := recording.n_frames / recording.file_rate) > LONGEST_S:
        raise UserError(f"{path}: {seconds:.0f} s; scores are for at most {LONGEST_S} s, cut it")
    return recording.whole()[0].double().numpy(), recording.sample_rate


def _channel_faults(recording: audio.Recording) -> list[str]:
    """Of the first seconds of a file of few channels."""
    if recording.n_channels > CHANNELS_MOST:
        return []
    return channel_faults(torch.cat(list(islice(recording, HEARD_S)), -1).numpy())


def processed(
    checkpoint: Path,
    noisy: np.ndarray,
    sample_rate: int,
    n_sources: int = 1,
    device: str = "cpu",
) -> np.ndarray:
    """A model's estimates (S, T) of a signal (T,). UserError for every error of the model."""
    model = loaded(checkpoint, device)
    if model.sample_rate != sample_rate:
        raise UserError(f"the model is for {model.sample_rate} Hz, the file has {sample_rate} Hz")
    batch = torch.from_numpy(noisy.astype(np.float32))[None, None]  # (1, 1, T)
    try:
        estimate = estimated(model, batch[0])[None]
    except UserError:
        raise
    except Exception as error:  # whatever a model raises is the row's reason
        reason = " ".join(str(error).split())
        raise UserError(f"the model failed: {type(error).__name__}: {reason}") from error
    if estimate.shape != (1, n_sources, len(noisy)):
        of = f" and {n_sources} sources" if n_sources > 1 else ""
        shapes = f"{tuple(estimate.shape)} for {tuple(batch.shape)}{of}"
        raise UserError(f"the model gave {shapes}")
    return check_finite(estimate)[0].double().numpy()


@functools.lru_cache(maxsize=1)
def loaded(checkpoint: Path, device: str = "cpu") -> Model:
    """On a device, loaded once per process; `loaded.cache_clear()` frees it."""
    return checkpoints.load(checkpoint).to(device)


def scored(
    score: Callable[[Task], Result], tasks: list[Task], jobs: int | None
) -> Iterator[Result]:
    """Results of `score` as the tasks finish, in `jobs` processes; None: one per processor."""
    try:
        yield from finished(score, tasks, jobs or n_processors())
    finally:
        loaded.cache_clear()  # with one job this process did the work


def digest(paths: Iterable[Path], first: str = "") -> str:
    """SHA-256 of a text and of the SHA-256 of each file, in the order given."""
    total = hashlib.sha256(first.encode())
    for path in paths:
        total.update(bytes.fromhex(sha256(path)))
    return total.hexdigest()
