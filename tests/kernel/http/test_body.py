"""Hostile bodies and framing."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kernel.http.codecs import parse_json
from app.kernel.http.problems import HttpProblem
from tests.conftest import TestDatabase
from tests.support.project import ROOT, Project

LOGIN = "/auth/v1/login"


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nothing",
        b"{} {}",
        b"\xef\xbb\xbf{}",
        b'{"a":1,"a":2}',
        b'[{"b":{"a":1,"a":2}}]',
        b'{"a":1,"\\u0061":2}',
        b'{"a":NaN}',
        b"[Infinity]",
        b"-Infinity",
        b"1e400",
        b"18446744073709551616",
        b"-9223372036854775809",
        b"9" * 5000,
        b'"\\u0000"',
        b'{"\\u0000":1}',
        b'"\0"',
        b'"\\ud800"',
        b'["\\udc00\\ud800"]',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        "{}".encode("utf-16"),
        deep(65),
        b'{"a":' * 65 + b"1" + b"}" * 65,
        deep(200_000),
        b"[" * 200_000,
    ],
)
def test_json_that_could_be_misread_is_malformed(body: bytes) -> None:
    with pytest.raises(HttpProblem) as caught:
        parse_json(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"a":1,"b":{"a":1}}',
        b"18446744073709551615",
        b"-9223372036854775808",
        b"1.5e300",
        b'"\\\\u0000"',
        b'"\\\\\\\\u0000"',
        b'"\\ud83d\\ude00"',
        '"ünïcode 😀"'.encode(),
        deep(64),
        b"[" + b",".join([b"{}"] * 1000) + b"]",
        b'"' + b"[" * 100 + b'"',
        b'["\\"' + b"[" * 100 + b'"]',
    ],
)
def test_json_that_everybody_reads_alike_is_accepted(body: bytes) -> None:
    parse_json(body)


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=30,
)


@given(VALUES, st.booleans())
def test_every_proper_value_is_accepted(value: object, ascii_only: bool) -> None:
    parse_json(json.dumps(value, ensure_ascii=ascii_only).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_either_accepted_by_others_too_or_malformed(body: bytes) -> None:
    with suppress(HttpProblem):
        parse_json(body)
        json.loads(body.decode())


# Over real sockets from here on.


def exchange(url: str, *parts: bytes, seconds: float = 10) -> bytes:
    """Send the parts, and return what comes back until the server closes or is silent."""
    target = urlsplit(url)
    with socket.create_connection((target.hostname, target.port), timeout=seconds) as sock:
        received = b""
        with suppress(ConnectionError):  # it may answer and hang up before everything was sent
            for part in parts:
                sock.sendall(part)
        with suppress(TimeoutError, ConnectionError):
            while b'"trace_id"' not in received and (chunk := sock.recv(65536)):
                received += chunk
        return received


def request(*headers: bytes, body: bytes = b"") -> bytes:
    lines = [f"POST {LOGIN} HTTP/1.1".encode(), b"host: x", b"content-type: application/json", *headers, b"", body]
    return b"\r\n".join(lines)


def endless(size: int) -> list[bytes]:
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    return [chunk] * (size // 65536)


def test_hostile_requests_are_refused_and_the_server_lives(project: Project) -> None:
    url = project.start("run-auth-http", env={"HTTP_SERVER_BODY_TIMEOUT": "1s"}).ready()
    refused = {
        "too long": (413, [request(b"content-length: 99999999", body=b"x")]),
        "endless": (413, [request(b"transfer-encoding: chunked"), *endless(20_000_000)]),
        "slow": (408, [request(b"content-length: 100", body=b"{")]),
        "both lengths": (
            400,
            [request(b"content-length: 2", b"transfer-encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n")],
        ),
        "folded": (400, [request(b"x-a: 1\r\n  2", b"content-length: 2", body=b"{}")]),
        "two lengths": (400, [request(b"content-length: 2", b"content-length: 3", body=b"{}")]),
        "no length number": (400, [request(b"content-length: x", body=b"{}")]),
        "negative": (400, [request(b"content-length: -1", body=b"{}")]),
        "deep": (400, [request(b"content-length: 400000", body=deep(200_000))]),
    }
    for name, (status, parts) in refused.items():
        answer = exchange(url, *parts)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), (name, answer[:300])
        assert b"Traceback" not in answer
    assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "//auth/v1/me",
        "/auth//v1/me",
        "/auth/v1/me/",
        "/auth/v1/me;x",
        "/auth/v1/%2e%2e/v1/me",
        "/AUTH/v1/me",
        "/auth%2Fv1/me",
        "/auth/v1%2fme",
    ],
)
def test_path_tricks_lead_nowhere(project_url: str, path: str) -> None:
    answer = exchange(project_url, f"GET {path} HTTP/1.1\r\nhost: x\r\nx-http-method-override: POST\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 "), answer


@pytest.mark.parametrize("path", ["/%61uth/v1/me", "/auth/v1/me?", "http://other/auth/v1/me"])
def test_other_spellings_of_a_path_are_decided_like_the_plain_one(project_url: str, path: str) -> None:
    answer = exchange(project_url, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 404 ")), answer


@pytest.fixture(scope="module")
def project_url(tmp_path_factory: pytest.TempPathFactory, template: TestDatabase) -> Iterator[str]:
    project = Project(ROOT, tmp_path_factory.mktemp("shared"), template.copy().env)
    yield project.start("run-auth-http").ready()
    project.end()
