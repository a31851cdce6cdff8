"""Mutated archives: each is unpacked, or is refused in one line and leaves nothing."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from random import Random

from speechlab.storage.archive import unpack
from tests.fuzz.mutate import any_bytes, any_number, survey

FILES = {"top/a.wav": bytes(range(256)) * 20, "top/deep/é.wav": b"b" * 3000, "top/empty": b""}
FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155))
ZIP_FIELDS = (4, 6, 8, 10, 12, 16, 20, 24, 28, 30, 32, 36, 38, 42)  # of a central header
LOCAL_FIELDS = (4, 6, 8, 10, 14, 18, 22, 26, 28)


def tried(random: Random, folder: Path) -> str:
    """A mutated archive of a random kind, unpacked."""
    name = random.choice([*KINDS])
    path, out = folder / name.partition(" ")[2], folder / "out"
    path.write_bytes(KINDS[name](random))
    try:
        unpack(path, out, progress=False)
    finally:
        assert {at.name for at in folder.iterdir()} <= {path.name, "out"}
    known = all(
        file.read_bytes() == FILES.get(file.relative_to(out).as_posix())
        for file in out.rglob("*")
        if file.is_file()
    )
    path.unlink()
    return f"opened: {name.partition(' ')[0]}, {'known' if known else 'other'} content"


def test_archives(tmp_path):
    outcomes = survey(tried, tmp_path, short=120, full=500)
    opened = sum(n for outcome, n in outcomes.items() if outcome.startswith("opened"))
    assert opened > outcomes.total() / 20


@cache
def a_zip(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return file.getvalue()


@cache
def a_tar(layout: int) -> bytes:
    """With a long name, so that each layout has its extra headers."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=layout) as archive:
        for name, content in {**FILES, "long/" * 24 + "c": b"c"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def any_tar(random: Random) -> bytes:
    return a_tar(random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)))


def changed_headers(random: Random) -> bytes:
    """A tar archive with a changed field in a header, whose checksum is right again."""
    content = bytearray(any_tar(random))
    places = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"]
    at = random.choice(places)
    begin, size = random.choice(FIELDS)
    content[at + begin : at + begin + size] = random.choice(
        (
            lambda old: any_bytes(old, random),
            lambda old: b"%o\0" % abs(int(any_number(random))),
            lambda old: bytes([random.choice(b"01234567xgLKSVDM\0")]),
            lambda old: b"../evil",
        )
    )(bytes(content[at + begin : at + begin + size]))[:size].ljust(size, b"\0")
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    return bytes(content)


def changed_records(random: Random) -> bytes:
    """A tar archive with odd pax records."""
    keys = ("size", "path", "linkpath", "mtime", "comment", "hdrcharset", "GNU.sparse.map")
    keys += ("GNU.sparse.size", "GNU.sparse.major", "GNU.sparse.realsize", "GNU.sparse.name")
    values = ("-1", "abc", "9" * 30, "1e9", "../x", "a" * 300, "é\udcff", "BINARY", "0,1", "")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("top/empty")
        member.pax_headers = {random.choice(keys): random.choice(values) for _ in range(2)}
        archive.addfile(member)
    return file.getvalue() if random.random() < 0.7 else any_bytes(file.getvalue(), random)


def changed_directory(random: Random) -> bytes:
    """A zip with a changed field in a central or local header."""
    content = bytearray(a_zip(random.choice(METHODS)))
    mark, fields = random.choice(((b"PK\1\2", ZIP_FIELDS), (b"PK\3\4", LOCAL_FIELDS)))
    places = [i for i in range(len(content)) if content[i : i + 4] == mark]
    at, size = random.choice(places) + random.choice(fields), random.choice((2, 4))
    value = int(any_number(random)) if random.random() < 0.6 else random.randrange(100)
    content[at : at + size] = (value % 256**size).to_bytes(size, "little")
    return bytes(content)


METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
PACKERS = (gzip.compress, bz2.compress, lzma.compress)
KINDS = {
    "zip-bytes a.zip": lambda random: any_bytes(a_zip(random.choice(METHODS)), random),
    "zip-fields a.zip": changed_directory,
    "tar-bytes a.tar": lambda random: any_bytes(any_tar(random), random),
    "tar-fields a.tar": changed_headers,
    "tar-records a.tar": changed_records,
    "packed-fields a.tgz": lambda random: random.choice(PACKERS)(changed_headers(random)),
    "packed-bytes a.tar.gz": lambda random: any_bytes(
        random.choice(PACKERS)(any_tar(random)), random
    ),
}
