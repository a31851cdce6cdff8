"""Truncated files are detected, in every container that can be read."""

import io

import numpy as np
import pytest
import soundfile

from speechlab.audio import containers, files
from speechlab.errors import UserError
from tests.support.sound_files import check_one_line

N = 30000  # frames: more than a second, several pages of an Ogg stream
KINDS = {
    "wav": ("x.wav", {"format": "WAV", "subtype": "PCM_16"}),
    "wav of 24 bits": ("x.wav", {"format": "WAV", "subtype": "PCM_24"}),
    "rifx": ("x.wav", {"format": "WAV", "subtype": "PCM_16", "endian": "BIG"}),
    "rf64": ("x.wav", {"format": "RF64", "subtype": "PCM_16"}),
    "aiff": ("x.aiff", {"format": "AIFF", "subtype": "PCM_16"}),
    "aifc": ("x.aif", {"format": "AIFF", "subtype": "FLOAT"}),
    "aifc of small bytes first": ("x.aif", {"format": "AIFF", "endian": "LITTLE"}),
    "vorbis": ("x.ogg", {"format": "OGG", "subtype": "VORBIS"}),
    "opus": ("x.opus", {"format": "OGG", "subtype": "OPUS"}),
    "flac": ("x.flac", {"format": "FLAC"}),
    "mp3": ("x.mp3", {"format": "MP3"}),
    "caf": ("x.caf", {"format": "CAF", "subtype": "PCM_16"}),
    "alac in caf": ("x.caf", {"format": "CAF", "subtype": "ALAC_16"}),
    "au": ("x.au", {"format": "AU", "subtype": "PCM_16"}),
    "w64": ("x.w64", {"format": "W64", "subtype": "PCM_16"}),
    "sphere": ("x.sph", {"format": "NIST", "subtype": "PCM_16"}),
    "sphere of 8 bits": ("x.sph", {"format": "NIST", "subtype": "ULAW"}),
}
SIZED = ("wav", "wav of 24 bits", "rifx", "rf64", "aiff", "aifc")  # whose header tells a size
TO_THE_END = ("w64", "sphere", "sphere of 8 bits")  # libsndfile: samples to the end of the file
ID3_FRONT = b"ID3\x03\x00\x00\x00\x00\x01\x00" + bytes(128)
ID3_END = b"TAG" + bytes(125)


def written(folder, kind, seed=0, n_frames=N):
    name, settings = KINDS[kind]
    noise = 0.1 * np.random.default_rng(seed).standard_normal((n_frames, 1))
    soundfile.write(folder / name, noise, 24000, **settings)
    return folder / name


def n_samples(path, content):
    path.write_bytes(content)
    return files.load(path)[0].shape[-1]


def samples_begin(content):
    """Where a chunk of samples has its size."""
    return content.index(b"SSND" if content[:4] == b"FORM" else b"data") + 4


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in TO_THE_END])
def test_a_whole_file_passes_with_what_is_behind_it(tmp_path, kind):
    path = written(tmp_path, kind)
    whole = path.read_bytes()
    chunk = b"LIST\x00\x00\x00\x00" if kind in SIZED else b""
    for behind in (b"", ID3_END, chunk, bytes(64)):
        assert n_samples(path, whole + behind) == N


@pytest.mark.parametrize("kind", ["wav", "rifx", "aiff", "aifc", "flac", "mp3"])
def test_a_tag_in_front_hides_nothing(tmp_path, kind):
    path = written(tmp_path, kind)
    whole = path.read_bytes()
    assert n_samples(path, ID3_FRONT + ID3_FRONT + whole) == N
    with pytest.raises(UserError, match=r"ends|damaged"):
        n_samples(path, ID3_FRONT + whole[:-100])


