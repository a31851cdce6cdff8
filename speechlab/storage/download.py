"""Resumable downloads with a verified digest.

A download goes to `<target>.part` and is renamed once its digest is correct. An interrupted one
resumes. A digest is written "kind:hex"; see KINDS. Only http and https are used, after a redirect
too. A server that sends malformed headers or more bytes than it declared is refused.
"""

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechlab.errors import UserError, reason, shown
from speechlab.progress import Report
from speechlab.storage.atomic import replacing, unfinished

TIMEOUT_S = 30.0  # for the connection and for each read
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0)  # waits between attempts without progress
CHUNK_BYTES = 1 << 18
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}  # worth another attempt
HEADERS = ("Content-Length", "Content-Range", "Transfer-Encoding")
SCHEMES = ("http", "https")
UNDECLARED_BYTES = 1 << 34  # at most, of a file whose size neither the caller nor the server says
KINDS = {"sha256": "SHA-256", "md5": "MD5", "git": "git blob id"}  # digests: kind and name


class _Interrupted(Exception):
    """The connection failed; received bytes stay, and another attempt adds the rest."""


class _Refused(Exception):
    """This address does not work; another one may."""


@dataclass(frozen=True)
class _Request:
    """The arguments of one call of `fetch`, without the addresses."""

    part: Path
    digest: str
    n_bytes: int | None
    what: str
    elsewhere: str
    progress: bool
    waits: Sequence[float]


def fetch(
    urls: str | Sequence[str],
    target: Path,
    digest: str = "",
    *,
    n_bytes: int | None = None,
    what: str = "",
    advice: str = "",
    elsewhere: str = "choose another folder",
    progress: bool = True,
    waits: Sequence[float] | None = None,
) -> Path:
    """Download `target` from the first mirror that has it. UserError; wrong content is never kept.

    digest: "kind:hex". Without one the first download is trusted; `<target>.sha256` keeps its
        SHA-256 for the next one.
    n_bytes: size, if known; the free space is checked first.
    what: name in messages. advice: added to a final error. elsewhere: how to use another disk.
    waits: seconds between attempts without progress; default: BACK_OFF_S.
    """
    urls = (urls,) if isinstance(urls, str) else tuple(urls)
    digest = digest or _noted(target)
    part, what = unfinished(target), what or target.name
    waits = BACK_OFF_S if waits is None else waits
    request = _Request(part, digest, n_bytes, what, elsewhere, progress, waits)
    try:
        if target.exists():
            if digest and not _matches(target, digest):
                raise UserError(
                    f"{target} is not {what} ({_kind(digest)} differs): delete or replace it"
                )
            return target
        check_space(target.parent, (n_bytes or 0) - _size(part), str(target), elsewhere)
        target.parent.mkdir(parents=True, exist_ok=True)
        _complete(urls, request, advice)
        if not digest:
            with replacing(_note(target)) as note:
                note.write_text(f"{content_id(part, 'sha256')}  {target.name}\n")
        os.replace(part, target)
    except OSError as error:
        raise UserError(
            "; ".join(filter(None, (f"{part} cannot be written: {reason(error)}", advice)))
        ) from error
    return target


def forget(target: Path) -> None:
    """Remove a download that turned out to be unusable, and its noted digest."""
    for path in (target, _note(target)):
        path.unlink(missing_ok=True)


def check_space(
    folder: Path, n_bytes: float, what: str, elsewhere: str = "choose another folder"
) -> None:
    """UserError if the disk of `folder` (which may not exist yet) has less than `n_bytes` free."""
    here = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(here).free
    if n_bytes > free:
        raise UserError(
            f"{what} needs {n_bytes / 1e9:.1f} GB, and the disk of {folder} has "
            f"{free / 1e9:.1f} GB free; free some space or {elsewhere}"
        )


def content_id(path: Path, kind: str) -> str:
    """Digest of a file, in hex; "git": the id that `git hash-object FILE` prints."""
    if kind not in KINDS:
        raise ValueError(f"no digest '{kind}'; there are {', '.join(KINDS)}")
    digest = hashlib.new("sha1" if kind == "git" else kind, usedforsecurity=False)
    if kind == "git":
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: digest).hexdigest()


def _matches(path: Path, digest: str) -> bool:
    kind, _, value = digest.partition(":")
    return content_id(path, kind) == value.lower()


def _kind(digest: str) -> str:
    return KINDS[digest.partition(":")[0]]


