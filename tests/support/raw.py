"""Raw bytes over a socket of their own, for what no client would send."""

import http.client
import re
import socket
from contextlib import closing, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from tests.support.project import Running

GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"
CHUNKED = (
    b"POST /auth/v1/refresh HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
)
POST = b"POST /auth/v1/refresh HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = b'{"refresh_token":"x"}'
WHOLE = b"15\r\n" + BODY + b"\r\n"


@dataclass
class Served:
    """A process and its address."""

    process: Running
    url: str

    def connect(self, seconds: float = 5) -> socket.socket:
        where = urlsplit(self.url)
        return socket.create_connection((where.hostname, where.port), timeout=seconds)

    def captured(self) -> int:
        """Return how many errors the process holds to be its own."""
        text = httpx.get(f"{self.url}/metrics").text
        return sum(int(float(value)) for value in re.findall(r"(?m)^errors_captured_total\{.*\} (\S+)", text))


@dataclass
class Reply:
    """An answer, and whether the connection stays open."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    stays: bool


def ask(served: Served, raw: bytes, method: str = "GET") -> Reply | None:
    """Send raw bytes on a connection of its own; return the answer, None when there is none."""
    with served.connect() as sock:
        with suppress(ConnectionError):
            sock.sendall(raw)
        return read(sock, method)


def read(sock: socket.socket, method: str = "GET") -> Reply | None:
    with closing(http.client.HTTPResponse(sock, method=method)) as response:
        try:
            response.begin()
            body = response.read()
        except (ConnectionError, http.client.HTTPException):
            return None
        return Reply(response.status, response.headers, body, not response.will_close)


def is_alive(served: Served) -> bool:
    found = ask(served, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    return found is not None and found.status == 200
