"""What is HTTP and what is not, sent raw over real sockets to a real process (RFC 9110 and 9112).

nginx refuses nothing that is served here, which was tried by hand.
"""

import httpx
import pytest

from tests.conftest import log_in
from tests.support.project import Project
from tests.support.raw import BODY, CHUNKED, GET, POST, WHOLE, Served, ask, is_alive

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
    "absolute form without a path": (b"GET http://host HTTP/1.1\r\nhost: x\r\n\r\n", 200),
    "absolute form with only a query": (b"GET http://host?a=1 HTTP/1.1\r\nhost: x\r\n\r\n", 200),
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
            b"application/json;charset=utf-16;charset=utf-8",
            b"application/json;charset=utf-8;Charset=utf-16",
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


def test_head_is_answered_as_get_is_wherever_that_is_served(plain: Served, plain_project: Project) -> None:
    client = log_in(plain_project, plain.process)
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
