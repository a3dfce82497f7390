"""The unit of business work: a use case under `@operation(id, kind)`, and who asks for it."""

import functools
import os
import pwd
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NewType, TypeVar, cast
from uuid import UUID

from loguru import logger

from app.kernel.addresses import limited
from app.kernel.errors import Refusal
from app.kernel.telemetry.traces import span

C = TypeVar("C", bound=type[Any])
BearerToken = NewType("BearerToken", str)
"""A token as it was sent, for the few operations that must see it even when its session has ended."""


class Kind(StrEnum):
    """What starts an operation."""

    USER_ACTION = "user_action"
    EVENT_SUBSCRIBER = "event_subscriber"
    ASYNC_TASK = "async_task"
    MANUAL_COMMAND = "manual_command"


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


def operation(operation_id: str, kind: Kind) -> Callable[[C], C]:
    """Mark a class as an operation: each call of its instances is a span and a log line with the time it took.

    The class gains `operation_id` and `operation_kind`.
    """

    def decorate(cls: C) -> C:
        inner = cls.__call__

        @functools.wraps(inner)
        async def call(self: object, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            outcome = "failed"
            with span(operation_id):
                try:
                    result = await inner(self, *args, **kwargs)
                    outcome = "done"
                    return result
                except Refusal as refusal:
                    outcome = refusal.code
                    raise
                finally:
                    took_ms = (time.perf_counter() - started) * 1000
                    logger.debug("{} {} in {:.1f} ms", operation_id, outcome, took_ms)

        target = cast("Any", cls)
        target.__call__ = call
        target.operation_id = operation_id
        target.operation_kind = kind
        return cls

    return decorate
