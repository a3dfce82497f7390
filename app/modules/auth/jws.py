"""Parsing and verification of signed tokens (compact JWS, RFC 7515); see ADR 9.

Only the header that this application issues is accepted, so that a token cannot select an algorithm, an extension or
a key location. The cryptography library verifies the signature.
"""

import base64
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from annotated_types import Len
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from pydantic import ConfigDict, TypeAdapter

_HALF_BYTES = 32
_ES256 = ECDSA(SHA256())


@dataclass(frozen=True, slots=True)
class _Header:
    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid", "strict": True}

    alg: Literal["ES256"]
    typ: Literal["at+jwt"]
    kid: str


_HEADER = TypeAdapter(_Header)


@dataclass(frozen=True, slots=True)
class Stated:
    """The claims of an access token (RFC 9068, section 2.2). Other claims are ignored."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "ignore", "strict": True}

    iss: str
    aud: str
    sub: UUID
    sid: UUID
    jti: Annotated[str, Len(1)]
    exp: int
    iat: int = 0
    nbf: int = 0


STATED = TypeAdapter(Stated)


@dataclass(frozen=True, slots=True)
class SignedToken:
    """The parts of a token. Its content is untrusted before `verified`."""

    kid: str
    _signed: bytes
    _payload: bytes
    _signature: bytes

    def verified(self, key: EllipticCurvePublicKey) -> bytes:
        """Return the payload. Raises ValueError for a wrong signature (RFC 7518, section 3.4)."""
        r, s = self._signature[:_HALF_BYTES], self._signature[_HALF_BYTES:]
        if len(s) != _HALF_BYTES:
            raise ValueError("the signature has the wrong length")
        try:
            key.verify(encode_dss_signature(int.from_bytes(r), int.from_bytes(s)), self._signed, _ES256)
        except InvalidSignature:
            raise ValueError("the signature is wrong") from None
        return self._payload


def taken_apart(token: str) -> SignedToken:
    """Return the parts of a token. Raises ValueError for another format."""
    signed, _, signature = token.encode("ascii").rpartition(b".")
    header, _, payload = signed.partition(b".")
    return SignedToken(_HEADER.validate_json(_decoded(header)).kid, signed, _decoded(payload), _decoded(signature))


def _decoded(part: bytes) -> bytes:
    """Decode canonical base64url (RFC 4648, section 5). Python also accepts other encodings of the same bytes."""
    content = base64.urlsafe_b64decode(part + b"==")
    if base64.urlsafe_b64encode(content).rstrip(b"=") != part:
        raise ValueError("a part is not canonical base64url")
    return content
