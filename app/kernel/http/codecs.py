"""How a route reads bodies, writes results and answers refusals. Loads no framework: actions declare their codec."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import parse_qsl

from app.kernel.errors import Invalid, Refusal
from app.kernel.http.asgi import Headers
from app.kernel.http.body import parse_json
from app.kernel.http.problems import HttpProblem, status_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from app.kernel.decoding import Decoder

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
    """Of request bodies."""
    ignores_unknown = False
    """Whether unknown fields of a body are ignored; otherwise they are refused."""
    omits_none = False
    """Whether members that are None are left out of a result."""
    error_schema: Mapping[str, Any] | None = None
    """JSON schema of the refusals that `refuse` answers with JSON, for OpenAPI."""

    def decode(self, decoder: "Decoder[Any]", body: bytes, path: Mapping[str, str]) -> Any:
        """Return the input that a body and the path's parameters stand for. Raises Invalid, HttpProblem."""
        value = parse_json(body)
        if path:
            if not isinstance(value, dict) or value.keys() & path.keys():
                raise Invalid("the body must be an object without what the path already says")
            value = {**cast("dict[str, Any]", value), **path}
        return decoder.json(value)

    def encode(self, output: "TypeAdapter[Any]", result: Any) -> bytes:
        """Return a result as the body of a response."""
        return output.dump_json(result, exclude_none=self.omits_none)

    def refuse(self, refusal: Refusal | HttpProblem) -> Response | None:  # noqa: ARG002 - for subclasses
        """Return the response to a refusal; None for problem details."""
        return None

    def status_of(self, kind: type[Refusal]) -> int:
        """Return the status that a kind of refusal is answered with."""
        return status_of(kind)


class Form(Codec):
    """A form in, JSON out."""

    media_type = "application/x-www-form-urlencoded"

    def decode(self, decoder: "Decoder[Any]", body: bytes, path: Mapping[str, str]) -> Any:
        return decoder.text(merged_text(body, path))


JSON = Codec()


def merged_text(encoded: bytes, path: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of a query or a form, and those of the path.

    Raises HttpProblem 400 for what can be read in two ways, Invalid for a parameter that the path has, too.
    """
    try:
        pairs = parse_qsl(encoded.decode(), keep_blank_values=True, errors="strict")
    except ValueError:
        raise HttpProblem(400, "parameters must be percent-encoded UTF-8") from None
    if _BROKEN_ESCAPE.search(encoded):
        raise HttpProblem(400, "a % in the parameters escapes nothing; write it as %25")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise HttpProblem(400, "duplicate parameter")
    if "\0" in "".join(found.values()):
        raise HttpProblem(400, "NUL is not allowed in parameters")
    if duplicates := sorted(found.keys() & path.keys()):
        raise Invalid("the path says this already", tuple((name, "is in the path") for name in duplicates))
    return {**found, **path}
