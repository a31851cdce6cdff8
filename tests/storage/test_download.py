"""A download is the bytes that were named or an error."""

import hashlib
from pathlib import Path

import pytest

from speechlab.errors import UserError
from speechlab.storage import download
from tests.storage.test_atomic import names
from tests.support.bad_server import CONTENT, serving

SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
GIT = "git:" + hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "BACK_OFF_S", (0.0, 0.0))
    monkeypatch.setattr(download, "TIMEOUT_S", 5.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        yield server


def fetch(server, target: Path, digest: str = SHA256, mirrors: str = "x", **options) -> Path:
    urls = [f"{server.address}/{mirror}/{target.name}" for mirror in mirrors]
    return download.fetch(urls, target, digest, progress=False, **options)


@pytest.mark.parametrize("digest", [SHA256, MD5, GIT])
def test_a_file_is_fetched_once_and_verified(server, tmp_path, digest):
    target = tmp_path / "deep" / "a.zip"
    for _ in range(2):
        assert fetch(server, target, digest) == target
        assert target.read_bytes() == CONTENT
    assert len(server.paths) == 1
    assert names(target.parent) == ["a.zip"]


def test_a_line_that_breaks_often_gets_the_file_through_while_it_moves(server, tmp_path):
    server.behaviour = ("cut",) * 8 + ("plain",)  # more breaks than BACK_OFF_S has waits
    assert fetch(server, tmp_path / "a.zip").read_bytes() == CONTENT
    assert len(server.ranges) == 9


def test_a_server_that_never_gets_further_is_given_up(server, tmp_path):
    server.behaviour = ("whole_and_cut",)
    with pytest.raises(UserError, match=r"a\.zip cannot be fetched: it ended after 512000 of 1024"):
        fetch(server, tmp_path / "a.zip")
    assert len(server.ranges) <= 4


def test_a_broken_off_file_is_never_read_as_whole(server, tmp_path):
    server.behaviour = ("cut", "busy")
    with pytest.raises(UserError, match="HTTP 503"):
        fetch(server, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
    server.behaviour = ("plain",)
    assert fetch(server, tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={len(CONTENT) // 3}-"


def test_mirrors_are_tried_in_order(server, tmp_path):
    server.behaviour = ("missing", "busy", "busy", "busy", "cut", "plain")
    assert fetch(server, tmp_path / "a.zip", mirrors="xyz").read_bytes() == CONTENT
    assert [path[1] for path in server.paths] == ["x", "y", "y", "y", "z", "z"]


def test_a_mirror_goes_on_where_another_stopped(server, tmp_path):
    server.behaviour = ("cut", "missing", "plain")
    assert fetch(server, tmp_path / "a.zip", mirrors="xy").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={len(CONTENT) // 3}-", f"bytes={len(CONTENT) // 3}-"]


def test_a_mirror_that_lies_is_passed_over(server, tmp_path):
    server.behaviour = ("lie", "plain")
    assert fetch(server, tmp_path / "a.zip", mirrors="xy").read_bytes() == CONTENT


def test_all_mirrors_are_named_where_none_helps(server, tmp_path):
    server.behaviour = ("missing", "lie")
    with pytest.raises(UserError, match=r"x/a.zip .*HTTP 404.*y/a.zip .*SHA-256") as caught:
        fetch(server, tmp_path / "a.zip", mirrors="xy", advice="ask a friend")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("ask a friend")
    assert names(tmp_path) == []


def test_a_wrong_hash_is_refused_named_and_leaves_nothing(server, tmp_path):
    server.behaviour = ("lie",)
    with pytest.raises(UserError, match=r"a\.zip sent other content than.*SHA-256.*refused"):
        fetch(server, tmp_path / "a.zip")
    assert names(tmp_path) == []


def test_a_file_that_is_there_and_wrong_is_neither_used_nor_lost(server, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"a\.zip is not .*\(MD5 differs\): delete or replace it"):
        fetch(server, tmp_path / "a.zip", MD5)
    assert (tmp_path / "a.zip").read_bytes() == b"mine"
    assert server.ranges == []


def test_without_a_known_hash_the_first_download_is_remembered(server, tmp_path):
    server.files["b.zip"] = b"first"
    target = tmp_path / "b.zip"
    fetch(server, target, "")
    note = (tmp_path / "b.zip.sha256").read_text()
    assert note == f"{hashlib.sha256(b'first').hexdigest()}  b.zip\n"  # as sha256sum -c reads
    target.unlink()
    server.files["b.zip"] = b"other"
    with pytest.raises(UserError, match="SHA-256"):
        fetch(server, target, "")
    target.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"is not b\.zip"):
        fetch(server, target, "")


def test_without_a_known_hash_no_half_of_another_time_is_used(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(b"x" * 1000)
    assert fetch(server, tmp_path / "a.zip", "").read_bytes() == CONTENT
    assert server.ranges == [None]


def test_the_disk_is_measured_before_the_start(server, tmp_path):
    with pytest.raises(UserError, match=r"a\.zip needs 5000000\.0 GB.* has \d+\.\d GB free"):
        fetch(server, tmp_path / "a.zip", n_bytes=5 * 10**15)
    assert server.ranges == []
    server.behaviour = ("endless",)
    with pytest.raises(UserError, match=r"needs 1000000000\.0 GB"):
        fetch(server, tmp_path / "a.zip")
    assert names(tmp_path) == []


def test_another_size_than_the_known_one_is_refused(server, tmp_path):
    with pytest.raises(UserError, match=r"1024000 bytes, not 1000"):
        fetch(server, tmp_path / "a.zip", "", n_bytes=1000)
    assert names(tmp_path) == []
    fetch(server, tmp_path / "a.zip", n_bytes=1000)  # a digest says more than a size


def test_an_unknown_kind_of_digest_is_a_mistake_of_the_caller(server, tmp_path):
    with pytest.raises(ValueError, match="crc"):
        fetch(server, tmp_path / "a.zip", "crc:1234")


MALFORMED = ("no_length", "negative_length", "two_lengths", "long_length", "length_and_chunks")
MALFORMED += ("no_range", "odd_range", "backward_range", "other_range")


@pytest.mark.parametrize("behaviour", MALFORMED)
def test_malformed_headers_are_refused_and_the_next_mirror_is_asked(server, tmp_path, behaviour):
    server.behaviour = (behaviour, "plain")
    assert fetch(server, tmp_path / "a.zip", mirrors="xy").read_bytes() == CONTENT
    assert len(server.paths) == 2
    server.behaviour = (behaviour,)
    with pytest.raises(UserError, match=r"x/b.zip cannot be fetched: malformed answer") as error:
        fetch(server, tmp_path / "b.zip")
    assert len(str(error.value)) < 300 and names(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("behaviour", ["odd_chunks", "negative_chunks", "no_content", "endless"])
def test_a_nonsensical_answer_ends_in_the_next_mirror(server, tmp_path, behaviour):
    server.behaviour = (behaviour,) * (3 if "chunks" in behaviour else 1) + ("plain",)
    assert fetch(server, tmp_path / "a.zip", mirrors="xy").read_bytes() == CONTENT


@pytest.mark.parametrize("n_bytes", [None, 3_000_000])
def test_no_more_bytes_than_declared(server, tmp_path, monkeypatch, n_bytes):
    monkeypatch.setattr(download, "UNDECLARED_BYTES", 3_000_000)
    server.behaviour = ("more_than_all", "plain")
    assert fetch(server, tmp_path / "a.zip", mirrors="xy", n_bytes=n_bytes).read_bytes() == CONTENT
    server.behaviour = ("more_than_all",)
    with pytest.raises(UserError, match="it sent more than 3000000 bytes"):
        fetch(server, tmp_path / "b.zip", "", n_bytes=n_bytes)
    assert names(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("behaviour", ["to_file", "to_ftp", "to_nowhere", "to_itself"])
def test_a_redirect_stays_with_http(server, tmp_path, behaviour):
    server.behaviour = (behaviour,) * (12 if behaviour == "to_itself" else 1) + ("plain",)
    with pytest.raises(UserError, match=r"x/a.zip cannot be fetched: (HTTP 30|only|it is no)"):
        fetch(server, tmp_path / "a.zip")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/a", "a.zip", "", "http://[x"]
)
def test_only_addresses_of_http_are_fetched(tmp_path, url):
    with pytest.raises(UserError, match=r"cannot be fetched: (only http|it is no valid address)"):
        download.fetch(url, tmp_path / "a.zip", SHA256, progress=False)
    assert names(tmp_path) == []
