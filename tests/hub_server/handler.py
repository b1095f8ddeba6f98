"""Sockets: read a request, hand it to the server, write the reply or hang up."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.hub_server.protocol import Reply, Request

Answer = Callable[[Request], "Reply | None"]


class LoopbackServer(ThreadingHTTPServer):
    """A threaded server on 127.0.0.1 that closes its open connections when it closes itself.

    Args:
        port: Port, or 0 for one that is free.
        answer: Maps a request to its reply, or to None to drop the connection.
    """

    request_queue_size = 128  # a burst of racing clients must not be refused
    daemon_threads = True

    def __init__(self, port: int, answer: Answer) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answer = answer
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember a connection; clients keep theirs alive between requests."""
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that ends."""
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Close the port and every connection, so that clients see the server gone."""
        super().server_close()
        with self._open_lock:
            for connection in self._open:
                hang_up(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that leaves early is no accident here."""


class _Handler(BaseHTTPRequestHandler):
    """Turns one connection's requests into replies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # header and body leave together
    server: LoopbackServer

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        request = Request(self.command, url.path, query, self.headers, self._body())
        reply = self.server.answer(request)
        if reply is None:
            self.close_connection = True
            hang_up(self.connection)
        else:
            self._send(reply)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def _body(self) -> bytes:
        """The request's body, by length or by chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) // 2] if reply.cut else reply.body)
        if reply.cut:
            self.wfile.flush()
            self.close_connection = True
            hang_up(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: `HubServer.requests` keeps what tests look at."""


def hang_up(connection: socket.socket) -> None:
    """End a connection at once, whatever its state."""
    with contextlib.suppress(OSError):  # the other side may be faster
        connection.shutdown(socket.SHUT_RDWR)
