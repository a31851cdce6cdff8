"""Sound files in and out: values, rates, blocks, and one line for every way a file can be wrong."""

import contextlib
import os
from functools import partial

import numpy as np
import pytest
import soundfile
import soxr
import torch

from speechlab.audio import files
from speechlab.errors import UserError
from speechlab.storage.atomic import unfinished
from tests.support import signals
from tests.support.sound_files import BAD, check_one_line, write_bad

RATES = [(rate, 16000) for rate in (8000, 44100, 48000, 96000)] + [(16000, 44100), (16000, 48000)]
noise = partial(signals.noise, level=0.1)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_16_bit_samples_are_exact(tmp_path):
    steps = np.array([[-32768, 0], [1, 32767], [2, -1]], dtype=np.int16)
    soundfile.write(tmp_path / "x.wav", steps, 16000, subtype="PCM_16")
    waveform, rate = files.load(tmp_path / "x.wav")
    assert rate == 16000
    assert waveform.dtype == torch.float32
    assert torch.equal(waveform * 32768, torch.from_numpy(steps.T).float())  # (C, T)
    assert files.save(tmp_path / "y.wav", waveform, rate) == 0
    assert np.array_equal(soundfile.read(tmp_path / "y.wav", dtype="int16")[0], steps)


@pytest.mark.parametrize(
    ("name", "subtype", "bits"),
    [
        ("x.wav", "PCM_U8", 8),
        ("x.wav", "PCM_16", 16),
        ("x.wav", "PCM_24", 24),
        ("x.wav", "PCM_32", 24),  # as many of its bits as float32 has
        ("x.flac", "PCM_S8", 8),
        ("x.flac", "PCM_24", 24),
    ],
)
def test_integers_are_written_by_the_steps_they_are_read_by(tmp_path, name, subtype, bits):
    half = 2.0 ** (bits - 1)
    steps = torch.tensor([[-half, -half + 1, -1, 0, 1, half - 1], [0, 5, 7, -7, half - 2, 3]])
    assert files.save(tmp_path / name, steps / half, 8000, subtype) == 0
    assert soundfile.info(tmp_path / name).subtype == subtype
    assert torch.equal(files.load(tmp_path / name)[0] * half, steps)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_float_files_keep_what_is_beyond_full_scale(tmp_path, subtype):
    waveform = torch.tensor([[0.1, -3.0, 2.5]])
    assert files.save(tmp_path / "x.wav", waveform, 16000, subtype) == 0
    assert torch.equal(files.load(tmp_path / "x.wav")[0], waveform)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "PCM_24"])
def test_clipping_is_counted(tmp_path, subtype):
    waveform = torch.tensor([[0.1, -3.0, 1.0, -1.0, 1.001]])
    assert files.save(tmp_path / "x.wav", waveform, 16000, subtype) == 2
    assert files.load(tmp_path / "x.wav")[0].abs().max() == 1


@pytest.mark.parametrize("ending", ["ogg", "mp3", "flac", "wav"])
@pytest.mark.parametrize(("rate", "n_channels"), [(16000, 1), (44100, 2)])
def test_formats_keep_length_and_level(tmp_path, ending, rate, n_channels):
    tone = 0.3 * torch.sin(torch.arange(rate) * 0.05).expand(n_channels, -1)
    files.save(tmp_path / f"x.{ending}", tone, rate)
    waveform, read_rate = files.load(tmp_path / f"x.{ending}")
    assert (read_rate, waveform.shape) == (rate, tone.shape)
    gain = (waveform * tone).sum() / tone.square().sum()
    assert abs(gain - 1) < (0.02 if ending in ("ogg", "mp3") else 1e-4)


