"""The HTTP/1 parser: h11 0.16's state machine with readers that refuse ambiguous input (RFC 9112).

tests/kernel/http/test_grammar.py fails when a version of h11 bypasses them.
"""

import functools
import re
from collections.abc import Iterable
from typing import Any, cast

import h11
from h11._headers import Headers
from h11._readers import READERS, ChunkedReader
from h11._util import LocalProtocolError

LONGEST_HEAD = 16 * 1024
LONGEST_LENGTH = 20
TEXT = bytes({0x09, *range(0x20, 0x7F), *range(0x80, 0x100)})
TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_WORD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_CHUNK = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:[\t ]*;[\t ]*" + _WORD + rb"(?:[\t ]*=[\t ]*(?:" + _WORD + b"|" + _QUOTED + rb"))?)*"
)
_LONGEST_CHUNK_LINE = 1024
_READ_REQUEST, _READ_NOTHING = READERS[h11.CLIENT, h11.IDLE], READERS[h11.CLIENT, h11.MUST_CLOSE]
Buffer = Any
"""h11's ReceiveBuffer, whose bytes are private."""


def _lines(head: bytes) -> list[bytes]:
    lines = head.split(b"\r\n")
    if head.translate(None, TEXT) != b"\r\n" * (len(lines) - 1):
        raise LocalProtocolError("a control character, or a line that does not end with CR LF")
    return lines


def _fields(lines: Iterable[bytes]) -> list[tuple[bytes, bytes, bytes]]:
    found: list[tuple[bytes, bytes, bytes]] = []
    for line in lines:
        raw, colon, value = line.partition(b":")
        if not colon or not raw or raw.translate(None, TOKEN):
            raise LocalProtocolError("a header line is malformed")
        found.append((raw, raw.lower(), value.strip(b" \t")))
    return found


def _unfinished(buffer: Buffer, most: int) -> None:
    """Raise LocalProtocolError when no further input can make these lines valid."""
    data = buffer._data
    if len(data) > most:
        raise LocalProtocolError("the header is too long", error_status_hint=431)
    if data.count(b"\n") != data.count(b"\r\n"):
        raise LocalProtocolError("a line does not end with CR LF")


def _read_request(buffer: Buffer) -> h11.Request | None:
    """Parse a request line and its header (RFC 9112, sections 2.2, 3, 5 and 6)."""
    data = buffer._data
    while data[:2] == b"\r\n":  # empty lines before a request are ignored
        buffer._extract(2)
    end = data.find(b"\r\n\r\n")
    if end < 0:
        _unfinished(buffer, LONGEST_HEAD)
        if data and data[0] < 0x21 and data != b"\r":
            raise LocalProtocolError("the request is not HTTP")
        return None
    if end > LONGEST_HEAD:
        raise LocalProtocolError("the header is too long", error_status_hint=431)
    lines = _lines(bytes(buffer._extract(end + 4)[:-4]))
    found = _REQUEST_LINE.fullmatch(lines[0])
    if found is None:
        raise LocalProtocolError("the request line is malformed")
    method, where, major, minor = found.groups()
    fields = _fields(lines[1:])
    if major != b"1" and (method, where, major, minor, fields) != (b"PRI", b"*", b"2", b"0", []):
        raise LocalProtocolError("this speaks HTTP/1.1", error_status_hint=505)
    version = b"2.0" if major == b"2" else b"1.0" if minor == b"0" else b"1.1"
    headers = Headers(_framed(fields, version))
    return h11.Request(method=method, headers=cast("Any", headers), target=where, http_version=version, _parsed=True)


