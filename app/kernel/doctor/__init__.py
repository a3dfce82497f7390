"""Checks of what a deployment needs. Each problem comes with its remedy; a check changes nothing.

A check is an async generator of findings: none means that all is well. It raises NotChecked when its subject
is out of reach, which another check reports.
"""

import asyncio
import shlex
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

from app.kernel.product import NAME

if TYPE_CHECKING:
    from app.kernel.doctor.deployment import Deployment

T = TypeVar("T")
Level = Literal["warn", "fail"]
Status = Literal["ok", "warn", "fail", "skip"]
Repair = Callable[[], Awaitable[None]]
"""Removes the cause of a finding. Safe to repeat. Raises what a check may raise."""


class NotChecked(Exception):
    """The check could not examine its subject; the message says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem and its remedy: a command, or a setting with its value. `repair`, if it is safe, does it."""

    level: Level
    problem: str
    fix: str
    repair: Repair | None = field(default=None, repr=False)
    runbook: str = ""
    """The section of docs/runbooks.md about it, if not that of the check."""


def warn(problem: str, fix: str, repair: Repair | None = None) -> Finding:
    """Return a finding despite which the deployment works."""
    return Finding("warn", problem, fix, repair)


def fail(problem: str, fix: str, repair: Repair | None = None) -> Finding:
    """Return a finding that keeps a part of the deployment from working, or endangers data."""
    return Finding("fail", problem, fix, repair)


def in_shell(statement: str) -> str:
    """Return the command that runs a statement on the database of the settings."""
    return f"{NAME} db shell -c {shlex.quote(statement)}"


class Check(NamedTuple):
    """A check under its name. Names are unique, lower case, with hyphens.

    A `quick` check asks only the database, with `all` and `one`: the overview runs it. `runbook` is the section of
    docs/runbooks.md about what it finds.
    """

    name: str
    group: str
    summary: str
    run: "Callable[[Deployment], AsyncIterator[Finding]]"
    timeout_s: float = 8.0
    quick: bool = False
    runbook: str = ""


@dataclass(frozen=True, slots=True)
class Need:
    """What needs attention: the finding of a check, and the section of the runbooks with its first paragraph."""

    check: str
    level: Level
    problem: str
    fix: str
    runbook: str = ""
    paragraph: str = ""


class Attention(Protocol):
    """Runs the quick checks in a process."""

    async def needs(self) -> list[Need]:
        """Return what needs attention, what fails first. The result is a few seconds old at most."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a check; `reason` says why it was skipped."""

    check: Check
    status: Status
    findings: Sequence[Finding] = ()
    reason: str = ""
    is_late: bool = False
    """Whether it did not end in time: a thread of it may hang."""


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking work in a daemon thread, so that a file system that hangs does not keep the command from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # pyright: ignore[reportArgumentType] - T, as there was no error

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001 - raised again in the loop
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True, name="check").start()
    return await done
