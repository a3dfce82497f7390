"""What is HTTP and what is not, sent raw over real sockets to a real process (RFC 9110, 9112 and 9113).

The table is checked by hand against nginx; beside it, mutations of good requests are compared with the grammar.
"""

import http.client
import os
import re
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.kernel.http.negotiation import preferred
from app.kernel.http.parsing import Connection
from app.kernel.telemetry.metrics import FORMATS
from tests.conftest import PostgresServer, create_database, log_in
from tests.support.project import ROOT, Project, Running


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


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Project]:
    made = Project(ROOT, tmp_path_factory.mktemp("protocol"), create_database(postgres).env)
    yield made
    made.end()


@pytest.fixture(scope="module")
def plain(project: Project) -> Iterator[Served]:
    """A process with the settings that it comes with, which nothing of this file may make complain."""
    process = project.start("run-auth-http")
    served = Served(process, process.ready())
    yield served
    assert served.captured() == 0
    assert [line for line in process.logs() if line["level"] in ("error", "critical")] == []
    assert process.errors.read_text() == ""


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


GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"
CHUNKED = (
    b"POST /auth/v1/refresh HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
)
POST = b"POST /auth/v1/refresh HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = b'{"refresh_token":"x"}'
WHOLE = b"15\r\n" + BODY + b"\r\n"
WEBSOCKET = b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
SETTINGS = b"http2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"