@pytest.mark.parametrize("cut", [1, 2, 27, 1000, 0.3, 0.5, 0.9, 0.99, "head"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_one_line_with_its_name(tmp_path, kind, cut):
    path = written(tmp_path, kind)
    whole = path.read_bytes()
    if isinstance(cut, float):
        cut = round(cut * len(whole))
    elif cut == "head":
        cut = len(whole) - 50
    with pytest.raises(UserError) as error:
        n_samples(path, whole[:-cut])
    check_one_line(error, path)


@pytest.mark.parametrize("kind", ["vorbis", "opus"])
def test_a_stream_without_its_last_pages_has_no_end(tmp_path, kind):
    """Cut between two pages: every page there is whole, but the last does not say that it is."""
    path = written(tmp_path, kind, n_frames=200000)
    whole = path.read_bytes()
    pages = [i for i in range(len(whole)) if whole.startswith(b"OggS\x00", i)]
    assert len(pages) > 4
    for begin in pages[3:]:
        for behind in (b"", ID3_END, whole[begin : begin + 3]):
            with pytest.raises(UserError, match="ends before its stream does"):
                n_samples(path, whole[:begin] + behind)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFEFFA, 0x7F000008])
@pytest.mark.parametrize("kind", ["wav", "rifx", "aiff"])
def test_a_size_that_a_pipe_could_not_know_is_no_size(tmp_path, kind, size):
    """What streaming writers put for it: the largest numbers, and sox's, whole frames of it."""
    path = written(tmp_path, kind)
    content = bytearray(path.read_bytes())
    begin = samples_begin(content)
    content[begin : begin + 4] = size.to_bytes(4, "little" if kind == "wav" else "big")
    assert n_samples(path, content) == N


@pytest.mark.parametrize("kind", ["wav", "rifx", "aiff", "rf64"])
def test_three_gigabytes_are_a_size(tmp_path, kind):
    """Four hours of 24 bits and two channels; half of them in a file with a hole."""
    path = written(tmp_path, kind)
    content = bytearray(path.read_bytes())
    begin = samples_begin(content)
    order = "little" if kind in ("wav", "rf64") else "big"
    size = 3_000_000_000
    if kind == "rf64":
        ds64 = content.index(b"ds64") + 8
        content[ds64 + 8 : ds64 + 16] = size.to_bytes(8, order)
        assert content[begin : begin + 4] == b"\xff" * 4
    else:
        content[begin : begin + 4] = size.to_bytes(4, order)
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(UserError, match="ends before its header says"):
        files.Recording(path)
    with path.open("r+b") as file:
        file.truncate(begin + 12 + size)
    with path.open("rb", buffering=0) as file:
        assert not containers.fault(file)


class Counted(io.FileIO):
    """A file that knows how many bytes of it were read."""

    n_read = 0

    def read(self, size=-1):
        content = super().read(size)
        self.n_read += len(content)
        return content


@pytest.mark.parametrize("kind", ["wav", "rf64", "aiff", "vorbis", "zeros"])
def test_only_heads_and_tails_are_read(tmp_path, kind):
    """However long the file, and where a header is followed by nothing but zeros."""
    path = tmp_path / "x.wav"
    if kind == "zeros":
        path.write_bytes(b"RIFF\xff\xff\xff\x00WAVE")
    else:
        path = written(tmp_path, kind)
    with path.open("r+b") as file:
        file.truncate(10**9)
    with Counted(path) as file:
        containers.fault(file)
        assert file.n_read < 500_000


def test_a_flac_that_came_through_a_pipe_says_what_to_do(tmp_path):
    path = written(tmp_path, "flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the number of samples, 36 bits, is 0: unknown
    content[22:26] = bytes(4)
    with pytest.raises(UserError, match="without its length; convert it"):
        n_samples(path, content)


@pytest.mark.parametrize("kind", ["AU", "W64", "SVX", "VOC", "NIST"])
def test_containers_of_other_systems_tell_too(tmp_path, kind):
    """Under the name of a WAV file, as TIMIT and WSJ0 come."""
    path = tmp_path / "x.wav"
    soundfile.write(path, 0.1 * np.ones(4000), 16000, format=kind, subtype="PCM_16")
    content = path.read_bytes()
    assert files.load(path)[0].shape == (1, 4000)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"x\.wav: ends before its header says"):
        files.load(path)
