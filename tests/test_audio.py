"""Reading sound files: values, rates, and one line for every way a file can be wrong."""

import numpy as np
import pytest
import soundfile
import torch

from speechlab import audio
from speechlab.errors import UserError


def test_16_bit_samples_are_exact(tmp_path):
    steps = np.array([[-32768, 0], [1, 32767], [2, -1]], dtype=np.int16)
    soundfile.write(tmp_path / "x.wav", steps, 16000, subtype="PCM_16")
    waveform, rate = audio.load(tmp_path / "x.wav")
    assert rate == 16000
    assert waveform.dtype == torch.float32
    assert torch.equal(waveform * 32768, torch.from_numpy(steps.T).float())  # (C, T)


def test_resampling_keeps_a_tone(tmp_path):
    def tone(rate):
        return 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)

    soundfile.write(tmp_path / "x.wav", tone(48000), 48000, subtype="FLOAT")
    waveform, rate = audio.load(tmp_path / "x.wav", 16000)
    assert (rate, waveform.shape) == (16000, (1, 16000))
    middle = slice(1000, -1000)
    assert np.abs(waveform[0, middle].numpy() - tone(16000)[middle]).max() < 1e-4
    same, _ = audio.load(tmp_path / "x.wav", 48000)
    assert torch.equal(same, audio.load(tmp_path / "x.wav")[0])


@pytest.mark.parametrize("kind", ["missing", "folder", "no bytes", "text", "no samples", "nan"])
def test_a_bad_file_is_one_line_with_its_name(tmp_path, kind):
    path = tmp_path / "bad.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "no bytes":
        path.touch()
    elif kind == "text":
        path.write_text("not a sound\n" * 100)
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0), 16000)
    elif kind == "nan":
        soundfile.write(path, np.array([0.0, np.nan, 0.0]), 16000, subtype="FLOAT")
    with pytest.raises(UserError) as error:
        audio.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert ";" in message  # what is wrong; the fix
