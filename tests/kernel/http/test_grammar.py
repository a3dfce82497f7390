"""Requests that are mutated, and the grammar of RFC 9112 written down once more and another way, to judge them."""

import itertools
import os
import re
import socket
from contextlib import suppress
from typing import Any

import h11
from h11._writers import write_any_response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.kernel.http.http1_reader import H11Connection, checked
from tests.support.raw import BODY, CHUNKED, GET, POST, Served, ask, read

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
LINES = rb"(?:" + TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*"
HEAD = re.compile(rb"(?:\r\n)*(" + TOKEN + rb") ([!-~]+) HTTP/1\.([0-9])\r\n(" + LINES + rb")\r\n")
REG_NAME = rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f][0-9A-Fa-f])+"
HOST = re.compile(rb"(?:" + REG_NAME + rb"|\[::1\])(?::[0-9]{0,4})?")
TARGET = re.compile(rb"(?:https?://([^/?#]*))?(/(?:[^#?%]|%(?!00)[0-9a-fA-F]{2})*)?(?:\?[^#]*)?")
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


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.sampled_from(SEEDS), changes=CHANGES)
def test_a_mutated_request_is_served_only_if_it_is_one(plain: Served, seed: bytes, changes: Any) -> None:
    raw = mutated(seed, changes)
    with plain.connect() as sock:
        with suppress(ConnectionError):
            sock.sendall(raw)
            sock.shutdown(socket.SHUT_WR)  # so that it does not wait for what will not come
        found = read(sock, "HEAD" if raw.lstrip(b"\r\n").startswith(b"HEAD ") else "GET")
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
    connection, found = H11Connection(h11.SERVER), list[object]()
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


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.sampled_from(NAMES), SCHEMES, VALUES, st.sampled_from(["GET /auth/v1/me", "GET /metrics", "POST /oauth/token"])
)
def test_any_value_of_a_header_is_answered(plain: Served, name: str, scheme: bytes, value: bytes, line: str) -> None:
    raw = f"{line} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{name}: ".encode() + scheme + value + b"\r\n\r\n"
    found = ask(plain, raw)
    assert found is not None
    assert found.status < 500, found.body


def test_header_fields_of_responses_are_checked_as_h11_checks_them() -> None:
    """Or more strictly: of control characters, h11 lets some pass."""
    names = [b"x-a", b"X-A", b"content-length", b"Content-Length", b"transfer-encoding", b"", b"a b", b"x:y", b"x\n"]
    values = [b"", b"1", b"chunked", b"a\tb", b"\xe9", b"a\r\nb: c", b"a\nb", b"a\0b", b"a\x01b", b"a\x7f"]
    fields = list(itertools.product(names, values))
    for some in [[one] for one in fields] + [[one, other] for one in fields for other in fields[::7]]:
        try:
            strict = bytes_of(h11.Response(headers=checked(some), status_code=200))
        except h11.LocalProtocolError:
            continue
        assert strict == bytes_of(h11.Response(headers=some, status_code=200)), some


def bytes_of(response: h11.Response) -> bytes:
    written: list[bytes] = []
    write_any_response(response, written.append)
    return b"".join(written)
