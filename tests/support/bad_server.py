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
        self.wfile.write(self.content)

    def missing(self):
        self.send_error(404)

    def busy(self):
        self.send_error(503)

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
