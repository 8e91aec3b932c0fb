"""A real HTTP server on the loopback address for download tests, with the faults servers have."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


@dataclass
class Reply:
    """What one path answers.

    `cut` closes the connection after that many bytes, once; `drops` closes so many connections
    without a word first; `delay_s` is slept before each 16 KiB;
    `unannounced` sends no Content-Length.
    """

    body: bytes
    ranges: bool = True
    status: int = 200
    content_type: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    drops: int = 0
    delay_s: float = 0.0
    unannounced: bool = False


class FileServer:
    """Serves `replies` by path (with query, else without) and keeps the `requests` it got."""

    def __init__(self, port: int = 0) -> None:
        self.replies: dict[str, Reply] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                reply = server.replies.get(self.path) or server.replies.get(self.path.split("?")[0])
                if reply is None:
                    self.send_error(404)
                elif reply.drops:
                    reply.drops -= 1
                    self.close_connection = True
                else:
                    _answer(self, reply)

            def log_message(self, format: str, *args: object) -> None:
                """Keep the test's output clean."""

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self.port = self._http.server_port
        self.address = f"http://127.0.0.1:{self.port}"

    def ranges(self) -> list[str]:
        """The Range headers of all requests, "" where there was none."""
        return [headers.get("range", "") for _, headers in self.requests]

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()


def _answer(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    start = 0
    wanted = handler.headers.get("Range", "")
    if reply.ranges and wanted and reply.status == 200:
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(reply.body):
            handler.send_error(416)
            return
        handler.send_response(206)
        last = len(reply.body) - 1
        handler.send_header("Content-Range", f"bytes {start}-{last}/{len(reply.body)}")
    else:
        handler.send_response(reply.status)
    handler.send_header("Content-Type", reply.content_type)
    for key, value in reply.headers.items():
        handler.send_header(key, value)
    if not reply.unannounced:
        handler.send_header("Content-Length", str(len(reply.body) - start))
    handler.end_headers()
    body = reply.body[start:]
    if reply.cut is not None:
        body, reply.cut = body[: reply.cut], None
    for at in range(0, len(body), 1 << 14):
        time.sleep(reply.delay_s)
        try:
            handler.wfile.write(body[at : at + (1 << 14)])
        except OSError:
            return  # the client has gone
