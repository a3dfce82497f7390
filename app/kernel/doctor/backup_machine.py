"""Checks of what backups need: settings of the server and, where they are taken, target, key and programs."""

import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psycopg

from app.kernel.backup import Target
from app.kernel.backup.catalogue import PROBES
from app.kernel.backup.engine import Engine, engine_of, unstored
from app.kernel.backup.primary import primary, slot_name
from app.kernel.backup.watching import BackupRun, StoredWal, look
from app.kernel.config import BackupSettings, Misconfigured, PostgresSettings
from app.kernel.db import Row
from app.kernel.doctor import Check, Finding, NotChecked, fail, in_shell, in_thread, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.errors import NotFound, Refusal, Unavailable
from app.kernel.product import NAME
from app.kernel.text import size_text

_SHOWN = 3
_SERVER = """
    SELECT rolname, rolsuper OR rolreplication, current_setting('wal_level'), current_setting('max_wal_senders')::int,
        current_setting('max_slot_wal_keep_size'), current_setting('archive_mode'), current_setting('archive_command'),
        current_setting('archive_timeout')
    FROM pg_roles WHERE rolname = current_user
"""
_RELOAD = "-c 'SELECT pg_reload_conf()'"
_SLOT = "SELECT coalesce(wal_status, 'lost') FROM pg_replication_slots WHERE slot_name = %s"


def _taken_here(d: Deployment) -> BackupSettings:
    """Return the settings of a machine that takes backups, or asks who does. Raises NotChecked elsewhere."""
    settings = d[BackupSettings]
    missing = {
        "builtin": "" if settings.target else "no target is set here (backup.target)",
        "pgbackrest": "" if shutil.which("pgbackrest") else "pgbackrest is not installed here",
        "managed": "" if settings.managed_status else "no backup.managed_status is set here",
    }[settings.engine]
    if missing:
        raise NotChecked(f"{missing}: look where run-backup-agent runs")
    if d.fetching is not None:
        raise NotChecked("a secret is missing, see secrets")
    return settings


async def target(d: Deployment) -> AsyncIterator[Finding]:
    """Report a target, a repository or a provider that does not answer, and records that are damaged.

    The newest backup that the database knows must be there, whole, and the WAL that is recorded as stored. On the
    target of the engine builtin, a small object is stored, read and deleted.
    """
    settings = _taken_here(d)
    ours = d.data / os.path.expanduser(settings.target)  # noqa: ASYNC240, PTH111 - reads no disk
    is_folder = settings.engine == "builtin" and "://" not in settings.target
    if is_folder and ours.is_relative_to(d.data) and not await in_thread(ours.exists):
        raise NotChecked(f"there is no backup yet, and no {ours}")
    try:
        state = await look(d.all)
        newest, wal = state.good("backup"), state.wal
    except NotChecked:  # the database is unavailable; the target is as important then
        newest = wal = None
    try:
        for finding in await in_thread(lambda: [*_of_target(engine_of(d.settings, d.data), newest, wal)]):
            yield finding
    except Misconfigured as error:
        yield fail(str(error), error.hint or f"{NAME} config explain backup.engine")
    except Refusal as error:
        about = "s3_endpoint" if settings.engine == "builtin" else "engine"
        if "s3_access_key" in str(error) or "access key" in str(error):
            about = "s3_access_key"
        fix = f"{NAME} config explain backup.{about}"
        if is_folder:
            folder = shlex.quote(str(ours))
            fix = f"df -h {folder}" if await in_thread(ours.is_dir) else f"mkdir -p {folder}  # or mount its disk"
        yield fail(str(error), fix)


def _of_target(engine: Engine, newest: BackupRun | None, wal: StoredWal | None) -> Iterator[Finding]:
    from app.kernel.backup.builtin import Builtin

    if isinstance(engine, Builtin):
        yield from _of_objects(engine.target)
    listed, damaged = engine.list(), engine.damaged()
    for one in [*damaged][:_SHOWN]:
        yield fail(one.problem, one.hint or f"{NAME} backup verify {one.backup}")
    if len(damaged) > _SHOWN:
        yield fail(f"and {len(damaged) - _SHOWN} more backups are damaged", f"{NAME} backup list")
    for text, fix in unstored(engine, {each.id for each in listed} | {each.backup for each in damaged}, newest, wal):
        yield fail(text, fix)


def _of_objects(target: Target) -> Iterator[Finding]:
    probe, content = f"{PROBES}{socket.gethostname()}-{os.getpid()}", os.urandom(16)
    target.put(probe, [content], replace=True)
    if b"".join(target.get(probe)) != content:
        text = f"{target.label} returns something else than what was stored"
        yield fail(text, f"{NAME} config explain backup.target")
    target.delete([probe])
    with suppress(NotFound):
        b"".join(target.get(probe))
        yield fail(f"{target.label} does not delete objects, so nothing can be pruned", "correct its rules")