CONTAINERS = {".aif": "AIFF", ".aiff": "AIFF", ".aifc": "AIFF", ".au": "AU", ".snd": "AU"}
CONTAINERS |= {".caf": "CAF", ".sph": "NIST", ".nist": "NIST", ".w64": "W64", ".rf64": "RF64"}
CONTAINERS |= {".wav": "WAV", ".wave": "WAV", ".bwf": "WAV", ".flac": "FLAC", ".mp3": "MP3"}
CONTAINERS |= {".ogg": "OGG", ".oga": "OGG", ".opus": "OGG"}
MP2_FRAME = b"\xff\xfd\x80\x04" + bytes(413)  # 1152 silent samples, 2 channels, 44.1 kHz


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_every_ending_of_a_folder_is_readable(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    if suffix == ".mp2":
        path.write_bytes(MP2_FRAME * 20)
        assert files.load(path)[0].shape == (2, 20 * 1152)
        return
    soundfile.write(path, noise(1, 5000)[0].numpy(), 16000, format=CONTAINERS[suffix])
    assert files.load(path)[0].shape == (1, 5000)
    assert not set(files.SUFFIXES) & set(files.UNREADABLE)


def test_a_float_file_has_the_same_bytes_whenever_it_is_written(tmp_path):
    files.save(tmp_path / "x.wav", noise(1, 100), 16000, "FLOAT")
    head = (tmp_path / "x.wav").read_bytes()[:120]
    time = head.index(b"PEAK") + 12
    assert head[time : time + 4] == bytes(4)
    assert torch.equal(files.load(tmp_path / "x.wav")[0], noise(1, 100))


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
@pytest.mark.parametrize("size", [1, 997, 16000])
def test_blocks_resample_as_the_whole(rate_in, rate_out, size):
    """Chunk law; soxr's own resampling of the whole is the reference."""
    waveform = noise(2, 1500 if size == 1 else 40001)
    resampler = files.Resampler(rate_in, rate_out, 2)
    parts = [resampler.feed(block) for block in waveform.split(size, -1)]
    blockwise = torch.cat([*parts, resampler.flush()], -1)
    whole = torch.from_numpy(soxr.resample(waveform.T.numpy(), rate_in, rate_out).T)
    assert blockwise.shape[-1] == -(-waveform.shape[-1] * rate_out // rate_in)
    length = min(whole.shape[-1], blockwise.shape[-1])
    assert (blockwise[:, :length] - whole[:, :length]).abs().max() < 1e-6


def there_and_back(waveform, rate):
    """At 16 kHz, and from there again at the rate."""
    there, back = files.Resampler(rate, 16000, 1), files.Resampler(16000, rate, 1)
    low = torch.cat([there.feed(waveform), there.flush()], -1)
    return low, torch.cat([back.feed(low), back.flush(waveform.shape[-1])], -1)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 47999, 48000, 96000, 192000])
@pytest.mark.parametrize("length", [1, 2, 3, 100, 4801])
def test_there_and_back_keeps_the_length(rate, length):
    low, again = there_and_back(torch.ones(1, length), rate)
    assert low.shape[-1] >= 1 and again.shape == (1, length)


def test_there_and_back_is_aligned():
    """A low tone comes back where it was, sample by sample: no delay, no gain."""
    tone = torch.sin(torch.arange(48000).double() * 2 * torch.pi / 48).float()[None] / 2
    _, again = there_and_back(tone, 48000)
    assert (again - tone)[:, 2000:-2000].abs().max() < 1e-6


@pytest.mark.parametrize("rate", [None, 16000, 22050])
def test_a_recording_in_blocks_is_the_file(tmp_path, rate):
    files.save(tmp_path / "x.wav", noise(2, 30011), 44100)
    whole, _ = files.load(tmp_path / "x.wav", rate)
    recording = files.Recording(tmp_path / "x.wav", rate, block_s=0.013)
    assert recording.length == whole.shape[-1]
    for _ in range(2):  # each pass anew
        assert torch.equal(torch.cat(list(recording), -1), whole)


@pytest.mark.parametrize(("rate", "n_channels"), [(768000, 255), (1000, 1024), (48000, 2)])
def test_a_block_has_bounded_memory(tmp_path, rate, n_channels):
    soundfile.write(tmp_path / "x.wav", np.zeros((20000, n_channels), np.int16), rate)
    sizes = [block.numel() for block in files.Recording(tmp_path / "x.wav")]
    assert max(sizes) <= files.BLOCK_SAMPLES == 2**22
    assert sum(sizes) == 20000 * n_channels


@pytest.mark.parametrize(("rate", "wanted"), [(16000, 16000), (1000, 768000)])
def test_a_file_that_does_not_fit_into_memory_is_refused_by_its_header(tmp_path, rate, wanted):
    """A file with a hole: 10 hours at 16 kHz; or few samples, and many after resampling."""
    path = tmp_path / "x.wav"
    soundfile.write(path, np.zeros(1000, np.int16), rate)
    size = 2 * 36000 * (16000 if rate == wanted else 1000)
    header = bytearray(path.read_bytes()[:44])
    header[4:8], header[40:44] = (n.to_bytes(4, "little") for n in (size + 36, size))
    path.write_bytes(header)
    os.truncate(path, 44 + size)
    assert files.Recording(path).n_frames == size // 2
    with pytest.raises(UserError, match=r"600 minutes of 1 .* do not fit into memory"):
        files.load(path, wanted)