SERVED = {
    "a path": (GET + b"\r\n", 200),
    "an empty line before": (b"\r\n" + GET + b"\r\n", 200),
    "something after the last request": (b"GET /health HTTP/1.0\r\n\r\n\r\n\0", 200),
    "absolute form": (b"GET http://host/health HTTP/1.1\r\nhost: host\r\n\r\n", 200),
    "absolute form, in capitals, with a port": (b"GET HTTP://Host:80/health HTTP/1.1\r\nhost: x\r\n\r\n", 200),
    "absolute form of https": (b"GET https://host/health HTTP/1.1\r\nhost: x\r\n\r\n", 200),
    "absolute form with a query": (b"GET http://[::1]:1/health?a=http://b/ HTTP/1.1\r\nhost: x\r\n\r\n", 200),
    "absolute form without a path": (b"GET http://host HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    "absolute form with only a query": (b"GET http://host?a=1 HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    "all of the server": (b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", 204),
    "all of the server, in absolute form": (b"OPTIONS http://host HTTP/1.1\r\nhost: x\r\n\r\n", 204),
    "a path that is not UTF-8": (b"GET /%ff HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    "a line end in the path": (b"GET /health%0d%0aa HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    "an encoded slash": (b"GET /%2fhealth HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    "options of a path": (b"OPTIONS /health HTTP/1.1\r\nhost: x\r\n\r\n", 405),
    "a later minor version": (b"GET /health HTTP/1.2\r\nhost: x\r\n\r\n", 200),
    "HTTP/1.0 without a host": (b"GET /health HTTP/1.0\r\n\r\n", 200),
    "a host with a port": (b"GET /health HTTP/1.1\r\nhost: a.b-c_d:65535\r\n\r\n", 200),
    "a host that is an IPv6 address": (b"GET /health HTTP/1.1\r\nhost: [2001:db8::1]:8080\r\n\r\n", 200),
    "a host with white space around": (b"GET /health HTTP/1.1\r\nhost: \t x \t \r\n\r\n", 200),
    "a header without a value": (GET + b"x-a:\r\n\r\n", 200),
    "a header beyond ASCII": (GET + b"x-a: \xc3\xa9\xff\r\n\r\n", 200),
    "Upgrade: h2c": (GET + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\n" + SETTINGS + b"\r\n", 200),
    "Upgrade: H2C, of several": (GET + b"connection: Upgrade\r\nupgrade: foo/1, H2C\r\nupgrade: h2c\r\n\r\n", 200),
    "Upgrade: TLS": (GET + b"connection: upgrade\r\nupgrade: TLS/1.0\r\n\r\n", 200),
    "a websocket": (GET + b"connection: upgrade\r\nupgrade: websocket\r\n" + WEBSOCKET + b"\r\n", 200),
    "a WebSocket": (GET + b"connection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n" + WEBSOCKET + b"\r\n", 200),
    "a body": (POST + b"content-length: 21\r\n\r\n" + BODY, 401),
    "a body that is expected": (POST + b"content-length: 021\r\n\r\n" + BODY, 401),
    "Upgrade: h2c with a body": (POST + b"upgrade: h2c\r\ncontent-length: 21\r\n" + SETTINGS + b"\r\n" + BODY, 401),
    "a body in UTF-8": (POST.replace(b"json", b'json; Charset="UTF-8"') + b"content-length: 21\r\n\r\n" + BODY, 401),
    "a body as it is": (POST + b"content-encoding: Identity\r\ncontent-length: 21\r\n\r\n" + BODY, 401),
    "chunks": (CHUNKED + b"\r\n" + WHOLE + b"0\r\n\r\n", 401),
    "chunks with extensions": (
        CHUNKED + b'\r\n15;a;b=c ; d = "\\"e;" \r\n'.replace(b" \r", b"\r") + BODY + b"\r\n0;x\r\n\r\n",
        401,
    ),
    "chunks with a trailer": (CHUNKED + b"\r\n" + WHOLE + b"0\r\nx-a: 1\r\nhost: y\r\n\r\n", 401),
    "chunks in capitals": (CHUNKED.replace(b"chunked", b"Chunked") + b"\r\n" + WHOLE + b"000\r\n\r\n", 401),
}

REFUSED = {
    # the request line
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "no version": (b"GET /health\r\nhost: x\r\n\r\n", 400),
    "HTTP/9.9": (b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n", 505),
    "HTTP/2.0": (b"GET /health HTTP/2.0\r\nhost: x\r\n\r\n", 505),
    "HTTP/0.9": (b"GET /health HTTP/0.9\r\nhost: x\r\n\r\n", 505),
    "HTTP/11": (b"GET /health HTTP/11\r\nhost: x\r\n\r\n", 400),
    "http/1.1": (b"GET /health http/1.1\r\nhost: x\r\n\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 505),
    "two spaces": (b"GET  /health HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a tab": (b"GET\t/health HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a space at the end": (b"GET /health HTTP/1.1 \r\nhost: x\r\n\r\n", 400),
    "a space in the path": (b"GET /hea lth HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a method that is none": (b"G(T /health HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a path beyond ASCII": ("GET /hé HTTP/1.1\r\nhost: x\r\n\r\n".encode(), 400),
    "half an escape": (b"GET /%4 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "NUL in the path": (b"GET /health%00 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a fragment": (b"GET /health#a HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "no slash": (b"GET health HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "authority form": (b"GET x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n", 400),
    "asterisk form": (b"GET * HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "another scheme": (b"GET ftp://x/health HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "absolute form without a host": (b"GET http:///health HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "absolute form with a user": (b"GET http://u@x/health HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "absolute form with a broken host": (b"GET http://[::1/health HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a long path": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431),
    "lower case": (b"get /health HTTP/1.1\r\nhost: x\r\n\r\n", 405),
    "TRACE": (b"TRACE /health HTTP/1.1\r\nhost: x\r\n\r\n", 405),
    "CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n", 405),
    "CONNECT to nothing": (b"CONNECT /health HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "a strange method": (b"BREW /health HTTP/1.1\r\nhost: x\r\n\r\n", 405),
    "a long method": (b"A" * 5000 + b" /auth/v1/me HTTP/1.1\r\nhost: x\r\n\r\n", 405),
    # the host
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "no host, later": (b"GET /health HTTP/1.2\r\n\r\n", 400),
    "two hosts": (GET + b"host: x\r\n\r\n", 400),
    "two hosts in HTTP/1.0": (b"GET /health HTTP/1.0\r\nhost: x\r\nhost: y\r\n\r\n", 400),
    **{
        f"host {host!r}": (b"GET /health HTTP/1.1\r\nhost: " + host + b"\r\n\r\n", 400)
        for host in (
            b"",
            b"a b",
            b"a,b c",
            b"u@b",
            b"[::1",
            b"::1",
            b"[]",
            b"[1.2.3.4]",
            b"[::1]x",
            b"[g::]",
            b"a:b",
            b"a/b",
            b"a?b",
            b"a#b",
            b"a\\b",
            b"a:80:80",
            b"a:65536",
            b"a:-1",
            b"%zz",
            b"a%",
            b"<a>",
            b"\xc3\xa9",
            b"http://a",
            b":80",
        )
    },
    "a host that is none in HTTP/1.0": (b"GET /health HTTP/1.0\r\nhost: a b\r\n\r\n", 400),
    # the header
    "white space before the colon": (GET + b"x-a : 1\r\n\r\n", 400),
    "white space before the name": (b"GET /health HTTP/1.1\r\n host: x\r\n\r\n", 400),
    "a folded header": (GET + b"x-a: 1\r\n 2\r\n\r\n", 400),
    "a header without a colon": (GET + b"x-a\r\n\r\n", 400),
    "a header without a name": (GET + b": 1\r\n\r\n", 400),
    "a name that is none": (GET + b"x(a: 1\r\n\r\n", 400),
    **{
        f"{byte!r} in a header": (GET + b"x-a: 1" + byte + b"2\r\n\r\n", 400)
        for byte in (b"\0", b"\r", b"\n", b"\x01", b"\x0b", b"\x7f", b"\r\r\n", b"\n\r")
    },
    "lines that end with LF": (b"GET /health HTTP/1.1\nhost: x\n\n", 400),
    "a line that ends with LF": (b"GET /health HTTP/1.1\r\nhost: x\nx-a: 1\r\n\r\n", 400),
    "a long header": (GET + b"x-a: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    "a header without an end": (GET + b"x-a: " + b"a" * 40_000, 431),
    # the length of the body
    "two equal lengths": (POST + b"content-length: 21\r\ncontent-length: 21\r\n\r\n" + BODY, 400),
    "a list of equal lengths": (POST + b"content-length: 21, 21\r\n\r\n" + BODY, 400),
    "two lengths": (POST + b"content-length: 21\r\ncontent-length: 20\r\n\r\n" + BODY, 400),
    **{
        f"length {value!r}": (POST + b"content-length: " + value + b"\r\n\r\n" + BODY, 400)
        for value in (b"", b"+21", b"-21", b"0x15", b"2_1", b"21.0", b"1e1", b"2 1", "٢١".encode(), b"9" * 21)
    },
    "a length and chunks": (CHUNKED + b"content-length: 21\r\n\r\n" + WHOLE + b"0\r\n\r\n", 400),
    "a length before chunks": (POST + b"content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks in HTTP/1.0": (CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + WHOLE + b"0\r\n\r\n", 400),
    "chunks twice": (CHUNKED + b"transfer-encoding: chunked\r\n\r\n" + WHOLE + b"0\r\n\r\n", 400),
    **{
        f"coding {value!r}": (POST + b"transfer-encoding: " + value + b"\r\n\r\n" + WHOLE + b"0\r\n\r\n", 400)
        for value in (
            b"",
            b"gzip",
            b"identity",
            b"gzip, chunked",
            b"chunked, chunked",
            b"chunked, gzip",
            b"xchunked",
            b"chunked;a=b",
            b"chunked,",
            b",chunked",
            b'"chunked"',
            b"\x0bchunked",
        )
    },
    # the chunks
    **{
        f"chunk header {line!r}": (CHUNKED + b"\r\n" + line + b"\r\n" + BODY + b"\r\n0\r\n\r\n", 400)
        for line in (
            b"",
            b"15;\x00",
            b"15;a\rb",
            b"15;a\nb",
            b"15;a=\x01",
            b"15 ",
            b" 15",
            b"0x15",
            b"+15",
            b"-15",
            b"1_5",
            b"15;",
            b'15;a="',
            b"15;=a",
            b"15,a",
            b"0" * 20 + b"15",
            b"g",
            b"15\n",
            b"15;" + b"a" * 2000,
        )
    },
    "a chunk that is longer": (CHUNKED + b"\r\n14\r\n" + BODY + b"\r\n0\r\n\r\n", 400),
    "a chunk that ends with LF": (CHUNKED + b"\r\n15\r\n" + BODY + b"\n0\r\n\r\n", 400),
    "a trailer that is none": (CHUNKED + b"\r\n" + WHOLE + b"0\r\nx\r\n\r\n", 400),
    "NUL in a trailer": (CHUNKED + b"\r\n" + WHOLE + b"0\r\nx-a: \0\r\n\r\n", 400),
    "a folded trailer": (CHUNKED + b"\r\n" + WHOLE + b"0\r\nx-a: 1\r\n 2\r\n\r\n", 400),
    "a trailer with LF": (CHUNKED + b"\r\n" + WHOLE + b"0\r\nx-a: 1\nx-b: 2\r\n\r\n", 400),
    "a long trailer": (CHUNKED + b"\r\n" + WHOLE + b"0\r\nx-a: " + b"a" * 40_000, 431),
    "a bad chunk for nobody": (GET + b"transfer-encoding: chunked\r\n\r\n1;\0\r\na\r\n0\r\n\r\n", 400),
    # what the body is
    **{
        f"encoding {value!r}": (POST + b"content-encoding: " + value + b"\r\ncontent-length: 21\r\n\r\n" + BODY, 415)
        for value in (b"gzip", b"br", b"x", b"identity, gzip")
    },
    **{
        f"type {value!r}": (
            POST.replace(b"application/json", value) + b"content-length: 21\r\n\r\n" + BODY,
            415,
        )
        for value in (
            b"application/json; charset=latin-1",
            b"application/json;charset=utf-16",
            b"text/json",
            b"",
            b"application/json; charset=",
            b'application/json; charset="utf-8',
            b"application/json, text/plain",
        )
    },
    "two types": (POST + b"content-type: application/json\r\ncontent-length: 21\r\n\r\n" + BODY, 400),
    # headers that decide something, twice: the same, another, empty, in another spelling
    **{
        f"{name} twice: {second!r}": (GET + f"{name}: a\r\nx-a: b\r\n{name.title()}: {second}\r\n\r\n".encode(), 400)
        for name in ("authorization", "proxy-authorization", "content-type", "x-request-id", "user-agent", "origin")
        for second in ("a", "b", "")
    },
    "two tokens for a route": (
        GET.replace(b"/health", b"/auth/v1/me") + b"authorization: Bearer a\r\n" * 2 + b"\r\n",
        400,
    ),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_the_rfc_allows_is_served(plain: Served, name: str) -> None:
    raw, status = SERVED[name]
    found = ask(plain, raw)
    assert found is not None
    assert found.status == status, found.body
    assert found.headers["x-request-id"]
    assert found.headers["x-content-type-options"] == "nosniff"
    assert "upgrade" not in found.headers


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_rfc_forbids_is_refused_and_nothing_else_suffers(plain: Served, name: str) -> None:
    raw, status = REFUSED[name]
    found = ask(plain, raw)
    assert found is not None
    assert found.status == status, found.body
    assert found.headers["content-type"] == "application/problem+json"
    assert found.headers["cache-control"] == "no-store"
    assert found.headers["x-content-type-options"] == "nosniff"
    problem = httpx.Response(status, content=found.body).json()
    assert problem["status"] == status
    assert problem["request_id"] == found.headers["x-request-id"]
    assert problem["trace_id"] == found.headers["x-trace-id"]
    assert not found.stays or status in (405, 415), "what follows cannot be trusted"
    assert is_alive(plain)


# What the grammar says, once more and another way (RFC 9112, collected).

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
LINES = rb"(?:" + TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*"
HEAD = re.compile(rb"(?:\r\n)*(" + TOKEN + rb") ([!-~]+) HTTP/1\.([0-9])\r\n(" + LINES + rb")\r\n")
REG_NAME = rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f][0-9A-Fa-f])+"
HOST = re.compile(rb"(?:" + REG_NAME + rb"|\[::1\])(?::[0-9]{0,4})?")
TARGET = re.compile(rb"(?:https?://([^/?#]*))?(/(?:[^#?%]|%[2-7][0-9a-eA-E])*)?(?:\?[^#]*)?")
EXTENSION = rb"[\t ]*;[\t ]*" + TOKEN + rb"(?:[\t ]*=[\t ]*(?:" + TOKEN + rb'|"(?:[^"\\\x00-\x08\x0a-\x1f\x7f])*"))?'
CHUNKS = re.compile(rb"0*([1-9a-fA-F][0-9a-fA-F]{0,3}|0)(?:" + EXTENSION + rb")*\r\n")


def judged(raw: bytes) -> "tuple[bool, bool]":
    """Return whether the bytes begin with a valid header, and with a complete body after it."""
    head = HEAD.match(raw)
    if head is None:
        return False, False
    fields = [line.partition(b":") for line in head[4].split(b"\r\n")[:-1]]
    values: dict[bytes, list[bytes]] = {}
    for name, _, value in fields:
        values.setdefault(name.lower(), []).append(value.strip(b" \t"))
    hosts, lengths, codings = (values.get(name, []) for name in (b"host", b"content-length", b"transfer-encoding"))
    target = TARGET.fullmatch(head[2])
    if target is None or not head[2].startswith((b"/", b"http")):
        return False, False
    if len(hosts) != 1 and (hosts or head[3] != b"0"):
        return False, False
    if not all(HOST.fullmatch(host) for host in [*hosts, *([target[1]] if target[1] is not None else [])]):
        return False, False
    if len(lengths) + len(codings) > 1 or (codings and (head[3] == b"0" or codings[0].lower() != b"chunked")):
        return False, False
    rest = raw[head.end() :]
    if codings:
        return True, has_chunks(rest)
    if lengths and not re.fullmatch(b"[0-9]{1,20}", lengths[0]):
        return False, False
    return True, not lengths or len(rest) >= int(lengths[0])


def has_chunks(rest: bytes) -> bool:
    while (line := CHUNKS.match(rest)) is not None:
        if line[1] == b"0":
            return re.match(LINES + b"\r\n", rest[line.end() :]) is not None
        end = line.end() + int(line[1], 16)
        if rest[end : end + 2] != b"\r\n":
            return False
        rest = rest[end + 2 :]
    return False


SEEDS = [
    GET + b"\r\n",
    b"GET http://host:80/health?a=b HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\n\r\n",
    b"HEAD /he%61lth HTTP/1.0\r\n\r\n",
    POST + b"content-length: 21\r\n\r\n" + BODY,
    CHUNKED + b'\r\n15;a="b";c\r\n' + BODY + b"\r\n0\r\nx-a: b\r\n\r\n",
]
HOSTILE = [bytes([each]) for each in b'\0\r\n\t\x0b\x7f\xff :;,="%#@[]/1ax'] + [
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"\r\n ",
    b"\r\nhost: y",
    b"\r\ncontent-length: 21",
    b"\r\ntransfer-encoding: chunked",
    b"\r\nconnection: upgrade\r\nupgrade: websocket",
    b"HTTP/1.0",
]
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.sampled_from(HOSTILE)), min_size=1, max_size=3)


def mutated(seed: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for where, removed, inserted in changes:
        at = int(where * len(seed))
        seed = seed[:at] + inserted + seed[at + removed :]
    return seed


EXAMPLES = int(os.environ.get("PROTOCOL_EXAMPLES", "200"))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.sampled_from(SEEDS), changes=CHANGES)
def test_a_mutated_request_is_served_only_if_it_is_one(plain: Served, seed: bytes, changes: Any) -> None:
    raw = mutated(seed, changes)
    with plain.connect() as sock:
        with suppress(ConnectionError):
            sock.sendall(raw)
            sock.shutdown(socket.SHUT_WR)  # so that it does not wait for what will not come
        found = read(sock, "HEAD" if b"HEAD" in raw[:7] else "GET")
    is_valid, is_whole = judged(raw)
    if not is_valid:
        assert found is None or found.status in (400, 431, 505), found.body
    elif not is_whole:  # it matters only to who reads it
        assert found is None or b"INVALID_REFRESH_TOKEN" not in found.body
    else:
        assert found is not None
        is_json = b"not acceptable JSON" in found.body
        assert found.status in (200, 401, 404, 405, 415, 422, 429) or (found.status == 400 and is_json), found.body


def events(*pieces: bytes) -> tuple[list[object], bool]:
    """Return what is read of the pieces of a request, and whether it can be read to its end."""
    connection, found = Connection(h11.SERVER), list[object]()
    for piece in pieces:
        connection.receive_data(piece)
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError:
                return found, False
            if event in (h11.NEED_DATA, h11.PAUSED):
                break
            if isinstance(event, h11.Data) and found and isinstance(found[-1], bytes):
                found[-1] += bytes(event.data)
            else:
                found.append(bytes(event.data) if isinstance(event, h11.Data) else repr(event))
    return found, True


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.sampled_from(SEEDS), changes=CHANGES | st.just([]), size=st.integers(1, 30))
def test_it_does_not_matter_in_which_pieces_a_request_arrives(seed: bytes, changes: Any, size: int) -> None:
    raw = mutated(seed, changes)
    assert events(*(raw[at : at + size] for at in range(0, len(raw), size))) == events(raw)


NAMES = ["authorization", "accept", "cookie", "traceparent", "tracestate", "x-request-id", "x-forwarded-for", "expect"]
NAMES += ["user-agent", "connection", "te", "range", "if-none-match", "content-type", "content-encoding", "origin"]
VALUES = st.binary(max_size=60).map(
    lambda value: value.translate(None, bytes(range(9)) + bytes(range(10, 32)) + b"\x7f")
)
SCHEMES = st.sampled_from([b"", b"Bearer ", b"Basic ", b"Bearer app_", b"Bearer eyJ", b"00-", b"application/json;"])


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(NAMES), SCHEMES, VALUES, st.sampled_from(["GET /auth/v1/me", "GET /metrics", "POST /oauth/token"])
)
def test_any_value_of_a_header_is_answered(plain: Served, name: str, scheme: bytes, value: bytes, line: str) -> None:
    raw = f"{line} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{name}: ".encode() + scheme + value + b"\r\n\r\n"
    found = ask(plain, raw)
    assert found is not None
    assert found.status < 500, found.body


def test_head_is_answered_as_get_is_wherever_that_is_served(plain: Served, project: Project) -> None:
    client = log_in(project, plain.process)
    paths = client.get("/openapi.json").json()["paths"]
    served = [path for path, methods in paths.items() if "get" in methods and "{" not in path]
    assert len(served) >= 8
    for path in [*served, "/health", "/ready", "/openapi.json", "/docs"]:
        of_get, of_head = client.get(path), client.head(path)
        assert (of_head.status_code, of_head.content) == (of_get.status_code, b""), path
        for name in ("content-type", "content-length", "cache-control"):
            assert of_head.headers.get(name) == of_get.headers.get(name), path
    for path, methods in paths.items():
        allow = client.request("BREW", path.replace("{", "").replace("}", "")).headers["allow"].split(", ")
        expected = {method.upper() for method in methods} | ({"HEAD"} if "get" in methods else set())
        assert allow == sorted(expected), path


TEXT, OPENMETRICS = "text/plain", "application/openmetrics-text"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ([], TEXT),
        ([""], TEXT),
        (["*/*"], TEXT),
        (["application/*"], OPENMETRICS),
        ([OPENMETRICS], OPENMETRICS),
        (["Application/OpenMetrics-Text; Version=1.0.0; Q=0.5, text/plain; q=0.4"], OPENMETRICS),
        ([f"{OPENMETRICS};q=0"], TEXT),
        ([f"{OPENMETRICS}; q=0.000, */*"], TEXT),
        ([f"{OPENMETRICS};q=0, application/*"], TEXT),
        ([f"application/*;q=0, {OPENMETRICS};q=0.1"], OPENMETRICS),
        ([f"{TEXT};q=0.5, {OPENMETRICS};q=0.4"], TEXT),
        ([f"{TEXT};q=0.4, {OPENMETRICS};q=0.5"], OPENMETRICS),
        ([f"{TEXT};q=0.4", f"{OPENMETRICS};q=0.5"], OPENMETRICS),
        ([f"{OPENMETRICS}, */*"], OPENMETRICS),
        ([f"{TEXT};q=0, {OPENMETRICS}"], OPENMETRICS),
        (["text/*;q=0, */*;q=0.1"], OPENMETRICS),
        ([f"{OPENMETRICS};q=2, {OPENMETRICS};q=x, {OPENMETRICS};q=-1, {OPENMETRICS} q=1"], TEXT),
        ([f"{OPENMETRICS};version=2.0.0"], TEXT),
        ([f'{OPENMETRICS};version="1.0.0"'], OPENMETRICS),
        ([f'x/y;a="{OPENMETRICS}, {OPENMETRICS}"'], TEXT),
        ([f"x{OPENMETRICS}, {OPENMETRICS}x"], TEXT),
        (["image/png"], TEXT),
        (["*/*;q=0"], TEXT),
        ([f"{OPENMETRICS}" + " ;" * 2000 + "x"], TEXT),
        ([f"{OPENMETRICS}" + "; " * 2000], OPENMETRICS),
        (
            [
                f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8;q=0.6,{OPENMETRICS};version=0.0.1;q=0.5",
                f"{TEXT};version=1.0.0;escaping=allow-utf-8;q=0.4,{TEXT};version=0.0.4;q=0.3,*/*;q=0.2",
            ],
            OPENMETRICS,
        ),
    ],
)
def test_metrics_are_in_the_format_that_is_accepted_most(accept: list[str], wanted: str) -> None:
    headers = [(b"accept", value.encode()) for value in accept]
    assert preferred({"headers": headers}, FORMATS) == wanted
