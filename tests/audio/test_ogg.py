"""A chain of streams is read to its end, or told."""

import numpy as np
import pytest
import soundfile
import torch

from speechlab.audio import files, ogg
from speechlab.errors import UserError
from tests.support.sound_files import check_one_line

CODECS = {"VORBIS": "x.ogg", "OPUS": "x.opus"}
LENGTHS = (24000, 1000, 30011)


def written(path, codec, seed, n_frames, rate=24000):
    noise = 0.1 * np.random.default_rng(seed).standard_normal((n_frames, 2))
    soundfile.write(path, noise, rate, format="OGG", subtype=codec)
    return path.read_bytes()


def streams(folder, codec):
    paths = (folder / f"{i}{CODECS[codec]}" for i in range(len(LENGTHS)))
    return [written(path, codec, i, LENGTHS[i]) for i, path in enumerate(paths)]


def page(flags, number, content, position=0):
    """A page of one packet of up to 254 bytes."""
    head = b"OggS\x00" + bytes([flags]) + position.to_bytes(8, "little")
    head += number.to_bytes(4, "little") + bytes(8) + bytes([1, len(content)])
    whole = head + content
    return whole[:22] + ogg.checksum(whole) + whole[26:]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("order", [(0, 0), (0, 2, 0)])
def test_a_chain_may_begin_and_end_alike(tmp_path, codec, order):
    parts = streams(tmp_path, codec)
    path = tmp_path / CODECS[codec]
    path.write_bytes(b"".join(parts[i] for i in order))
    assert files.load(path)[0].shape[-1] == sum(LENGTHS[i] for i in order)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rate", [None, 16000])
def test_a_chain_is_its_streams(tmp_path, codec, rate):
    """In blocks that end anywhere, and in every pass."""
    parts = streams(tmp_path, codec)
    path = tmp_path / CODECS[codec]
    path.write_bytes(b"".join(parts) + b"TAG" + bytes(125))
    each = [files.load(tmp_path / f"{i}{CODECS[codec]}")[0] for i in range(len(parts))]
    whole = torch.cat(each, -1)
    assert whole.shape == (2, sum(LENGTHS))
    if rate:
        resampler = files.Resampler(24000, rate, 2)
        whole = torch.cat([resampler.feed(whole), resampler.flush()], -1)
    recording = files.Recording(path, rate, block_s=0.7)
    assert recording.length == whole.shape[-1]
    for _ in range(2):
        assert torch.allclose(torch.cat(list(recording), -1), whole, atol=1e-6)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("cut", [1, 100, "to the second page of the last stream"])
def test_a_cut_chain_is_told(tmp_path, codec, cut):
    whole = b"".join(streams(tmp_path, codec))
    if isinstance(cut, str):
        cut = len(whole) - whole.rindex(b"OggS\x00\x02") - 100
    path = tmp_path / CODECS[codec]
    path.write_bytes(whole[:-cut])
    with pytest.raises(UserError, match="ends before its stream does"):
        files.load(path)


@pytest.mark.parametrize("kind", ["of two rates", "with bytes between", "with a page lost"])
def test_a_chain_that_cannot_be_read_to_its_end_is_told(tmp_path, kind):
    path = tmp_path / "x.ogg"
    first = written(path, "VORBIS", 0, 24000)
    second = written(path, "VORBIS", 1, 24000, 16000 if kind == "of two rates" else 24000)
    between = {"with bytes between": bytes(10)}.get(kind, b"")
    if kind == "with a page lost":
        first = first[:-100]
    path.write_bytes(first + between + second)
    with pytest.raises(UserError, match="not readable as sound") as error:
        files.load(path)
    check_one_line(error, path)


def test_streams_side_by_side_are_no_chain(tmp_path):
    """A second stream of another kind, as of chapters or pictures, begins and ends with it."""
    path = tmp_path / "x.ogg"
    content = written(path, "VORBIS", 0, 24000)
    second = content.index(b"OggS", 4)
    other = page(ogg.FIRST, 7, b"fishead\x00" + bytes(56)), page(ogg.LAST, 7, b"")
    path.write_bytes(content[:second] + other[0] + content[second:] + other[1])
    with path.open("rb", buffering=0) as file:
        assert not ogg.lacks_pages(file)
        assert ogg.links(file) == []
