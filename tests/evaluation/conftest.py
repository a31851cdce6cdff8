"""Small test sets and models that stand in for a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechlab.audio import files
from speechlab.evaluation import evaluate
from speechlab.models.base import Model


@dataclass(frozen=True)
class TinySet:
    """A test set on disk; the first part has the mixtures."""

    folder: Path
    parts: tuple[str, ...]
    rate: int  # Hz
    metrics: tuple[str, ...]  # quick ones
    names = ("a 1", "b_2", "b_10")  # digits are sorted as numbers

    @property
    def n_sources(self):
        return len(self.parts) - 1

    def path(self, part, name):
        return self.folder / part / f"{name}.wav"

    def read(self, part, name):
        return soundfile.read(self.path(part, name))[0]

    def write(self, part, name, samples, rate=None, subtype="PCM_16"):
        path = self.path(part, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate or self.rate, subtype=subtype)

    def run(self, output, **options):
        options = {"metrics": self.metrics, "jobs": 1, "progress": False} | options
        return evaluate.evaluate(self.folder, output, **options)


@pytest.fixture
def pairs(tmp_path):
    """Noise that comes and goes, 1 s, and the same with noise 20 dB below."""
    metrics = ("si_sdr", "ssnr", "stoi")
    made = TinySet(tmp_path / "private" / "tiny_set", ("noisy", "clean"), 16000, metrics)
    for i, name in enumerate(made.names):
        clean = 0.1 * drawn(i, 16000) * np.sin(np.arange(16000) / 2000) ** 2
        made.write("clean", name, clean)
        made.write("noisy", name, clean + 0.01 * drawn(i + 100, 16000))
    return made


@pytest.fixture
def mixtures(tmp_path):
    """Mixtures of two speakers, 1 s: noise that comes and goes."""
    metrics = ("si_sdri", "si_sdr", "stoi")
    made = TinySet(tmp_path / "private" / "tiny_set", ("mix", "s1", "s2"), 8000, metrics)
    for i, name in enumerate(made.names):
        tide = np.sin(np.arange(8000) / (1500 + 100 * i)) ** 2
        first, second = 0.1 * np.random.default_rng(i).normal(size=(2, 8000)) * [tide, 1 - tide]
        for part, samples in zip(made.parts, (first + second, first, second), strict=True):
            made.write(part, name, samples)
    return made


@pytest.fixture(params=["pairs", "mixtures"])
def tiny_set(request):
    """One of each."""
    return request.getfixturevalue(request.param)


def read(path):
    """The samples (T,) of a file of one channel."""
    return files.load(path)[0][0].double().numpy()


def drawn(seed, n_samples):
    return np.random.default_rng(seed).standard_normal(n_samples)


class Toy(Model):
    """The mixture times a gain as the last source; the others are its half, backwards."""

    sample_rate = 16000

    def __init__(self, n_sources=1, sample_rate=16000, gain=0.5, fault=None):
        super().__init__(None)
        self.gain = torch.nn.Parameter(torch.tensor(gain))
        self.n_sources, self.sample_rate, self.fault = n_sources, sample_rate, fault

    def forward(self, mixture):
        if self.fault == "raise":
            raise RuntimeError("no memory\nfor this")
        if self.fault == "sources":
            return mixture.repeat(1, self.n_sources + 1, 1)
        gain = self.gain * (float("nan") if self.fault == "nan" else 1)
        return gain * torch.cat([mixture.flip(-1) / 2] * (self.n_sources - 1) + [mixture], 1)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A file that is loaded as a Toy."""

    def make(content="weights", **options):
        path = tmp_path / "model.pkl"
        path.write_text(content)
        toy = Toy(**options).eval()
        monkeypatch.setattr("speechlab.weights.checkpoints.load", lambda _: toy)
        return path

    return make


@pytest.fixture
def estimates(tiny_set):
    """The sources with some noise, as FLAC; of the second mixture in the other order."""
    folder = tiny_set.folder.parent / "separated"
    subfolders = ["."] if tiny_set.n_sources == 1 else list(tiny_set.parts[1:])
    for i, name in enumerate(tiny_set.names):
        sources = list(tiny_set.parts[1:])[:: -1 if i == 1 else 1]
        for number, (source, subfolder) in enumerate(zip(sources, subfolders, strict=True)):
            samples = tiny_set.read(source, name)
            samples += 0.01 * drawn(50 + 10 * number + i, len(samples))
            (folder / subfolder).mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / subfolder / f"{name}.flac", samples, tiny_set.rate)
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "rows.csv"