def _note(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _noted(target: Path) -> str:
    """The digest noted by an earlier download without a given one, or an empty string."""
    try:
        found = re.match(r"[0-9a-f]{64}(?= )", _note(target).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    return f"sha256:{found[0]}" if found else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _complete(urls: Sequence[str], request: _Request, advice: str) -> None:
    """Complete `part`. UserError with the answer of each address."""
    part, reasons = request.part, []
    for url in urls:
        if not request.digest:
            part.unlink(missing_ok=True)  # without a digest, two halves may not fit together
        leftover = part.exists()
        try:
            _download(url, request)
            fault = _fault(request)
            if fault and leftover:
                part.unlink()  # the old half may be wrong: start again
                _download(url, request)
                fault = _fault(request)
            if not fault:
                return
            part.unlink()
            reasons.append(f"{url} sent {fault}: refused")
        except _Refused as error:
            reasons.append(f"{url} cannot be fetched: {error}")
    raise UserError("; ".join(filter(None, (*reasons, advice))))


def _fault(request: _Request) -> str:
    """What is wrong with the content, or an empty string. A known digest decides."""
    if request.digest:
        if _matches(request.part, request.digest):
            return ""
        return f"other content than {request.what} ({_kind(request.digest)} differs)"
    n_bytes = _size(request.part)
    return "" if request.n_bytes in (None, n_bytes) else f"{n_bytes} bytes, not {request.n_bytes}"


def _download(url: str, request: _Request) -> None:
    """Complete `part` in attempts that each ask for the rest, as long as they make progress."""
    furthest, waits = _size(request.part), iter(request.waits)
    while True:
        try:
            return _receive(url, request)
        except _Interrupted as error:
            if _size(request.part) > furthest:
                furthest, waits = _size(request.part), iter(request.waits)
            wait = next(waits, None)
            if wait is None:
                raise _Refused(str(error)) from error
            time.sleep(wait)


def _receive(url: str, request: _Request) -> None:
    start = _size(request.part)
    _check_scheme(url)
    try:
        asked = urllib.request.Request(url, headers={"User-Agent": "speechlab"})
        if start:
            asked.add_header("Range", f"bytes={start}-")
        with _opener().open(asked, timeout=TIMEOUT_S) as response:
            _append(response, start, request)
    except (http.client.InvalidURL, ValueError) as error:
        raise _Refused(f"it is no valid address ({error})") from error
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return  # complete; the digest decides
        reason = f"HTTP {error.code} {error.reason}"
        kind = _Interrupted if error.code in PASSING_STATUS else _Refused
        raise kind(reason) from error
    except urllib.error.URLError as error:
        raise _Interrupted(f"no connection ({error.reason})") from error
    except (http.client.HTTPException, OSError) as error:
        # OSError of the socket: errors of the disk are UserErrors already.
        raise _Interrupted(f"the connection broke off ({error or type(error).__name__})") from error


def _check_scheme(url: str) -> None:
    """_Refused for another protocol than http and https, as file: or ftp:."""
    if url.partition(":")[0].lower() not in SCHEMES:
        raise _Refused("only http and https are used")


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request: Any, *answer: Any) -> Any:
        _check_scheme(answer[-1])
        return super().redirect_request(request, *answer)


def _opener() -> urllib.request.OpenerDirector:
    """As `urlopen`, but for http and https alone."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener


def _append(response: http.client.HTTPResponse, start: int, request: _Request) -> None:
    """Append a response to the `start` bytes of `part`; a complete response replaces them.

    _Refused, and nothing is left, for more bytes than the server or the caller declared.
    """
    first, end, total = _extent(response)
    if first not in (0, start):
        raise _Interrupted(f"the server sent bytes from {first} on, not from {start}")
    part, known = request.part, None if request.digest else request.n_bytes
    if None not in (total, known) and total != known:
        raise _Refused(f"it has {total} bytes, not {known}")
    end = end or request.n_bytes or UNDECLARED_BYTES
    if total is not None:
        _check_space(total - first, request)
    label = part.name.removesuffix(".part")
    with _on_disk(request):
        stream = part.open("ab" if first else "wb", buffering=0)
    with stream, Report(label, total, "B", first, request.progress) as report:
        while chunk := response.read1(CHUNK_BYTES):
            if stream.tell() + len(chunk) > end:
                part.unlink()
                raise _Refused(f"it sent more than {end} bytes")
            with _on_disk(request):
                view = memoryview(chunk)
                while view:  # an unbuffered write may be partial
                    view = view[stream.write(view) :]
            report.update(len(chunk))
        if total is not None and part.stat().st_size < total:
            raise _Interrupted(f"it ended after {part.stat().st_size} of {total} bytes")


def _check_space(n_bytes: int, request: _Request) -> None:
    """As `check_space`, but another mirror may declare fewer bytes."""
    try:
        check_space(request.part.parent, n_bytes, str(request.part), request.elsewhere)
    except UserError as error:
        raise _Refused(str(error)) from error


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None, int | None]:
    """(offset of the first byte, end of the part, size of the file); None if not stated."""
    if response.status not in (200, 206):
        raise _Refused(f"HTTP {response.status} is no file")
    headers = {key: response.headers.get_all(key, []) for key in HEADERS}
    length, span, encoding = (", ".join(sorted(set(headers[key]))) for key in HEADERS)
    if (length and not re.fullmatch(r"\d{1,20}", length)) or (length and encoding):
        raise _Refused(f"malformed answer (Content-Length {shown(length, 50)!r})")
    n_bytes = int(length) if length else None
    if response.status == 200:
        return 0, n_bytes, n_bytes
    found = re.fullmatch(r"bytes (\d{1,20})-(\d{1,20})/(\d{1,20}|\*)", span)
    first, last = (int(found[i]) for i in (1, 2)) if found else (0, -1)
    total = None if not found or found[3] == "*" else int(found[3])
    is_whole = first <= last and (total is None or last < total)
    if not is_whole or n_bytes not in (None, last + 1 - first):
        raise _Refused(f"malformed answer (Content-Range {shown(span, 50)!r})")
    return first, last + 1, total


@contextlib.contextmanager
def _on_disk(request: _Request) -> Iterator[None]:
    """An error of the disk becomes a UserError, unlike one of the connection."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{request.part} cannot be written: {reason(error)}; "
            f"free some space or {request.elsewhere}"
        ) from error
