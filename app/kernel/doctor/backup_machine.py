"""Checks of what backups need: a server that streams WAL; and on a machine that takes them target, key and programs."""

import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from app.kernel.backup.primary import slot_name
from app.kernel.backup.watching import look
from app.kernel.config import BackupSettings, Misconfigured, PostgresSettings
from app.kernel.db import Row
from app.kernel.doctor import Check, Finding, NotChecked, fail, in_shell, in_thread, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.errors import NotFound, Refusal
from app.kernel.product import NAME
from app.kernel.text import size_text

if TYPE_CHECKING:
    from app.kernel.backup.builtin import Builtin

_SHOWN = 3
_SERVER = """
    SELECT rolname, rolsuper OR rolreplication, current_setting('wal_level'), current_setting('max_wal_senders')::int,
        current_setting('max_slot_wal_keep_size'), current_setting('archive_mode'), current_setting('archive_command'),
        current_setting('archive_timeout')
    FROM pg_roles WHERE rolname = current_user
"""
_SLOT = "SELECT coalesce(wal_status, 'lost') FROM pg_replication_slots WHERE slot_name = %s"


def _taken_here(d: Deployment) -> BackupSettings:
    """Return the settings of a machine that takes backups. Raises NotChecked elsewhere."""
    settings = d[BackupSettings]
    if settings.engine != "builtin":
        raise NotChecked(f"backup.engine is {settings.engine}")
    if not settings.target:
        raise NotChecked("no target is set here (backup.target): look where run-backup-agent runs")
    if d.fetching is not None:
        raise NotChecked("a secret is missing, see secrets")
    return settings


def _engine(d: Deployment, settings: BackupSettings) -> "Builtin":
    from app.kernel.backup.builtin import Builtin
    from app.kernel.backup.sealed import Keys
    from app.kernel.backup.targets import target_of
    from app.kernel.db.devserver.embedded import embedded_binaries

    return Builtin(settings, target_of(settings, d.data), Keys.of(settings), embedded_binaries())


async def target(d: Deployment) -> AsyncIterator[Finding]:
    """Store, read and delete a small object on the target; report records that are damaged or sealed with another key.

    The newest backup that the database knows must be there, whole.
    """
    settings = _taken_here(d)
    ours = d.data / settings.target
    if "://" not in settings.target and ours.is_relative_to(d.data) and not await in_thread(ours.exists):
        raise NotChecked(f"there is no backup yet, and no {ours}")
    try:
        newest = (await look(d.all)).good("backup")
    except NotChecked:  # the database is away; the target is as important then
        newest = None
    known = newest.backup_id if newest is not None and newest.engine == "builtin" else None
    try:
        for finding in await in_thread(lambda: [*_of_target(_engine(d, settings), known)]):
            yield finding
    except Misconfigured as error:
        yield fail(str(error), error.hint or f"{NAME} config explain backup.target")
    except Refusal as error:
        is_folder = "://" not in settings.target
        yield fail(
            str(error), f"df -h {shlex.quote(str(ours))}" if is_folder else f"{NAME} config explain backup.s3_endpoint"
        )


def _of_target(engine: "Builtin", known: str | None) -> Iterator[Finding]:
    stores, probe = engine.target, f"probe/{socket.gethostname()}-{os.getpid()}"
    content = os.urandom(16)
    stores.put(probe, [content], replace=True)
    if b"".join(stores.get(probe)) != content:
        yield fail(
            f"{stores.label} returns something else than what was stored", f"{NAME} config explain backup.target"
        )
    stores.delete([probe])
    try:
        b"".join(stores.get(probe))
    except NotFound:
        pass
    else:
        yield fail(f"{stores.label} does not delete objects, so nothing can be pruned", "correct its rules")
    damaged = engine.damaged()
    for one in [*damaged][:_SHOWN]:
        yield fail(one.problem, f"{NAME} backup verify {one.backup}")
    if len(damaged) > _SHOWN:
        yield fail(f"and {len(damaged) - _SHOWN} more backups are damaged", f"{NAME} backup list")
    if known and known not in {each.id for each in engine.list()} | {each.backup for each in damaged}:
        yield fail(f"the newest backup, {known}, is not on {stores.label}", f"{NAME} backup create")


