"""Mutated sound files: each is enhanced, or refused in one line, and no half file is left."""

import io
import re
from collections import Counter
from functools import cache, lru_cache
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import torch

from speechlab.audio import files
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.inference.enhance import enhance_file
from speechlab.models.base import Model
from speechlab.models.cleanumamba import CleanUMamba
from tests.fuzz.mutate import any_bytes, any_number, survey
from tests.support.small_models import SMALL

KINDS = {  # container -> ending, codecs
    "WAV": (".wav", ("PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610")),
    "RF64": (".rf64", ("PCM_16", "FLOAT")),
    "W64": (".w64", ("PCM_16", "DOUBLE")),
    "AIFF": (".aiff", ("PCM_16", "FLOAT", "IMA_ADPCM")),
    "AU": (".au", ("PCM_16", "G721_32")),
    "CAF": (".caf", ("PCM_16", "ALAC_16")),
    "FLAC": (".flac", ("PCM_16", "PCM_24")),
    "OGG": (".ogg", ("VORBIS", "OPUS")),
    "MP3": (".mp3", ("MPEG_LAYER_III",)),
}
# Fields of headers: before a size, a rate or a number of channels.
MARKS = (b"data", b"SSND", b"COMM", b"fmt ", b"desc", b"pakt", b"ds64", b"fLaC", b"OggS", b"RIFF")
MARKS += (b"\x01vorbis", b"OpusHead", b".snd", b"fact", b"kuki", b"Xing", b"Info", b"FORM")


def test_sound_files(tmp_path, capsys):
    outcomes = survey(tried, tmp_path, short=450, full=10_000, most_mb=400)
    names = {re.sub(r"\d+", "N", kind): kind for kind in KINDS}  # numbers are left out of reasons
    by_kind = Counter()
    for outcome, count in outcomes.items():
        kind, _, rest = outcome.removeprefix("refused: ").partition(" ")
        by_kind[names.get(kind, kind), "read" if rest == "read" else "refused"] += count
    with capsys.disabled():
        print("\n", *(f"{k} {what} {n};" for (k, what), n in sorted(by_kind.items())))  # noqa: T201
    assert {kind for kind, _ in by_kind} == {*KINDS}
    assert all(by_kind[kind, what] for kind in KINDS for what in ("read", "refused"))


def tried(random: Random, folder: Path) -> str:
    """One file through the header, the samples, and the network."""
    kind = random.choice([*KINDS])
    suffix = KINDS[kind][0]
    if random.random() < 0.1:
        suffix = random.choice(files.SUFFIXES)
    path, target = folder / f"x{suffix}", folder / "out.wav"
    path.write_bytes(mutated(kind, random))
    try:
        recording = files.Recording(path)
        assert files.RATES[0] <= recording.file_rate <= files.RATES[1]
        result = enhance_file(model(), path, target)
    except UserError as error:
        if target.exists() or not str(error).startswith(f"{path}: "):
            raise AssertionError(f"a half file, or no name of the file: {error}") from error
        raise UserError(f"{kind} {error}") from error
    assert soundfile.info(target).frames == recording.n_frames
    assert result.channels == recording.n_channels
    return f"{kind} read"


def mutated(kind: str, random: Random) -> bytes:
    """A file, changed in its fields, anywhere, or joined with another one."""
    content = sound(kind, random.choice(KINDS[kind][1]), random.choice((1, 2)))
    change = random.random()
    if change < 0.05:
        return content
    if change < 0.1:
        other = random.choice([*KINDS])
        return content + sound(other, KINDS[other][1][0], 1)
    if change < 0.5:
        return with_odd_field(content, random)
    return any_bytes(content, random)


def with_odd_field(content: bytes, random: Random) -> bytes:
    """An odd number within 40 bytes of the mark of a chunk."""
    found = [mark for mark in MARKS if mark in content]
    if not found:
        return any_bytes(content, random)
    mark = random.choice(found)
    begin = content.index(mark) + len(mark) + random.randrange(0, 40, random.choice((1, 2, 4)))
    n_bytes = random.choice((1, 2, 4, 8))
    value = int(any_number(random)) % 256**n_bytes
    number = value.to_bytes(n_bytes, random.choice(("little", "big")))
    return content[:begin] + number + content[begin + n_bytes :]


@cache
def sound(kind: str, codec: str, n_channels: int) -> bytes:
    """A tenth of a second of noise."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((1600, n_channels))
    file = io.BytesIO()
    if codec in ("GSM610", "G721_32"):
        noise = noise[:, :1]
    soundfile.write(file, noise, 16000, format=kind, subtype=codec)
    return file.getvalue()


@lru_cache(maxsize=1)
def model() -> Model:
    """A small model of a low rate."""
    torch.manual_seed(0)
    return CleanUMamba(override(SMALL["cleanumamba"], sample_rate=4000)).eval()
