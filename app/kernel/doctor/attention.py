"""What needs attention now: the quick checks of `doctor`, on the connections of a running process."""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import LiteralString

from app.kernel.db import Database, Parameters, Row
from app.kernel.doctor import Check, Finding, Need, NotChecked, Result
from app.kernel.doctor.deployment import Deployment
from app.kernel.doctor.run import run_checks
from app.kernel.errors import Unavailable
from app.kernel.process import Process
from app.kernel.telemetry.redact import redacted

_REMEMBERED_S = 3.0
_WITHIN_S = 4.0
_AT_ONCE = 2


class _Inside(Deployment):
    """The deployment as a process of it sees it. Checks share a few connections of its pool."""

    def __init__(self, db: Database, p: Process, modules: Sequence[str]) -> None:
        super().__init__(p.settings, None, [*p.settings.sections], p.root, p.data, modules)
        self._db = db
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def fetch(self) -> None:
        """Do nothing: quick checks need no secret."""

    async def all(self, sql: LiteralString, parameters: Parameters = ()) -> list[Row]:
        async with self._turns:
            try:
                return await self._db.all(sql, parameters)
            except Unavailable as error:
                raise NotChecked(str(error)) from error


class QuickChecks:
    """Runs the quick checks when somebody asks, for everybody who asks within a few seconds."""

    def __init__(self, db: Database, p: Process, modules: Sequence[str], checks: Callable[[], Sequence[Check]]) -> None:
        """`checks` imports them."""
        self._new_deployment = lambda: _Inside(db, p, modules)
        self._root = p.root
        self._checks = checks
        self._running: asyncio.Task[list[Need]] | None = None
        self._until = 0.0

    async def needs(self) -> list[Need]:
        """Return what needs attention, what fails first."""
        if self._running is None or (self._running.done() and time.monotonic() > self._until):
            self._running = asyncio.ensure_future(self._run())
        return await asyncio.shield(self._running)

    async def _run(self) -> list[Need]:
        checks = [check for check in self._checks() if check.quick]
        results = await run_checks(self._new_deployment(), checks, _WITHIN_S)
        self._until = time.monotonic() + _REMEMBERED_S
        found = [self._need(result, finding) for result in results for finding in result.findings]
        return sorted(found, key=lambda need: need.level != "fail")

    def _need(self, result: Result, finding: Finding) -> Need:
        section = finding.runbook or result.check.runbook
        text = paragraph(self._root, section) if section else ""
        return Need(result.check.name, finding.level, redacted(finding.problem), finding.fix, section, text)


@cache
def paragraph(root: Path, section: str) -> str:
    """Return the first paragraph of a section of the runbooks as plain text; empty without the document."""
    try:
        text = (root / "docs" / "runbooks.md").read_text()
    except OSError:
        return ""
    body = text.partition(f"\n## {section}\n")[2].lstrip()
    first = " ".join(re.split(r"\n\n|\n#", body, maxsplit=1)[0].split())
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", first)
