"""Sound files for tests of the commands: good ones of every kind, and broken ones."""

import os

import numpy as np
import soundfile
import torch

from speechlab.audio import files


def noise(n_channels=1, length=5000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(n_channels, length, generator=generator)


GOOD = {
    "8-bit 8 kHz": "a.wav",
    "24-bit 96 kHz 6 channels": "a.wav",
    "silence": "a.wav",
    "3 samples at 16000": "a.wav",
    "3 samples at 96000": "a.wav",
    "1 kHz": "a.wav",
    "mp3": "a.mp3",
    "ogg": "a.ogg",
    "flac": "a.flac",
    "odd names": "naïve 日本 🎤 'quoted' %s\n.wav",
    "not Unicode": os.fsdecode(b"\xff\xfe.wav"),
    "in a folder x.wav": "x.wav/a.wav",
}
BAD = {  # kind -> part of the error
    "zero bytes": "empty, 0 bytes",
    "header only": "ends before its header says",
    "no samples": "no samples",
    "truncated": "ends before its header says",
    "nan": "NaN or infinite",
    "infinity": "NaN or infinite",
    "1 Hz": "a rate of 1 Hz",
    "1 MHz": "a rate of 1000000 Hz",
    "IRCAM": "cannot be verified; convert",
}


def check_one_line(error, path):
    """An error is one line that names the file: what is wrong; the fix."""
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and ";" in message


SPECIAL = {  # rate, waveform and subtype of a kind in GOOD; others: 16000, noise(), None
    "8-bit 8 kHz": (8000, noise(), "PCM_U8"),
    "24-bit 96 kHz 6 channels": (96000, noise(6, 9001), "PCM_24"),
    "silence": (16000, torch.zeros(1, 4000), None),
    "3 samples at 16000": (16000, noise(1, 3), None),
    "3 samples at 96000": (96000, noise(1, 3), None),
    "1 kHz": (1000, noise(1, 200), None),
}


def write_good(path, kind):
    """A file of a kind in GOOD; returns its rate, shape and subtype."""
    rate, waveform, subtype = SPECIAL.get(kind, (16000, noise(), None))
    files.save(path, waveform, rate, subtype)
    return rate, waveform.shape, subtype or files.Recording(path).subtype


def write_bad(path, kind):
    """A file of a kind in BAD."""
    files.save(path, noise(), 16000, "FLOAT")
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "header only":
        path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"data") + 8])
    elif kind == "no samples":
        soundfile.write(path, np.zeros((0, 2)), 16000)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:9000])
    elif kind in ("1 Hz", "1 MHz"):
        soundfile.write(path, np.zeros(100), 1 if kind == "1 Hz" else 10**6)
    elif kind == "IRCAM":
        soundfile.write(path, np.zeros(100), 16000, format="IRCAM", subtype="PCM_16")
    elif kind in ("nan", "infinity"):
        samples = noise()[0].numpy()
        samples[4321] = np.nan if kind == "nan" else np.inf
        soundfile.write(path, samples, 16000, subtype="FLOAT")