def _framed(fields: list[tuple[bytes, bytes, bytes]], version: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Return the fields without `Upgrade`, which is ignored. Raises LocalProtocolError for an ambiguous length."""
    lengths, codings, kept = 0, 0, list[tuple[bytes, bytes, bytes]]()
    for field in fields:
        _, name, value = field
        if name == b"content-length":
            lengths += 1
            if not value.isdigit() or len(value) > LONGEST_LENGTH:
                raise LocalProtocolError("Content-Length is not a number")
        elif name == b"transfer-encoding":
            codings += 1
            if value.lower() != b"chunked":
                raise LocalProtocolError("the only Transfer-Encoding is chunked")
        elif name in (b"upgrade", b"http2-settings"):
            continue
        kept.append(field)
    if lengths + codings > 1:
        raise LocalProtocolError("Content-Length and Transfer-Encoding exclude each other")
    if codings and version == b"1.0":
        raise LocalProtocolError("HTTP/1.0 has no Transfer-Encoding")
    return kept


class _Chunked:
    """Reads a chunked body (RFC 9112, section 7.1). Trailers are dropped."""

    def __init__(self) -> None:
        self._left = 0
        self._ends_chunk = False
        self._in_trailer = False

    def __call__(self, buffer: Buffer) -> h11.Data | h11.EndOfMessage | None:
        if self._ends_chunk:
            if len(buffer) < 2:
                return None
            if buffer._extract(2) != b"\r\n":
                raise LocalProtocolError("a chunk is longer than its stated size")
            self._ends_chunk = False
        if self._left == 0 and not self._in_trailer:
            line = buffer.maybe_extract_next_line()
            if line is None:
                return _unfinished(buffer, _LONGEST_CHUNK_LINE)
            found = _CHUNK.fullmatch(line[:-2]) if len(line) <= _LONGEST_CHUNK_LINE else None
            if found is None:
                raise LocalProtocolError("a chunk header is malformed")
            self._left = int(found[1], 16)
            self._in_trailer = self._left == 0
        if self._in_trailer:
            return self._trailer(buffer)
        data = buffer.maybe_extract_at_most(self._left)
        if data is None:
            return None
        self._left -= len(data)
        self._ends_chunk = self._left == 0
        return h11.Data(data=bytes(data))

    def _trailer(self, buffer: Buffer) -> h11.EndOfMessage | None:
        if buffer._data[:2] == b"\r\n":
            buffer._extract(2)
            return h11.EndOfMessage()
        end = buffer._data.find(b"\r\n\r\n")
        if end < 0:
            return _unfinished(buffer, LONGEST_HEAD)
        _fields(_lines(bytes(buffer._extract(end + 4)[:-4])))
        return h11.EndOfMessage()

    def read_eof(self) -> None:
        raise h11.RemoteProtocolError("the client disconnected before the body was complete")


def checked(fields: list[tuple[bytes, bytes]]) -> Any:
    """Return the header fields of a response, checked as h11 does at four times the cost. Raises LocalProtocolError."""
    if b"".join(value for _, value in fields).translate(None, TEXT):
        raise LocalProtocolError("a header of the response has a control character")
    found: list[tuple[bytes, bytes, bytes]] = []
    lengths = 0
    for name, value in fields:
        lowered = _lowered(name)
        is_length = lowered == b"content-length"
        lengths += is_length
        if lengths > 1 or lowered == b"transfer-encoding" or (is_length and not value.isdigit()):
            return fields  # h11 decides
        found.append((name, lowered, value))
    return Headers(found)


@functools.lru_cache(1024)
def _lowered(name: bytes) -> bytes:
    if not name or name.translate(None, TOKEN):
        raise LocalProtocolError("a header of the response has an illegal name")
    return name.lower()


def _discard(buffer: Buffer) -> None:
    """Ignore input after the last request of a connection (RFC 9112, section 9.6)."""
    buffer._extract(len(buffer))


class H11Connection(h11.Connection):
    """h11's state machine with our readers."""

    def _get_io_object(self, role: Any, event: Any, io_dict: Any) -> Any:
        found = super()._get_io_object(role, event, io_dict)
        if found is _READ_REQUEST:
            return _read_request
        if found is _READ_NOTHING:
            return _discard
        return _Chunked() if type(found) is ChunkedReader else found