@pytest.mark.parametrize("lengths", [[1] * 25, [25], [7, 0, 11, 7], [10, 10, 5], []])
def test_rechunk_keeps_the_samples(lengths):
    signal = torch.arange(float(sum(lengths)))[None]
    blocks = list(files.rechunk(iter(signal.split(lengths, -1)), 5))
    assert [block.shape[-1] for block in blocks] == [5] * (sum(lengths) // 5)
    assert torch.equal(torch.cat([signal[:, :0], *blocks], -1), signal)


def test_what_goes_wrong_leaves_the_older_file(tmp_path):
    path = tmp_path / "x.wav"
    files.save(path, noise(1, 100), 16000)
    before = path.read_bytes()
    with contextlib.suppress(ZeroDivisionError), files.Writer(path, 16000, 1) as writer:
        writer.write(noise(1, 5000))
        raise ZeroDivisionError
    with pytest.raises(UserError, match="NaN"):
        files.save(path, torch.full((1, 10), torch.nan), 16000)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["x.wav"]


def test_a_killed_run_s_rest_is_written_over(tmp_path):
    part = unfinished(tmp_path / "x.wav")
    part.write_bytes(bytes(10**6))
    files.save(tmp_path / "x.wav", noise(1, 100), 16000)
    assert names(tmp_path) == ["x.wav"]
    assert (tmp_path / "x.wav").stat().st_size == 244


def test_beyond_4_gib(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RIFF_BYTES", 1000)
    files.save(tmp_path / "x.wav", noise(1, 600), 16000)
    assert soundfile.info(tmp_path / "x.wav").format == "RF64"
    assert files.load(tmp_path / "x.wav")[0].shape == (1, 600)
    writer = files.Writer(tmp_path / "y.wav", 16000, 1)
    with pytest.raises(UserError, match="4 GiB"), writer:
        writer.write(noise(1, 600))


@pytest.mark.parametrize(
    ("name", "subtype", "said"),
    [
        ("x.aac", None, "ends in .wav"),
        ("x.wav", "PCM_17", "choose one of PCM_16"),
        ("x.flac", "FLOAT", "no FLAC as FLOAT"),
        ("folder.wav", None, "a folder has this name"),
        ("file/x.wav", None, "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_told(tmp_path, name, subtype, said):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=said) as error:
        files.save(tmp_path / name, noise(1, 10), 16000, subtype)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert names(tmp_path) == ["file", "folder.wav"]


OTHERS = {  # kind -> part of the error
    "missing": "no such file",
    "folder": "a folder, not a sound file",
    "size of 0": "no samples",  # of an unknown length, but libsndfile takes it at its word
    "text": "not readable",
    "pipe": "no such file",
    "link to itself": "no such file|not readable",
    "mp3 of hidden length": "without its length",
}


@pytest.mark.parametrize(("kind", "said"), (BAD | OTHERS).items())
def test_a_bad_file_is_one_line_with_its_name(tmp_path, kind, said):
    path = tmp_path / "bad.wav"
    if kind in BAD:
        write_bad(path, kind)
    elif kind == "folder":
        path.mkdir()
    elif kind == "size of 0":
        files.save(path, noise(1, 1000), 16000)
        content = path.read_bytes()
        path.write_bytes(content[:40] + bytes(4) + content[44:])
    elif kind == "text":
        path.write_text("not a sound\n" * 100)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "mp3 of hidden length":
        path = path.with_suffix(".mp3")
        files.save(path, torch.cat([noise(1, 48000), torch.zeros(1, 480000)], -1), 16000)
        content = path.read_bytes()  # of a variable bit rate; the first frame would tell the length
        path.write_bytes(content[content.index(content[:2], 10) :])
    with pytest.raises(UserError, match=said) as error:
        files.load(path)
    check_one_line(error, path)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_a_full_disk_is_named(tmp_path, suffix):
    """libsndfile calls it a system error."""
    path = tmp_path / f"a{suffix}"
    path.with_name(f"{path.name}.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written \(the disk is full\)"):
        files.save(path, torch.rand(1, 2_000_000) - 0.5, 16000)
    assert list(tmp_path.iterdir()) == []
