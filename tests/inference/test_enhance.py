"""Files in, files out: the samples of the whole, the contract for every odd file, going on."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechlab.audio import files
from speechlab.errors import UserError
from speechlab.inference import enhance
from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig
from speechlab.weights.checkpoints import save

TINY = CleanUMambaConfig(
    down_channels=(4, 6, 8),
    skip_channels=(4, 6, 8),
    up_channels=(4, 6, 8),
    d_model=8,
    layers=({"d_state": 4, "expand": 2},),
)
ROOT = Path(enhance.__file__).parents[1]


def tiny(normalize="utterance"):
    torch.manual_seed(0)
    config = CleanUMambaConfig(**(vars(TINY) | {"normalize": normalize}))
    return CleanUMamba(config).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors", tiny())


def noise(n_channels=1, length=5000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(n_channels, length, generator=generator)


def whole(model, waveform):
    """The reference: (C, T) at once, each channel on its own."""
    with torch.inference_mode():
        return model(waveform[:, None])[:, 0]


def run(model, *inputs, output, **settings):
    return enhance.enhance_all(model, inputs, output, progress=False, **settings)


def rows(folder):
    with (folder / "enhance.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# The samples


@pytest.mark.parametrize("normalize", ["utterance", "running", "none"])
@pytest.mark.parametrize("sizes", [[1] * 300, [5000], [3, 1999, 997, 0, 2001], [7]])
def test_blocks_give_the_samples_of_the_whole(normalize, sizes):
    model = tiny(normalize)
    waveform = noise(2, sum(sizes)) * torch.tensor([[1.0], [0.1]])  # a level per channel
    blocks = list(waveform.split(sizes, -1))
    estimate = torch.cat(list(enhance.enhance_blocks(model, blocks, chunk_s=0.01)), -1)
    assert estimate.shape == waveform.shape
    assert (estimate - whole(model, waveform)).abs().max() < 1e-5


def test_blocks_that_come_once_are_refused_where_they_are_needed_twice(model):
    with pytest.raises(UserError, match="twice"):
        enhance.enhance_blocks(model, iter([noise()]))
    assert (
        len(torch.cat(list(enhance.enhance_blocks(tiny("none"), iter([noise()]))), -1)[0]) == 5000
    )


@pytest.mark.parametrize("normalize", ["utterance", "running"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_file_in_chunks_is_the_file_at_once(tmp_path, normalize, rate):
    """At the model's rate; at another the whole is resampled there and back."""
    model = tiny(normalize)
    files.save(tmp_path / "in.wav", noise(2, 30011), rate, "FLOAT")
    result = enhance.enhance_file(model, tmp_path / "in.wav", tmp_path / "out.wav", chunk_s=0.1)
    assert (result.status, result.sample_rate, result.channels) == ("ok", rate, 2)
    estimate = whole(model, files.load(tmp_path / "in.wav", 16000)[0])
    back = files.Resampler(16000, rate, 2)
    expected = torch.cat([back.feed(estimate), back.flush(30011)], -1)
    assert (files.load(tmp_path / "out.wav")[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("rate", [16000, 48000])
def test_the_dry_signal_is_aligned_to_the_sample(tmp_path, model, rate):
    """mix 0 is the input bit for bit, mix 0.5 the mean of both."""
    files.save(tmp_path / "in.wav", noise(2, 30011), rate, "FLOAT")
    outputs = {}
    for mix in (0.0, 0.5, 1.0):
        enhance.enhance_file(model, tmp_path / "in.wav", tmp_path / "out.wav", mix)
        outputs[mix] = files.load(tmp_path / "out.wav")[0]
    assert torch.equal(outputs[0.0], noise(2, 30011))
    assert (outputs[0.5] - (outputs[0.0] + outputs[1.0]) / 2).abs().max() < 1e-6


def test_clipping_is_counted_in_integer_files_alone(tmp_path, model):
    files.save(tmp_path / "loud.wav", 20 * noise(), 16000, "FLOAT")
    kept = run(model, tmp_path / "loud.wav", output=tmp_path / "float", mix=0.0)
    cut = run(model, tmp_path / "loud.wav", output=tmp_path / "int", mix=0.0, subtype="PCM_24")
    assert kept[0].clipped == 0
    assert cut[0].clipped == int((20 * noise()).abs().gt(1).sum()) > 0
    assert soundfile.info(tmp_path / "int/loud.wav").subtype == "PCM_24"


# Every kind of file


def write(path, kind):
    """A file of the torture folder."""
    rate, waveform, subtype = 16000, noise(), None
    if kind == "8-bit 8 kHz":
        rate, subtype = 8000, "PCM_U8"
    elif kind == "24-bit 96 kHz 6 channels":
        rate, waveform, subtype = 96000, noise(6, 9001), "PCM_24"
    elif kind == "silence":
        waveform = torch.zeros(1, 4000)
    elif kind.startswith("3 samples"):
        rate, waveform = int(kind.rpartition(" ")[2]), noise(1, 3)
    elif kind == "1 Hz":
        rate, waveform = 1, noise(1, 2)
    files.save(path, waveform, rate, subtype)
    return rate, waveform.shape, subtype or files.Recording(path).subtype


GOOD = {
    "8-bit 8 kHz": "a.wav",
    "24-bit 96 kHz 6 channels": "a.wav",
    "silence": "a.wav",
    "3 samples at 16000": "a.wav",
    "3 samples at 96000": "a.wav",
    "1 Hz": "a.wav",
    "mp3": "a.mp3",
    "ogg": "a.ogg",
    "flac": "a.flac",
    "odd names": "naïve 日本 🎤 'quoted' %s\n.wav",
    "not Unicode": os.fsdecode(b"\xff\xfe.wav"),
    "in a folder x.wav": "x.wav/a.wav",
}


@pytest.mark.parametrize("kind", GOOD)
def test_good_files(tmp_path, model, kind):
    """Rate, channels, frames and, where WAV has it, the subtype stay."""
    source = tmp_path / "in" / GOOD[kind]
    source.parent.mkdir(parents=True)
    rate, (n_channels, n_frames), subtype = write(source, kind)
    (result,) = run(model, tmp_path / "in", output=tmp_path / "out")
    target = (tmp_path / "out" / GOOD[kind]).with_suffix(".wav")
    assert (result.status, result.output) == ("ok", str(target))
    with target.open("rb") as file:
        information = soundfile.info(file)
    assert (information.samplerate, information.channels) == (rate, n_channels)
    assert information.frames == n_frames
    assert information.subtype == (subtype if subtype.startswith("PCM") else "PCM_16")
    (row,) = rows(tmp_path / "out")
    assert (row["status"], row["channels"], row["reason"]) == ("ok", str(n_channels), "")
    assert float(row["seconds"]) == pytest.approx(n_frames / rate)
    assert float(row["rtf"]) > 0


def break_file(path, kind):
    files.save(path, noise(), 16000, "FLOAT")
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "header only":
        path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"data") + 8])
    elif kind == "no samples":
        soundfile.write(path, np.zeros((0, 2)), 16000)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:9000])
    elif kind in ("nan", "infinity"):
        samples = noise()[0].numpy()
        samples[4321] = np.nan if kind == "nan" else np.inf
        soundfile.write(path, samples, 16000, subtype="FLOAT")


