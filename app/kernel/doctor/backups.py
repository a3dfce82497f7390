"""Checks of what the database has recorded about backups; they run in any process."""

from collections.abc import AsyncIterator

from app.kernel.backup.watching import Problem, look, problems
from app.kernel.config import BackupSettings
from app.kernel.doctor import Check, Finding, NotChecked, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.product import NAME

_SET = f"export BACKUP_TARGET=s3://BUCKET/PREFIX BACKUP_KEY_FILE=FILE  # then {NAME} run-backup-agent; docs/backups.md"

_RUNBOOKS = {"BackupUnattended": "BackupMissing"}
"""Sections of docs/runbooks.md with another name than the problem."""


async def _problems(d: Deployment) -> list[Problem] | None:
    """Return what is wrong; None where there are no backups."""
    state = await look(d.all)
    if not state.is_expected(d[BackupSettings]):
        return None
    return [*problems(state, d[BackupSettings], is_published=d.is_published)]


def _findings(found: list[Problem] | None, about: str) -> list[Finding]:
    """Return the findings of a kind. Raises NotChecked where there are no backups."""
    if found is None:
        raise NotChecked("there are no backups (backup.target)")
    return [
        Finding(each.level, each.text, each.fix, runbook=_RUNBOOKS.get(each.type, each.type))
        for each in found
        if each.type.startswith(about)
    ]


async def backups(d: Deployment) -> AsyncIterator[Finding]:
    """Report backups that are missing, old or failed, and a queue of backups without a worker."""
    found = await _problems(d)
    if found is None and not d.is_published:
        yield warn("nobody takes backups of this database", _SET)
        return
    for finding in _findings(found, "Backup"):
        yield finding


async def wal(d: Deployment) -> AsyncIterator[Finding]:
    """Report WAL that is missing on the target, or stored late."""
    for finding in _findings(await _problems(d), "Wal"):
        yield finding


async def drills(d: Deployment) -> AsyncIterator[Finding]:
    """Report a drill that failed, and drills that are overdue."""
    for finding in _findings(await _problems(d), "Drill"):
        yield finding


CHECKS = (
    Check("backups", "backup", "The newest backup is young and whole.", backups, quick=True, runbook="BackupStale"),
    Check("wal", "backup", "WAL is stored in time, without gaps.", wal, quick=True, runbook="WalNotStored"),
    Check("drills", "backup", "The last drill restored a backup.", drills, quick=True, runbook="DrillFailed"),
)
