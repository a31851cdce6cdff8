"""Detect truncated sound files, from the length that their container states.

libsndfile reads a truncated WAV, AIFF, CAF or Ogg file as a shorter one. Headers of WAV (RIFF, RIFX
in big-endian order, RF64 above 4 GiB; EBU Tech 3306), AIFF, CAF and NIST SPHERE state the size of
the samples, and an Ogg stream marks its last page (RFC 3533). FLAC and MP3 fail when they are read.
For some others libsndfile notes the truncation. Only the beginning and the end of a file are read
here.
"""

import itertools
import math
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

import soundfile

from speechlab.audio import ogg

# First bytes of a file of chunks -> byte order, name of the chunk with the samples.
CHUNKED = {
    b"RIFF": ("little", b"data"),
    b"RF64": ("little", b"data"),
    b"RIFX": ("big", b"data"),
    b"FORM": ("big", b"SSND"),
}
KINDS = (b"WAVE", b"AIFF", b"AIFC")
N_CHUNKS = 1000  # read before the samples; a header with more is invalid
IN_DS64 = 0xFFFFFFFF  # in RF64: the size is in the chunk ds64
# Sizes for an unknown length, as into a pipe: these, or the complete frames in them.
UNKNOWN = (0x7F000000, 0x7FFFF000, 0x80000000, 0xFFFFFFFF)
WHOLE_FRAMES = 2**12  # bytes by which these may differ
# libsndfile's names of the containers whose truncation is detected; others are not read.
READABLE = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "SVX", "VOC", "OGG", "FLAC")
READABLE += ("MP3",)
NOTED = ("AU", "W64", "SVX", "VOC")  # for these libsndfile notes a truncation
CUT = "ends before its header says; copy the file again, or convert it as it is"


def fault(file: BinaryIO) -> str:
    """The truncation of a file and the fix; empty for a complete file, or where it is unknown.

    file: at its beginning, unbuffered; its position changes.
    """
    head = _after_tags(file)
    if head[:4] in CHUNKED and head[8:] in KINDS and _lacks_samples(file, head[:4]):
        return CUT
    if head[:4] == b"caff" and _lacks_caf_samples(file):
        return CUT
    if head[:8] == b"NIST_1A\n" and _lacks_nist_samples(file):
        return CUT
    if head[:4] == ogg.PAGE and ogg.lacks_pages(file):
        return "ends before its stream does; copy the file again, or convert it as it is"
    return ""


def is_noted_short(sound: soundfile.SoundFile | ogg.Chain) -> bool:
    """Whether libsndfile noted that an open file of `NOTED` ends before its header says."""
    return sound.format in NOTED and bool(re.search(r"should be \d|truncated", sound.extra_info))


def _lacks_caf_samples(file: BinaryIO) -> bool:
    """CAF: after 8 bytes, chunks with a size in 8 bytes; libsndfile refuses -1, an unknown size."""
    file.seek(8)
    for name, size in itertools.islice(_chunks(file, "big", 8, even=False), N_CHUNKS):
        if name == b"data":
            return size < 2**63 and file.tell() + size > os.fstat(file.fileno()).st_size
    return False


def _lacks_nist_samples(file: BinaryIO) -> bool:
    """NIST SPHERE: a text header of 1024 bytes states the size of the samples."""
    file.seek(0)
    header = file.read(1024).decode("ascii", "replace")
    found = dict(re.findall(r"^(\w+) -(?:i|s\d+) (\d+)\s", header, re.M))
    length = re.match(r"NIST_1A\n\s*(\d+)", header)
    keys = ("sample_count", "channel_count", "sample_n_bytes")
    if length is None or not all(key in found for key in keys) or "-shorten" in header:
        return False
    n_bytes = math.prod(int(found[key]) for key in keys)
    return int(length[1]) + n_bytes > os.fstat(file.fileno()).st_size


def _after_tags(file: BinaryIO) -> bytes:
    """The first 12 bytes behind any ID3v2 tags, whose size is in 4 bytes of 7 bits."""
    while (head := file.read(12))[:3] == b"ID3" and len(head) > 9:
        size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(size - 2, os.SEEK_CUR)
    return head


def _lacks_samples(file: BinaryIO, kind: bytes) -> bool:
    """Whether a file of chunks, behind its first 12 bytes, ends within its samples."""
    byteorder, samples = CHUNKED[kind]
    n_bytes = os.fstat(file.fileno()).st_size
    wide = 0  # 64 bits
    for name, size in itertools.islice(_chunks(file, byteorder), N_CHUNKS):
        if name == b"ds64":
            wide = int.from_bytes(file.read(16)[8:], byteorder)  # of RIFF, of the samples
        elif name == samples:
            if kind == b"RF64" and size == IN_DS64:
                size = wide
            elif any(abs(size - unknown) <= WHOLE_FRAMES for unknown in UNKNOWN):
                return False
            return file.tell() + size > n_bytes
    return False


def _chunks(
    file: BinaryIO, byteorder: str, size_bytes: int = 4, even: bool = True
) -> Iterator[tuple[bytes, int]]:
    """Name and size of each chunk, with the file at its content; ends at the end of the file.

    even: chunks begin at even positions.
    """
    n_bytes = os.fstat(file.fileno()).st_size
    while len(head := file.read(4 + size_bytes)) == 4 + size_bytes:
        size, begin = int.from_bytes(head[4:], byteorder), file.tell()
        yield head[:4], size
        if begin + size > n_bytes:
            return
        file.seek(begin + size + (size % 2 if even else 0))