BAD = {
    "zero bytes": "empty, 0 bytes",
    "header only": "ends before its header says",
    "no samples": "no samples",
    "truncated": "ends before its header says",
    "nan": "NaN or infinite",
    "infinity": "NaN or infinite",
}


@pytest.mark.parametrize("normalize", ["utterance", "running"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_files_have_their_line_and_the_rest_go_on(tmp_path, kind, normalize):
    (tmp_path / "in").mkdir()
    break_file(tmp_path / "in/bad.wav", kind)
    for name in ("a.wav", "z.wav"):
        files.save(tmp_path / "in" / name, noise(), 16000)
    told = []
    run(tiny(normalize), tmp_path / "in", output=tmp_path / "out", tell=told.append)
    assert [row["status"] for row in rows(tmp_path / "out")] == ["ok", "failed", "ok"]
    assert [row["reason"] for row in rows(tmp_path / "out")] == ["", *told, ""]
    assert told[0].startswith(f"{tmp_path / 'in/bad.wav'}: ")
    assert BAD[kind] in told[0]
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["a.wav", "enhance.csv", "z.wav"]


def test_an_unreadable_file(tmp_path, model, monkeypatch):
    source = tmp_path / "in.wav"
    files.save(source, noise(), 16000)
    source.chmod(0)
    if os.access(source, os.R_OK):  # root reads everything: let the system refuse it all the same
        opened = Path.open

        def refuse(path, *arguments, **settings):
            if path == source:
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, *arguments, **settings)

        monkeypatch.setattr(Path, "open", refuse)
    (result,) = run(model, source, output=tmp_path / "out")
    assert result.status == "failed"
    assert result.reason.startswith(f"{source}: not readable as sound (Permission denied)")


def test_an_output_that_cannot_be_written(tmp_path, model):
    files.save(tmp_path / "in.wav", noise(), 16000)
    (tmp_path / "out/in.wav").mkdir(parents=True)
    (result,) = run(model, tmp_path / "in.wav", output=tmp_path / "out")
    assert (result.status, "a folder has this name" in result.reason) == ("failed", True)


def test_a_model_that_fails_is_the_file_s_reason(tmp_path, model, monkeypatch):
    def fail(*_):
        raise RuntimeError("too\nlong")

    files.save(tmp_path / "in.wav", noise(), 16000)
    monkeypatch.setattr(CleanUMamba, "network", fail)
    (result,) = run(model, tmp_path / "in.wav", output=tmp_path / "out")
    assert result.reason.endswith("the model failed: RuntimeError: too long")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["enhance.csv"]


# Going on


def test_what_is_there_is_skipped(tmp_path, model):
    for name in ("a.wav", "b.wav"):
        files.save(tmp_path / "in" / name, noise(), 16000)
    first = run(model, tmp_path / "in", output=tmp_path / "out")
    (tmp_path / "out/b.wav").unlink()
    before = (tmp_path / "out/a.wav").stat().st_mtime_ns
    second = run(model, tmp_path / "in", output=tmp_path / "out")
    assert [result.status for result in first + second] == ["ok", "ok", "skipped", "ok"]
    assert second[0].seconds == first[0].seconds  # what was known of it stays in the log
    assert (tmp_path / "out/a.wav").stat().st_mtime_ns == before
    assert [row["status"] for row in rows(tmp_path / "out")] == ["skipped", "ok"]


def test_files_of_other_settings_are_neither_skipped_nor_lost(tmp_path, model):
    files.save(tmp_path / "a.wav", noise(), 16000)
    run(model, tmp_path / "a.wav", output=tmp_path / "out")
    before = (tmp_path / "out/a.wav").read_bytes()
    with pytest.raises(UserError, match="another model or other settings; use --overwrite"):
        run(model, tmp_path / "a.wav", output=tmp_path / "out", mix=0.5)
    assert (tmp_path / "out/a.wav").read_bytes() == before
    (result,) = run(model, tmp_path / "a.wav", output=tmp_path / "out", mix=0.5, overwrite=True)
    assert result.status == "ok"
    assert (tmp_path / "out/a.wav").read_bytes() != before


def test_killed_and_started_again_it_goes_on_byte_for_byte(tmp_path, checkpoint):
    """kill -9 in the middle of a file: no half of it under its name, then the same bytes."""
    for i in range(3):
        files.save(tmp_path / f"in/{i}.wav", noise(1, 16000 * 10, seed=i), 16000, "FLOAT")
    words = [
        "enhance",
        "--checkpoint",
        checkpoint,
        "--output",
        tmp_path / "killed",
        tmp_path / "in",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.stalling_writer", *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as killed:
        part = tmp_path / "killed/1.wav.part"
        while killed.poll() is None and not (part.exists() and part.stat().st_size > 10**5):
            time.sleep(0.001)
        killed.kill()
    assert part.exists()
    assert not (tmp_path / "killed/1.wav").exists()
    model = enhance.checkpoints.load(checkpoint)
    run(model, tmp_path / "in", output=tmp_path / "killed")
    assert [row["status"] for row in rows(tmp_path / "killed")] == ["skipped", "ok", "ok"]
    run(model, tmp_path / "in", output=tmp_path / "whole")
    for i in range(3):
        whole_file = (tmp_path / f"whole/{i}.wav").read_bytes()
        assert (tmp_path / f"killed/{i}.wav").read_bytes() == whole_file
    assert not list((tmp_path / "killed").glob("*.part"))


# Hours

PEAK = """
import resource, sys, torch
from speechlab import enhance
from speechlab.weights.checkpoints import load
torch.set_num_threads(1)
model = load(sys.argv[1])
for source in sys.argv[2:]:
    enhance.enhance_file(model, source, source + ".wav", chunk_s=16)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_two_hours_take_the_memory_of_two_minutes(tmp_path):
    """8-bit, 500 Hz: a small file of many seconds, through a model with a low rate of its own."""
    pytest.importorskip("resource")
    config = CleanUMambaConfig(**(vars(TINY) | {"sample_rate": 250}))
    words = [save(tmp_path / "low.safetensors", CleanUMamba(config))]
    for seconds in (120, 7200):
        words.append(tmp_path / f"{seconds}.wav")
        with files.Writer(words[-1], 500, 1, "PCM_U8") as writer:
            for i in range(seconds // 60):
                writer.write(noise(1, 30000, seed=i))
    printed = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    short, long = map(int, printed.stdout.split())
    assert soundfile.info(tmp_path / "7200.wav.wav").frames == 500 * 7200
    # 2 h in float32 are 14 MB at the file's rate: all of it in memory once would show
    assert long - short < 5000  # KiB


@pytest.mark.parametrize("settings", [{"mix": 1.5}, {"mix": float("nan")}, {"subtype": "PCM_17"}])
def test_wrong_settings_are_told_before_any_work(tmp_path, model, settings):
    files.save(tmp_path / "a.wav", noise(), 16000)
    with pytest.raises(UserError, match=r"mix is|no subtype"):
        run(model, tmp_path / "a.wav", output=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_real_speech_with_published_weights(shared, tmp_path):
    """In chunks against at once, half a step of 16 bits; and the stream's level is another one."""
    weights = shared / "upstream_checkpoints/cleanumamba/Experiment_CleanU_Mamba.pkl"
    source = shared / "audio/pairs/voicebank_demand_train/noisy/p226_001.flac"
    for model in (enhance.checkpoints.load(weights), enhance.load_causal(weights)):
        run(model, source, output=tmp_path / model.config.normalize)
        expected = whole(model, files.load(source)[0])
        estimate = files.load(tmp_path / model.config.normalize / "p226_001.wav")[0]
        assert (estimate - expected).abs().max() < 0.5 / 32768 + 1e-5
    assert (tmp_path / "running").is_dir()
