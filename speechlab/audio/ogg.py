"""Ogg files: detect a missing last page, and read chained streams as one signal.

An Ogg file is pages (RFC 3533): "OggS", version, flags, position (8 bytes), the stream's number
(4), the page's (4), a checksum (4), the number of segments, one byte with the length of each, and
the segments. Radio and joined files are chains of streams; libsndfile reads only the first one.
"""

import io
import os
import zlib
from typing import BinaryIO, Self

import numpy as np
import soundfile

PAGE = b"OggS"
HEAD = 27  # bytes before the lengths of the segments
FIRST, LAST = 2, 4  # flags of a stream's first and last page
LINKS = 10_000  # most streams of a chain
TAIL = 2**18  # bytes that contain the last page: two of the largest size, and tags after it
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # bits in reverse order


def lacks_pages(file: BinaryIO) -> bool:
    """Whether the last complete page is not the last of its stream, or another page has begun."""
    page, behind = _last_page(file)
    return not (page and page[5] & LAST) or bool(behind and PAGE.startswith(behind[:4]))


def _last_page(file: BinaryIO) -> tuple[bytes, bytes]:
    """The last complete page and the bytes after it; both empty where there is none."""
    file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
    tail = file.read(TAIL)
    begin = len(tail)
    while (begin := tail.rfind(PAGE, 0, begin)) >= 0:
        if end := _page_end(tail, begin):
            return tail[begin:end], tail[end:]
    return b"", b""


def _page_end(content: bytes, begin: int) -> int:
    """End of the page at `begin`; 0 for an incomplete page (by its checksum) and for other data."""
    n_segments = content[begin + 26] if begin + 26 < len(content) else 0
    end = begin + HEAD + n_segments
    end += sum(content[begin + HEAD : end])
    page = content[begin:end]
    if len(page) < max(HEAD, end - begin):
        return 0
    page = page[:22] + bytes(4) + page[26:]  # the checksum counts as 0 in itself
    return end if checksum(page) == content[begin + 22 : begin + 26] else 0


def checksum(page: bytes) -> bytes:
    """As stored: zlib's with all bits in reverse order, initial value 0, not inverted."""
    crc = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(REVERSED)


def links(file: BinaryIO) -> list[tuple[int, int]]:
    """Begin and end of each stream of a chain; empty for a single stream.

    The heads of all pages are read: a chain may begin and end with the same stream. Multiplexed
    streams begin together: they are one link. ValueError for a gap between pages, and for more than
    LINKS streams.
    """
    file.seek(0)
    head, (_, behind) = file.read(HEAD), _last_page(file)
    if head[:4] != PAGE:
        return []
    begins, at, was_first = [], 0, False
    file.seek(0)
    while len(head := file.read(HEAD)) == HEAD and head[:4] == PAGE:
        first = bool(head[5] & FIRST)
        if first and not was_first:
            begins.append(at)
            if len(begins) > LINKS:
                raise ValueError(f"more than {LINKS} streams")
        was_first = first
        at += HEAD + head[26] + sum(file.read(head[26]))
        file.seek(at)
    if at < os.fstat(file.fileno()).st_size - len(behind):
        raise ValueError(f"no page at byte {at}")
    return list(zip(begins, [*begins[1:], at], strict=True)) if len(begins) > 1 else []


class Chain:
    """Chained streams, with the interface of one `soundfile.SoundFile`."""

    format = "OGG"

    def __init__(self, file: BinaryIO, streams: list[tuple[int, int]]) -> None:
        """streams: `links` of the file. ValueError if they differ in rate, channels or codec."""
        self._parts = [_Part(file, begin, end) for begin, end in streams]
        kinds = []
        self.frames = 0
        for part in self._parts:
            with soundfile.SoundFile(part) as sound:
                kinds.append((sound.samplerate, sound.channels, sound.subtype))
                self.frames += sound.frames
        if len(set(kinds)) > 1:
            raise ValueError("its streams differ in rate, channels or codec")
        self.samplerate, self.channels, self.subtype = kinds[0]
        self._waiting = iter(self._parts)
        self._sound: soundfile.SoundFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._sound is not None:
            self._sound.close()

    def read(self, frames: int, dtype: str, always_2d: bool) -> np.ndarray:
        """The next frames, (n, C) with n <= frames; n = 0 only at the end of the last stream."""
        while True:
            if self._sound is not None:
                block = self._sound.read(frames, dtype=dtype, always_2d=always_2d)
                if len(block):
                    return block
            if (part := next(self._waiting, None)) is None:
                return np.zeros((0, self.channels), dtype)
            self.__exit__()
            part.seek(0)
            self._sound = soundfile.SoundFile(part)


class _Part(io.RawIOBase):
    """A range of a file as a file."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, end - begin, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: bytearray) -> int:
        self._file.seek(self._begin + self._at)
        n_bytes = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)])
        self._at += n_bytes
        return n_bytes
