"""An HTTP proxy that answers for the server behind it, loses answers, cuts them off, or takes its time."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    """A request of a client: its number counts from 1."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    length: int


@dataclass(frozen=True)
class Fault:
    """What happens to a request instead of being forwarded, or to its answer."""

    status: int = 0
    """Answer with it, instead of the server."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    resets_before: bool = False
    """Reset the connection while the request is sent."""
    loses_answer: bool = False
    """Reset the connection instead of answering."""
    cuts_after: int | None = None
    """Close it after so many bytes of the body of the answer."""
    delay_s: float = 0.0


Rule = Callable[[Request], Fault | None]


class FaultyProxy:
    """Forwards to a port; `rule` says what goes wrong. The requests are recorded."""

    def __init__(self, port: int) -> None:
        self.rule: Rule = lambda request: None
        self.requests: list[Request] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(port))
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # of clients that close their connections
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handler(self, port: int) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def log_message(self, *arguments: Any) -> None:
                """Log nothing."""

            def handle_expect_100(self) -> bool:
                return True  # after the fault, if any

            def _any(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                number = len(proxy.requests) + 1
                request = Request(number, self.command, self.path, dict(self.headers.items()), length)
                proxy.requests.append(request)
                fault = proxy.rule(request) or Fault()
                if self.headers.get("Expect"):
                    self.send_response_only(100)
                    self.end_headers()
                if fault.resets_before:
                    self.rfile.read(length // 2)
                    self._reset()
                    return
                body = self.rfile.read(length)
                time.sleep(fault.delay_s)
                if fault.status:
                    self._answer(fault.status, fault.headers, b"" if self.command == "HEAD" else fault.body, 0)
                    return
                self._forward(request, body, fault)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any  # noqa: N815

            def _forward(self, request: Request, body: bytes, fault: Fault) -> None:
                far = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                try:
                    far.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in request.headers.items():
                        if name.lower() not in ("expect", "connection"):
                            far.putheader(name, value)
                    far.endheaders(body)
                    answer = far.getresponse()
                    content, headers = answer.read(), dict(answer.getheaders())
                finally:
                    far.close()
                if fault.loses_answer:
                    self._reset()
                    return
                length = int(headers.pop("Content-Length", len(content)))
                headers.pop("Transfer-Encoding", None)
                self._answer(answer.status, headers, content[: fault.cuts_after], length)
                self.close_connection = fault.cuts_after is not None

            def _answer(self, status: int, headers: dict[str, str], body: bytes, length: int) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(length or len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _reset(self) -> None:
                self.close_connection = True
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.shutdown(socket.SHUT_RD)
                self.connection.close()

            def finish(self) -> None:
                with suppress(OSError):
                    super().finish()

        return Handler


@contextmanager
def faulty_proxy(port: int) -> Iterator[FaultyProxy]:
    """Run a proxy meanwhile."""
    proxy = FaultyProxy(port)
    try:
        yield proxy
    finally:
        proxy.stop()
