"""Drills: restore a backup from the target alone, and prove what came back."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from subprocess import SubprocessError
from typing import Any, Literal

import psycopg

from app.kernel.errors import Refusal

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Check:
    """What a check has found: a summary of what it looked at, and problems in one line each."""

    name: str
    state: Literal["ok", "failed", "skipped"]
    summary: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """The result of the function of a check. `skipped`: why it could not look."""

    summary: str = ""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: str = ""


@dataclass(slots=True)
class Drill:
    """A drill and its results so far. Times in seconds, null while they are unknown."""

    backup_id: str
    cluster: str
    engine: str
    started_at: datetime
    server_version: int
    app_version: str
    schema: str
    size_bytes: int
    stored_bytes: int
    checks: list[Check] = field(default_factory=list[Check])
    rto_s: float | None = None
    """From the begin until the restored server had answered a login."""
    rpo_s: float | None = None
    """What a loss of the server when it began would have lost: the time since the last commit that was stored."""
    restored_to: datetime | None = None
    """The time of the last commit that was restored."""
    restored_lsn: str = ""

    @property
    def failed(self) -> list[Check]:
        """The checks that have failed."""
        return [check for check in self.checks if check.state == "failed"]

    @property
    def problem(self) -> str | None:
        """The failed checks in one line; None if the drill has succeeded."""
        if not self.failed:
            return None
        return "; ".join(f"{check.name}: {check.problems[0]}" for check in self.failed)

    def details(self) -> Mapping[str, Any]:
        """Return what is recorded, and printed with --json."""
        return {**asdict(self), "started_at": self.started_at.isoformat(), "restored_to": _text(self.restored_to)}

    def check(self, name: str, work: Callable[[], Found]) -> Check:
        """Run a check and keep its result. What it raises is a problem: it could not prove what it is for."""
        started = time.monotonic()
        try:
            found = work()
        except (Refusal, psycopg.Error, OSError, SubprocessError) as error:
            found = Found(problems=(" ".join(str(error).split()) or type(error).__name__,))
        state = "failed" if found.problems else "skipped" if found.skipped else "ok"
        seconds = round(time.monotonic() - started, 3)
        problems = found.problems[:_SHOWN]
        if len(found.problems) > _SHOWN:
            problems = (*problems, f"and {len(found.problems) - _SHOWN:,} more")
        self.checks.append(Check(name, state, found.skipped or found.summary, problems, found.notes[:_SHOWN], seconds))
        return self.checks[-1]


def _text(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None