async def server(d: Deployment) -> AsyncIterator[Finding]:
    """Report a role and settings of the server with which no backup can be taken, or WAL is lost."""
    settings, slot = d[BackupSettings], slot_name(d[PostgresSettings].db)
    found = await d.all(_SLOT, (slot,))
    if found and (settings.engine, settings.wal) != ("builtin", "stream"):
        text = f"the replication slot {slot} keeps WAL for nobody: nothing streams it any more (backup.wal)"
        yield warn(text, in_shell(f"SELECT pg_drop_replication_slot('{slot}')"))
    if settings.engine != "builtin":
        raise NotChecked(f"backup.engine is {settings.engine}")
    if not (await look(d.all)).is_expected(settings):
        raise NotChecked("there are no backups (backup.target)")
    role, may, level, senders, kept, *archiving = await d.one(_SERVER)
    if not may:
        grant = shlex.quote(f'ALTER ROLE "{role}" REPLICATION')
        yield fail(f"the role {role} may take no backups: it lacks REPLICATION", f"psql -U postgres -c {grant}")
    if level == "minimal":
        yield fail("wal_level is minimal, so no backup can be taken", _restart("wal_level = replica"))
    if not senders:
        yield fail("max_wal_senders is 0, so no backup can be taken", _restart("max_wal_senders = 10"))
    of_wal = {
        "stream": lambda: _of_slot(slot, kept, found, is_published=d.is_published),
        "archive": lambda: _of_archiving(*archiving),
        "none": lambda: (),
    }
    for finding in of_wal[settings.wal]():
        yield finding


def _of_slot(slot: str, kept: str, found: list[Row], *, is_published: bool) -> Iterator[Finding]:
    if kept == "-1" and not is_published:
        text = "max_slot_wal_keep_size is unlimited: while WAL is not stored, it fills the disk of the server"
        yield warn(text, _set("max_slot_wal_keep_size = '20GB'"))
    if found == [("lost",)]:
        text = f"the replication slot {slot} has lost WAL (max_slot_wal_keep_size)"
        yield fail(text, f"{NAME} run-backup-agent  # makes a new one, and has a backup taken")


def _of_archiving(mode: str, command: str, timeout: str) -> Iterator[Finding]:
    if mode == "off" or "archive-wal" not in command:
        what = "archive_mode is off" if mode == "off" else "archive_command does not run `backup archive-wal`"
        remedy = _restart("archive_mode = on", _ARCHIVE) if mode == "off" else _set(_ARCHIVE)
        yield fail(f"{what}, so no WAL is stored (backup.wal: archive)", remedy)
    elif timeout == "0":
        yield warn("archive_timeout is 0: WAL is not stored until a segment is full", _set("archive_timeout = 60"))


_ARCHIVE = f"archive_command = '{NAME} backup archive-wal %p'"


def _set(*settings: str) -> str:
    return f"{_altered(*settings)} -c {shlex.quote('SELECT pg_reload_conf()')}"


def _restart(*settings: str) -> str:
    return f"{_altered(*settings)}  # then restart the server"


def _altered(*settings: str) -> str:
    return " ".join(["psql -U postgres", *(f"-c {shlex.quote(f'ALTER SYSTEM SET {each}')}" for each in settings)])


async def machine(d: Deployment) -> AsyncIterator[Finding]:
    """Report programs of PostgreSQL that are missing or too old, and too little room for a drill."""
    settings = _taken_here(d)
    from app.kernel.backup.drill.place import room_for
    from app.kernel.backup.programs import programs_for
    from app.kernel.db.devserver.embedded import embedded_binaries

    reached = await d.reached()
    if not (version := reached.attempt.server_version):
        raise NotChecked("the database does not answer")
    for exact, missing in ((False, fail), (True, warn)):  # for backups, and for drills
        try:
            await in_thread(partial(programs_for, version, settings, embedded_binaries(), exact=exact))
        except Misconfigured as error:
            yield missing(str(error), error.hint or f"{NAME} config explain backup.programs")
            break
    newest = (await look(d.all)).good("backup")
    scratch = Path(settings.scratch or tempfile.gettempdir())
    try:
        free = (await in_thread(partial(shutil.disk_usage, scratch))).free
    except OSError as error:
        yield fail(f"backup.scratch: {scratch}: {error.strerror}", f"mkdir -p {shlex.quote(str(scratch))}")
        return
    needed = room_for(newest.size_bytes or 0) if newest is not None else 0
    if free < needed:
        text = f"a drill needs {size_text(needed)}, and {scratch} has {size_text(free)}"
        yield warn(text, "export BACKUP_SCRATCH=FOLDER  # with more room")


CHECKS = (
    Check("backup-server", "backup", "The server lets us take backups, and keeps WAL for them.", server),
    Check("backup-target", "backup", "The target takes, returns and deletes; its records are whole.", target, 20.0),
    Check("backup-machine", "backup", "Programs of PostgreSQL and room for drills are here.", machine),
)
