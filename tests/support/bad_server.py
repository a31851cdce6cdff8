"""A loopback server that cuts, stalls and lies: what a download has to come through."""

import contextlib
import http.server
import threading
from collections.abc import Iterator

CONTENT = bytes(range(256)) * 4000  # 1 MB


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` badly: `behaviour` names what each request meets, the last one repeated."""

    daemon_threads = True
    behaviour = ("plain",)

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}  # by the last part of the address; any other is CONTENT
        self.ranges: list[str | None] = []  # the Range header of every request
        self.paths: list[str] = []
        self.released = threading.Event()  # lets stalled requests go

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Keep the test output quiet."""

    @property
    def content(self) -> bytes:
        return self.server.files.get(self.path.rpartition("/")[2], CONTENT)

    def do_GET(self):
        server = self.server
        name = server.behaviour[min(len(server.ranges), len(server.behaviour) - 1)]
        server.ranges.append(self.headers.get("Range"))
        server.paths.append(self.path)
        self.close_connection = True
        getattr(self, name)()

    def start(self, content: bytes, first: int = 0, length: bool = True):
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if length:
            self.send_header("Content-Length", str(len(content) - first))
        self.send_header("Connection", "close")
        self.end_headers()

    def first_byte(self) -> int:
        return int(
            (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-")
        )

    def plain(self):
        first = self.first_byte()
        if first >= len(self.content):
            return self.send_error(416)
        self.start(self.content, first)
        self.wfile.write(self.content[first:])

    def cut(self):
        """A third of what is left, then the end of the connection."""
        first = self.first_byte()
        self.start(self.content, first)
        self.wfile.write(self.content[first : first + (len(self.content) - first) // 3])

    def whole(self):
        """As a server that does not know Range."""
        self.start(self.content)
        self.wfile.write(self.content)

    def whole_and_cut(self):
        """Not even that: half of it, always from the start."""
        self.start(self.content)
        self.wfile.write(self.content[: len(self.content) // 2])

    def nameless(self):
        """No length: only the end of the connection says that the file is complete."""
        self.start(self.content, length=False)
        self.wfile.write(self.content)

    def elsewhere(self):
        """A part, but not the one asked for."""
        self.start(self.content, first=7)
        self.wfile.write(self.content[7:])

    def stall(self):
        first = self.first_byte()
        self.start(self.content, first)
        self.wfile.write(self.content[first : first + 1000])
        self.wfile.flush()
        self.server.released.wait(20)

    def lie(self):
        self.start(self.content)
        self.wfile.write(self.content[:-1] + b"!")

    def endless(self):
        """Announces more than any disk holds."""
        self.send_response(200)
        self.send_header("Content-Length", str(10**18))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has ended
            self.wfile.write(self.content)

    def missing(self):
        self.send_error(404)

    def busy(self):
        self.send_error(503)

    def headed(self, *headers: tuple[str, object], status: int = 200, content: bytes = CONTENT):
        """These headers and no others, then the content."""
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, str(value))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may have ended
            self.wfile.write(content)

    def no_length(self):
        self.headed(("Content-Length", "abc"))

    def negative_length(self):
        self.headed(("Content-Length", "-5"))

    def two_lengths(self):
        self.headed(("Content-Length", 1000), ("Content-Length", len(CONTENT)))

    def long_length(self):
        self.headed(("Content-Length", "9" * 5000))

    def length_and_chunks(self):
        self.headed(("Content-Length", 5), ("Transfer-Encoding", "chunked"), content=b"0\r\n\r\n")

    def no_range(self):
        self.headed(("Content-Length", len(CONTENT)), status=206)

    def odd_range(self):
        self.headed(("Content-Range", "bytes 0--1/x"), status=206)

    def backward_range(self):
        self.headed(("Content-Range", "bytes 9-3/10"), status=206)

    def other_range(self):
        end = len(CONTENT) - 1
        self.headed(("Content-Range", f"bytes 0-{end}/{end}"), status=206)

    def no_content(self):
        self.headed(status=204)

    def odd_chunks(self):
        self.headed(("Transfer-Encoding", "chunked"), content=b"zz\r\nabc\r\n0\r\n\r\n")

    def negative_chunks(self):
        self.headed(("Transfer-Encoding", "chunked"), content=b"-5\r\nabc\r\n0\r\n\r\n")

    def more_than_all(self):
        """No end: bytes as long as the client takes them."""
        self.headed()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(CONTENT)

    def to_file(self):
        self.headed(("Location", "file:///etc/hostname"), status=302)

    def to_ftp(self):
        self.headed(("Location", "ftp://127.0.0.1/a.zip"), status=301)

    def to_nowhere(self):
        self.headed(("Location", "http://[::1"), status=307)

    def to_itself(self):
        self.headed(("Location", self.path), ("Content-Length", 0), status=302, content=b"")

    def silent(self):
        """The connection ends before any answer."""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server that runs until the end of the block."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
