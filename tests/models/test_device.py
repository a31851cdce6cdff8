"""Devices by name; a model elsewhere gets its chunks there and its estimates come back."""

import numpy as np
import pytest
import soundfile
import torch

from speechlab.config import replaced
from speechlab.errors import UserError
from speechlab.inference.enhance import enhance_all, enhance_blocks
from speechlab.inference.long_recordings import overlapped
from speechlab.inference.separate import separate_all, separate_blocks
from speechlab.inference.stream import Stream
from speechlab.models import SYSTEMS, device
from speechlab.models.base import Model
from speechlab.models.cleanumamba import CONFIGS, CleanUMamba
from speechlab.study.experiments import EXPERIMENTS
from tests.support.commands import Halving

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs by name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def copied_back(monkeypatch):
    """Samples of the device without memory come back as zeros."""
    cpu = torch.Tensor.cpu
    zeros = lambda x: torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else cpu(x)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "cpu", zeros)
    no_kernel = lambda spec, *sizes, length: spec.real.new_zeros(len(spec), length)  # noqa: E731
    monkeypatch.setattr(torch, "istft", no_kernel)


def test_devices_by_name(gpus):
    assert device.available()[:3] == ["cpu", "cuda:0", "cuda:1"]
    for name, found in {"auto": "cuda:0", "cuda": "cuda", "cuda:1": "cuda:1", "cpu": "cpu"}.items():
        assert device.find(name) == torch.device(found)
    with pytest.raises(UserError, match=r"no device 'cuda:2' \(did you .*there are: cpu, cuda:0"):
        device.find("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "meta", "gpu", "", "cuda:x", "cpu:1"])
def test_an_absent_device_is_an_error_that_names_what_is_here(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.find("auto") == CPU
    with pytest.raises(UserError, match=f"no device '{name}'.*; there are: cpu$"):
        device.find(name)


def test_the_callers_model_stays_where_it_is(monkeypatch):
    monkeypatch.setattr(device, "find", torch.device)
    model = Halving(1)
    assert device.moved(model, None) is device.moved(model, "cpu") is model
    assert device.moved(model, "meta").device == META and model.device == CPU


@pytest.mark.parametrize("n_sources", [1, 2])
def test_files_on_the_cpu_are_the_same_bytes(tmp_path, n_sources):
    noisy = np.random.default_rng(0).normal(size=(4000, 2)) / 10
    soundfile.write(tmp_path / "a.wav", noisy, 8000)
    process = enhance_all if n_sources == 1 else separate_all
    for name, chosen in {"none": None, "cpu": "cpu", "auto": "auto"}.items():
        if chosen == "auto" and len(device.available()) > 1:
            continue
        process(Halving(n_sources), [tmp_path / "a.wav"], tmp_path / name, device=chosen)
    files = list((tmp_path / "none").rglob("*.wav"))
    assert len(files) == n_sources
    for path in files:
        same = tmp_path / "cpu" / path.relative_to(tmp_path / "none")
        assert path.read_bytes() == same.read_bytes()


def on_meta(experiment: str, **changes: object) -> Model:
    """On a device without memory, where operations with a tensor of the CPU fail."""
    found = EXPERIMENTS[experiment]
    with torch.device("meta"):
        return SYSTEMS[found.system][1](replaced(found.model, changes)).eval()


@pytest.mark.parametrize("experiment", ["cleanumamba-tiny", "semamba-tiny"])
def test_a_model_elsewhere_gets_its_chunks_there(copied_back, experiment):
    model = on_meta(experiment)
    blocks = [torch.ones(1, 8000)] * 2
    passes = enhance_blocks(model, blocks, 0.5)
    if model.long_recordings == "overlap":
        passes = overlapped(model, blocks, chunk_s=0.6, overlap_s=0.1)
    estimate = torch.cat(list(passes), -1)
    assert estimate.device == CPU and estimate.shape == (1, 16000)


@pytest.mark.parametrize("streams", [False, True])
def test_a_separator_elsewhere_gets_its_chunks_there(copied_back, monkeypatch, streams):
    monkeypatch.setattr(Stream, "_check", lambda stream, chunk: None)  # it reads samples
    same = lambda estimate, name: estimate  # noqa: E731
    monkeypatch.setattr("speechlab.inference.stream.check_finite", same)
    model = on_meta("sepmamba-tiny", direction="forward") if streams else Halving(2).to("meta")
    blocks = [torch.ones(1, model.sample_rate // 2)] * 3
    estimate = torch.cat(list(separate_blocks(model, blocks, chunk_s=1)), -1)
    assert estimate.device == CPU and estimate.shape == (1, 2, 3 * len(blocks[0][0]))


def test_a_stream_says_where_its_chunks_belong(copied_back):
    config = replaced(CONFIGS["ablation"], {"normalize": "running"})
    with torch.device("meta"):
        stream = Stream(CleanUMamba(config))
    assert stream.device == META and stream.path == "modules"
    with pytest.raises(UserError, match="on meta, as the weights"):
        stream.feed(torch.zeros(1, 1, 256))
