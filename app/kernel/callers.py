"""Callers: identity, origin and credentials."""

import os
import pwd
import socket
from dataclasses import dataclass, field
from typing import NewType
from uuid import UUID

from app.kernel.addresses import limited

BearerToken = NewType("BearerToken", str)
"""An access token as sent, for operations that need it even when its session has ended."""


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """Name and password of the Authorization header (RFC 7617), empty without one."""

    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a call; empty for commands and jobs."""

    address: str = ""
    user_agent: str = ""
    request_id: str = ""

    @property
    def limited(self) -> str:
        """The unit of rate limits: the IPv4 address, or the /64 network of an IPv6 one."""
        return limited(self.address)


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of an action: an actor with a session, or anonymous."""

    actor_id: UUID | None = None
    session_id: UUID | None = None
    permissions: frozenset[str] = field(default_factory=frozenset[str])
    is_superuser: bool = False
    origin: Origin = field(default_factory=Origin)

    def may(self, permission: str) -> bool:
        """Return whether the caller has the permission. A superuser has every permission."""
        return self.is_superuser or permission in self.permissions


def operator() -> Caller:
    """Return the caller of a command, who may do everything; its address in the audit trail is os:USER@HOST."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return Caller(is_superuser=True, origin=Origin(address=f"os:{user}@{socket.gethostname()}"))
