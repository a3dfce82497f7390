"""Who calls, from where, and what they sent to prove it."""

import os
import pwd
import socket
from dataclasses import dataclass, field
from typing import NewType
from uuid import UUID

from app.kernel.addresses import limited

BearerToken = NewType("BearerToken", str)
"""A token as it was sent, for the few operations that must see it even when its session has ended."""


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """Name and password of the Authorization header (RFC 7617); both empty when there are none."""

    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a call comes from: empty for commands and jobs."""

    address: str = ""
    user_agent: str = ""
    request_id: str = ""

    @property
    def limited(self) -> str:
        """What limits count as one client: the address, or the /64 of an IPv6 one."""
        return limited(self.address)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: an actor under a session, or nobody known."""

    actor_id: UUID | None = None
    session_id: UUID | None = None
    permissions: frozenset[str] = field(default_factory=frozenset[str])
    is_superuser: bool = False
    origin: Origin = field(default_factory=Origin)

    def may(self, permission: str) -> bool:
        """Return whether the caller holds the permission; a superuser holds every one."""
        return self.is_superuser or permission in self.permissions


def operator() -> Caller:
    """Return whoever has started this command, as the audit trail names them: os:USER@HOST."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return Caller(origin=Origin(address=f"os:{user}@{socket.gethostname()}"))
