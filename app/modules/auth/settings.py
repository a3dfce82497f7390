"""Settings of the auth module."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from app.kernel.config import Duration, Key, Names, OptionalSecret, PublicUrl
from app.kernel.machine import cores, memory_bytes
from app.kernel.product import NAME

_PROCESS_BYTES, _HASH_BYTES = 80 * 2**20, 64 * 2**20
_MOST_HASHES = 8


def hashes_that_fit(workers: int = 1) -> int:
    """Return how many passwords each of some workers may hash at once: one for each core, as far as memory suffices."""
    room = memory_bytes() // workers - _PROCESS_BYTES
    return max(1, min(cores() // workers, room // _HASH_BYTES, _MOST_HASHES))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """Tokens, sessions and passwords."""

    section: ClassVar[str] = "auth"
    master_secret: Annotated[Key, Field(description="encrypts the signing keys; the same in every process")]
    master_secret_previous: Annotated[
        OptionalSecret, Field(description="while the master secret is rotated: the former one, which still decrypts")
    ]
    issuer: Annotated[PublicUrl, Field(description="`iss` of the tokens: the public address of the auth API")]
    audience: Annotated[str, Field(min_length=1, description="`aud` of the access tokens")] = NAME
    access_token_ttl: Annotated[Duration, Field(ge=1, description="lifetime of an access token")]
    session_idle: Annotated[Duration, Field(ge=1, description="a session ends after this idle time")]
    session_lifetime: Annotated[Duration, Field(ge=1, description="maximum lifetime of a session")]
    password_hash_concurrency: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="maximum number of concurrent password hashes; each takes 64 MiB; by default what the memory"
            " limit and the cores allow",
        ),
    ] = field(default_factory=hashes_that_fit)
    password_words: Annotated[
        Names, Field(description="names of the organisation, products and roles; excluded from password length")
    ]

    def master_secrets(self) -> list[str]:
        """Return the master secret, and the previous one while it is rotated."""
        found = (self.master_secret.get_secret_value(), self.master_secret_previous.get_secret_value())
        return list(dict.fromkeys(filter(None, found)))
