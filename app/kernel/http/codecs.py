"""Codecs: how a route decodes bodies, encodes results and answers refusals. Loads no framework: actions declare them.

Bodies are limited in size and time. JSON is I-JSON (RFC 7493) with limits. Besides malformed JSON (RFC 8259), these are
refused: duplicate names, NaN, Infinity, NUL, lone surrogates, integers beyond 64 bits, nesting beyond 64, and encodings
other than UTF-8.
"""

import asyncio
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast
from urllib.parse import parse_qsl

from app.kernel.errors import Invalid, Refusal
from app.kernel.http.asgi import CLOSE, REFUSED, REFUSED_BODY, Headers, Receive, Scope, header
from app.kernel.http.problems import HttpProblem, malformed, status_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from app.kernel.decoding import Decoder

_MAX_DEPTH = 64
_MAX_INTEGER_DIGITS = 20
_INTEGERS = range(-(2**63), 2**64)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_PARAMETER = re.compile(rb"""[ \t]*;[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=([!#$%&'*+.^_`|~0-9A-Za-z-]+|"[^"\\]*")""")
_MEDIA_TYPE = re.compile(rb"([!#$&^_.+/0-9A-Za-z-]+)((?:" + _PARAMETER.pattern + rb"|[ \t]*;)*)[ \t]*")
_BRACKET = re.compile(rb"[\[\]{}]")

_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Response(NamedTuple):
    """A whole response."""

    status: int
    content_type: bytes
    body: bytes
    headers: Headers = ()


class Codec:
    """JSON in and out, and problem details for refusals. Subclasses override what differs."""

    media_type = "application/json"
    """Media type of request bodies."""
    ignores_unknown = False
    """Whether unknown fields of a body are ignored instead of refused."""
    omits_none = False
    """Whether results omit members that are None."""
    error_schema: Mapping[str, Any] | None = None
    """JSON schema of the responses of `refuse`, for OpenAPI."""

    def decode(self, decoder: "Decoder[Any]", body: bytes, path: Mapping[str, str]) -> Any:
        """Return the input from a body and path parameters. Raises Invalid, HttpProblem."""
        value = parse_json(body)
        if path:
            if not isinstance(value, dict) or value.keys() & path.keys():
                raise Invalid("the body must be an object without the parameters of the path")
            value = {**cast("dict[str, Any]", value), **path}
        return decoder.json(value)

    def encode(self, output: "TypeAdapter[Any]", result: Any) -> bytes:
        """Return the body of a response."""
        return output.dump_json(result, exclude_none=self.omits_none)

    def refuse(self, refusal: Refusal | HttpProblem) -> Response | None:  # noqa: ARG002 - for subclasses
        """Return the response to a refusal, or None for problem details."""
        return None

    def status_of(self, kind: type[Refusal]) -> int:
        """Return the status of a kind of refusal."""
        return status_of(kind)


class Form(Codec):
    """A form in, JSON out."""

    media_type = "application/x-www-form-urlencoded"

    def decode(self, decoder: "Decoder[Any]", body: bytes, path: Mapping[str, str]) -> Any:
        return decoder.text(merged_text(body, path))


JSON = Codec()


def merged_text(encoded: bytes, path: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of a query or a form, together with those of the path.

    Raises HttpProblem 400 for malformed or duplicate parameters, Invalid for one that is also in the path.
    """
    try:
        pairs = parse_qsl(encoded.decode(), keep_blank_values=True, errors="strict")
    except ValueError:
        raise HttpProblem(400, "parameters must be percent-encoded UTF-8") from None
    if _BROKEN_ESCAPE.search(encoded):
        raise HttpProblem(400, "invalid percent-encoding in the parameters; write % as %25")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise HttpProblem(400, "duplicate parameter")
    if "\0" in "".join(found.values()):
        raise HttpProblem(400, "NUL is not allowed in parameters")
    if duplicates := sorted(found.keys() & path.keys()):
        raise Invalid("duplicate parameter", tuple((name, "is in the path") for name in duplicates))
    return {**found, **path}


def check_media_type(scope: Scope, media_type: str) -> None:
    """Raise HttpProblem 415 unless Content-Type is this media type in UTF-8, without Content-Encoding."""
    wanted = media_type.encode()
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    if types != [wanted]:
        found = _MEDIA_TYPE.fullmatch(types[0]) if len(types) == 1 else None
        if found is None or found[1].lower() != wanted:
            raise HttpProblem(415, f"send {media_type}")
        charsets = [value for name, value in _PARAMETER.findall(found[2]) if name.lower() == b"charset"]
        if any(charset.strip(b'"').lower() not in (b"utf-8", b"utf8") for charset in charsets):
            raise HttpProblem(415, "the only charset is UTF-8")
    for name, value in scope["headers"]:  # RFC 9110, section 15.5.16
        if name == b"content-encoding" and value.lower() not in (b"identity", b""):
            raise HttpProblem(415, "no Content-Encoding is supported", ((b"accept-encoding", b"identity"),))


async def read_body(scope: Scope, receive: Receive, most_bytes: int, timeout_s: float) -> bytes:
    """Return the whole body.

    Raises HttpProblem 413 when it is too large, 408 when it times out; Unavailable when too many bodies are in memory.
    """
    length = header(scope, b"content-length")
    if length is not None and int(length) > most_bytes:
        raise HttpProblem(413, f"at most {most_bytes} bytes", CLOSE)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise scope.get(REFUSED) or malformed("the client disconnected before the body was complete")
                if REFUSED_BODY in message:
                    raise message[REFUSED_BODY]
                body += message.get("body", b"")
                if len(body) > most_bytes:
                    raise HttpProblem(413, f"at most {most_bytes} bytes", CLOSE)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise HttpProblem(408, f"the body did not arrive within {timeout_s:g} s", CLOSE) from None


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON body. Raises HttpProblem 400 unless it is I-JSON within the limits."""
    try:
        text = body.decode()
        _check_depth(body)
        value = _DECODER.decode(text)
        if "\\u" in text:  # only an escape can encode NUL or a lone surrogate
            plain = json.dumps(value, ensure_ascii=False)
            plain.encode()
            if "\\u0000" in plain.replace("\\\\", ""):
                raise ValueError("NUL is not allowed")
        return value
    except UnicodeDecodeError:
        raise _not_json("it is not UTF-8") from None
    except UnicodeEncodeError:
        raise _not_json("it has half a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg} at position {error.pos}") from None
    except (ValueError, RecursionError) as error:
        raise _not_json(str(error)) from None


def _not_json(reason: str) -> HttpProblem:
    return HttpProblem(400, f"the body is not acceptable JSON: {reason}")


def _check_depth(body: bytes) -> None:
    if body.count(b"[") + body.count(b"{") <= _MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKET.finditer(_STRING.sub(b"", body)):
        depth += 1 if match[0] in b"[{" else -1
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {_MAX_DEPTH}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate name in an object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_INTEGER_DIGITS or int(digits) not in _INTEGERS:
        raise ValueError("an integer is beyond 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is beyond what a double can hold")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_no_constant
)