async def server(d: Deployment) -> AsyncIterator[Finding]:
    """Report a role and settings of the server with which no backup can be taken, or WAL is lost."""
    settings, slot = d[BackupSettings], slot_name(d[PostgresSettings].db)
    slots = await d.all(_SLOT, (slot,))
    if slots and (settings.engine, settings.wal) != ("builtin", "stream"):
        text = f"the replication slot {slot} is unused and keeps WAL: nothing streams it any more (backup.wal)"
        yield warn(text, in_shell(f"SELECT pg_drop_replication_slot('{slot}')"))
    if settings.engine == "managed":
        raise NotChecked("backup.engine is managed: the provider configures the server")
    if not (await look(d.all)).is_expected(settings):
        raise NotChecked("there are no backups (backup.target)")
    role, may, level, senders, kept, *archiving = await d.one(_SERVER)
    found: list[Finding] = []
    if level == "minimal":
        found.append(fail("wal_level is minimal, so no backup can be taken", _restart("wal_level = replica")))
    if settings.engine == "builtin":
        found += _of_role(role, may, senders)
        if settings.target and not found:
            found += await in_thread(partial(_of_access, (await d.reached()).server.conninfo()))
    if settings.engine == "pgbackrest" or settings.wal == "archive":
        found += _of_archiving(settings, *archiving)
    elif settings.wal == "stream":
        found += _of_slot(slot, kept, slots, is_published=d.is_published)
    for finding in found:
        yield finding


def _of_role(role: str, may: bool, senders: int) -> Iterator[Finding]:
    if not may:
        grant = shlex.quote(f'ALTER ROLE "{role}" REPLICATION')
        yield fail(f"the role {role} may take no backups: it lacks REPLICATION", f"psql -U postgres -c {grant}")
    if not senders:
        yield fail("max_wal_senders is 0, so no backup can be taken", _restart("max_wal_senders = 10"))


def _of_access(conninfo: str) -> list[Finding]:
    """Report a server that does not let this machine, which takes backups, replicate (pg_hba.conf)."""
    try:
        with primary(conninfo) as found:
            found.history()
    except Unavailable as error:
        return [fail(str(error), f"psql -U postgres {_RELOAD}")]
    except psycopg.Error as error:
        raise NotChecked("the database does not answer") from error
    return []


def _of_slot(slot: str, kept: str, found: list[Row], *, is_published: bool) -> Iterator[Finding]:
    if kept == "-1" and not is_published:
        text = "max_slot_wal_keep_size is unlimited: while WAL is not stored, it fills the disk of the server"
        yield warn(text, _set("max_slot_wal_keep_size = '20GB'"))
    if found == [("lost",)]:
        text = f"the replication slot {slot} has lost WAL (max_slot_wal_keep_size)"
        yield fail(text, f"{NAME} run-backup-agent  # makes a new one, and has a backup taken")


def _of_archiving(settings: BackupSettings, mode: str, command: str, timeout: str) -> Iterator[Finding]:
    words, right = "backup archive-wal", f"{NAME} backup archive-wal %p"
    if settings.engine == "pgbackrest":
        words, right = "pgbackrest", f"pgbackrest --stanza={settings.pgbackrest_stanza} archive-push %p"
    archive = f"archive_command = '{right}'"
    if mode == "off":
        yield fail("archive_mode is off, so no WAL is stored", _restart("archive_mode = on", archive))
    elif words not in command:
        yield fail(f"archive_command does not run `{words}`, so no WAL is stored", _set(archive))
    elif timeout == "0":
        yield warn("archive_timeout is 0: WAL is not stored until a segment is full", _set("archive_timeout = 60"))


def _set(*settings: str) -> str:
    return f"{_altered(*settings)} {_RELOAD}"


def _restart(*settings: str) -> str:
    return f"{_altered(*settings)}  # then restart the server"


def _altered(*settings: str) -> str:
    return " ".join(["psql -U postgres", *(f"-c {shlex.quote(f'ALTER SYSTEM SET {each}')}" for each in settings)])


async def machine(d: Deployment) -> AsyncIterator[Finding]:
    """Report what drills and backups need here and is missing: programs of PostgreSQL, room, a command to restore."""
    settings = _taken_here(d)
    if settings.engine == "managed":
        if not settings.managed_restore:
            text = "backup.managed_restore is not set, so there can be no drills"
            yield warn(text, f"{NAME} config explain backup.managed_restore")
        return
    from app.kernel.backup.drill.place import room_for
    from app.kernel.backup.programs import programs_for
    from app.kernel.db.devserver.embedded import embedded_binaries

    reached = await d.reached()
    if not (version := reached.attempt.server_version):
        raise NotChecked("the database does not answer")
    needs = [(True, warn)] if settings.engine == "pgbackrest" else [(False, fail), (True, warn)]
    for exact, missing in needs:  # for backups, and for drills
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
    Check("backup-server", "backup", "The server lets us take backups, and keeps or archives WAL.", server),
    Check("backup-target", "backup", "The storage of backups answers and has the newest one.", target, 20.0),
    Check("backup-machine", "backup", "Programs of PostgreSQL and room for drills are here.", machine),
)
