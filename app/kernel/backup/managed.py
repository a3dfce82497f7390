"""Backups by the provider of the database: one command lists them, another restores one to a scratch server."""

import json
import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NoReturn

from annotated_types import Ge, Len, Lt
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping
from pydantic import Field

from app.kernel.backup import Backup, BackupInvalid, TargetUnavailable
from app.kernel.backup.engine import Damaged, Prepared, Progress, Pruned, Restore, Verified, Wal, named
from app.kernel.config.backup import BackupSettings
from app.kernel.config.settings import Misconfigured
from app.kernel.decoding import Decoder
from app.kernel.errors import Denied, Invalid, NotFound
from app.kernel.product import NAME
from app.kernel.text import exact

_STATUS_S, _RESTORE_S, _REMOVE_S = 60.0, 6 * 3600.0, 3600.0
_STOP_S = 30.0
_LOOK_S = 0.2
_OUTPUT_BYTES, _TOLD_BYTES = 4 * 2**20, 4000
_AHEAD = timedelta(minutes=5)
"""Clocks may differ by so much."""
_ROUNDED = timedelta(seconds=1)
_CONNECT_S = 10
_NOWHERE = "0/0"
_DOCS = f"{NAME} config explain backup.engine"
Word = Annotated[str, Field(pattern=r"^[!-~]{1,200}$")]


@dataclass(frozen=True, slots=True)
class ProvidedBackup:
    """A backup of the provider: its name there, when it was begun and complete, and its size, if that is known."""

    id: Word
    started_at: datetime
    finished_at: datetime
    size_bytes: Annotated[int, Ge(0), Lt(2**63)] = 0
    server_version: Annotated[int, Ge(0)] = 0
    """Such as 180004."""


@dataclass(frozen=True, slots=True)
class Status:
    """What backup.managed_status prints. `restorable_until`: every moment until then, since the oldest, is stored."""

    backups: Annotated[list[ProvidedBackup], Len(0, 10_000)]
    restorable_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """What backup.managed_restore prints: where the scratch server is, and what it was restored to, if that is known.

    Roles, passwords and databases are those of the backup.
    """

    host: Word
    port: Annotated[int, Field(ge=1, le=65535)] = 5432
    restored_to: datetime | None = None


_STATUS: Decoder[Status] = Decoder(Status)
_ADDRESS: Decoder[Address] = Decoder(Address)


@dataclass(frozen=True, slots=True)
class Managed:
    """The engine `managed`. Its commands do not get variables of the environment that begin with one of `withheld`."""

    settings: BackupSettings
    withheld: tuple[str, ...] = ()
    name: str = "managed"
    label: str = "the provider of the database"
    _known: list[Status] = field(default_factory=list[Status], repr=False)

    def status(self) -> Status:
        """Ask the provider, once. Raises Misconfigured, TargetUnavailable, BackupInvalid for what it prints."""
        if not self._known:
            found = _decoded(_STATUS, "managed_status", self._run("managed_status", _STATUS_S, {}))
            latest = datetime.now(UTC) + _AHEAD
            for backup in found.backups:
                if not backup.started_at <= backup.finished_at <= latest:
                    raise _unusable(
                        "managed_status", f"{backup.id} is finished before it was started, or in the future"
                    )
            if len({backup.id for backup in found.backups}) != len(found.backups):
                raise _unusable("managed_status", "two backups have the same id")
            if found.restorable_until is not None and found.restorable_until > latest:
                raise _unusable("managed_status", "restorable_until is in the future")
            self._known.append(found)
        return self._known[0]

    def list(self) -> Sequence[Backup]:
        found = sorted(self.status().backups, key=lambda one: (one.finished_at, one.id))
        return [_backup(one) for one in found]

    def get(self, id: str, cluster: str = "") -> Backup:  # noqa: A002, ARG002 - as in the command
        return named(self.list(), id, "", self.label)

    def damaged(self) -> Sequence[Damaged]:
        return ()

    def used_bytes(self) -> int | None:
        return None

    def wal(self, cluster: str) -> Wal | None:  # noqa: ARG002 - the provider has one
        until = self.status().restorable_until
        return Wal(0, _NOWHERE, until) if until else None

    def create(self, conninfo: str, progress: Progress) -> Backup:  # noqa: ARG002
        self._refuse("takes backups")

    def verify(self, backup: Backup, progress: Progress) -> Verified:  # noqa: ARG002
        self._refuse("keeps backups where they cannot be read; a drill proves them")

    def prepare(self, restore: Restore, progress: Progress) -> Prepared:  # noqa: ARG002
        self._refuse("restores to servers, not to folders")

    def prune(self, progress: Progress, *, is_dry: bool) -> Pruned:  # noqa: ARG002
        self._refuse("deletes backups, by its own retention")

    @contextmanager
    def restored(self, scratch: str, restore: Restore, progress: Progress) -> Generator[Address]:
        """Restore to a scratch server of a name, and remove it afterwards; what a killed one has left first.

        Raises NotFound, Misconfigured, TargetUnavailable, BackupInvalid, Stopped.
        """
        backup = self._chosen(restore)
        self.remove(scratch, progress)
        try:
            yield self._restore(scratch, backup, restore, progress)
        finally:
            self.remove(scratch, Progress(lambda _name, _size: lambda _done: None))

    def restore(self, scratch: str, restore: Restore, progress: Progress) -> Address:
        """Restore to a scratch server of a name, which stays. Raises like `restored`."""
        return self._restore(scratch, self._chosen(restore), restore, progress)

    def _restore(self, scratch: str, backup: Backup, restore: Restore, progress: Progress) -> Address:
        to = restore.to.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if restore.to else ""
        variables = {
            "RESTORE_ACTION": "restore",
            "RESTORE_SCRATCH": scratch,
            "RESTORE_BACKUP": backup.id,
            "RESTORE_TO": to,
        }
        printed = self._run("managed_restore", _RESTORE_S, variables, progress)
        address: Address = _decoded(_ADDRESS, "managed_restore", printed)
        earliest, latest = backup.started_at - _AHEAD, datetime.now(UTC) + _AHEAD
        if restore.to is not None:
            latest = min(latest, restore.to + _ROUNDED)
        if address.restored_to is not None and not earliest <= address.restored_to <= latest:
            until = f"restored_to is {exact(address.restored_to)}"
            wanted = f", and {exact(restore.to)} was asked for" if restore.to else ""
            raise _unusable("managed_restore", f"{until}, from the backup of {exact(backup.finished_at)}{wanted}")
        where = make_conninfo("", host=address.host, port=address.port, connect_timeout=_CONNECT_S)
        if PGconn.ping(where.encode()) != Ping.OK:  # which needs no role
            message = f"the server {scratch} does not accept connections at {address.host}:{address.port}"
            raise TargetUnavailable(
                f"{message}, which backup.managed_restore printed", hint=_explain("managed_restore")
            )
        return address

    def remove(self, scratch: str, progress: Progress) -> None:
        """Remove the scratch server of a name. Safe to repeat."""
        variables = {"RESTORE_ACTION": "remove", "RESTORE_SCRATCH": scratch, "RESTORE_BACKUP": "", "RESTORE_TO": ""}
        self._run("managed_restore", _REMOVE_S, variables, progress)

    def _chosen(self, restore: Restore) -> Backup:
        """Return the backup to restore, or to begin with if a time is wanted."""
        if restore.lsn or restore.timeline:
            raise Denied("backup.engine is managed: the provider restores to a time, not to a position or a timeline")
        until = self.status().restorable_until
        if restore.to is None:
            return self.get(restore.backup or "latest")
        found = [backup for backup in self.list() if backup.finished_at <= restore.to]
        if not found or until is None or restore.to > until:
            oldest = self.list()[:1]
            reach = f"from {oldest[0].finished_at:%Y-%m-%dT%H:%M:%SZ}" if oldest else "from nowhere"
            reach += f" to {until:%Y-%m-%dT%H:%M:%SZ}" if until else ", and only whole backups"
            raise NotFound(f"that time cannot be restored: the provider has everything {reach}")
        return found[-1]

    def _refuse(self, what: str) -> NoReturn:
        raise Denied(f"backup.engine is managed: the provider of the database {what}", hint=_DOCS)

    def _run(self, setting: str, limit_s: float, variables: dict[str, str], progress: Progress | None = None) -> bytes:
        """Run a command; return what it printed. It is ended when this is left, with what it has started."""
        words = _words(setting, getattr(self.settings, setting))
        advance = progress.step(f"{setting}: {variables.get('RESTORE_ACTION', 'ask')}", None) if progress else _idle
        passed = {name: value for name, value in os.environ.items() if not name.startswith((*self.withheld, "APP_ENV"))}
        with tempfile.TemporaryFile() as errors:
            try:
                child = subprocess.Popen(  # noqa: S603 - the words of a setting, without a shell
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env={**passed, **variables},
                    start_new_session=True,
                )
            except OSError as error:
                raise Misconfigured(f"backup.{setting}: {words[0]} cannot be run: {error.strerror}") from None
            try:
                printed = _read(child, setting, limit_s, advance)
            finally:
                _end(child)
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - _TOLD_BYTES))
            told = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
        if child.returncode != 0:
            why = re.sub(r"[^ -~]", "?", told[-1])[:500] if told else "it said nothing on stderr"
            raise TargetUnavailable(f"backup.{setting} ended with the status {child.returncode}: {why}")
        return printed


def _idle(_done: int) -> None:
    """Ignore progress."""


def _words(setting: str, command: str) -> Sequence[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise Misconfigured(f"backup.{setting} is not a command: {error}", hint=_explain(setting)) from None
    if not words:
        raise Misconfigured(f"backup.engine is managed, and backup.{setting} is not set", hint=_explain(setting))
    return words


def _explain(setting: str) -> str:
    return f"{NAME} config explain backup.{setting}"


def _read(child: "subprocess.Popen[bytes]", setting: str, limit_s: float, advance: Any) -> bytes:
    assert child.stdout is not None
    printed, deadline = bytearray(), time.monotonic() + limit_s
    poll = select.poll()
    poll.register(child.stdout, select.POLLIN)
    while True:
        advance(0)
        if time.monotonic() > deadline:
            raise TargetUnavailable(f"backup.{setting} did not end within {limit_s:g} s")
        if not poll.poll(_LOOK_S * 1000):
            if child.poll() is not None:  # what it has started holds the pipe
                return bytes(printed)
            continue
        if not (chunk := os.read(child.stdout.fileno(), 65_536)):
            break
        printed += chunk
        if len(printed) > _OUTPUT_BYTES:
            raise _unusable(setting, f"it prints more than {_OUTPUT_BYTES} bytes")
    with suppress(subprocess.TimeoutExpired):
        child.wait(max(0.0, deadline - time.monotonic()))
    return bytes(printed)


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a command that still runs, and what it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            with suppress(subprocess.TimeoutExpired):
                child.wait(_STOP_S)
    if child.stdout:
        child.stdout.close()


def _decoded(decoder: Decoder[Any], setting: str, printed: bytes) -> Any:
    try:
        return decoder.json(json.loads(printed))
    except (ValueError, RecursionError) as error:
        raise _unusable(setting, "it is no JSON") from error
    except Invalid as error:
        fields = "; ".join(f"{name or 'it'} {message}" for name, message in error.fields[:3])
        raise _unusable(setting, fields or str(error)) from error


def _unusable(setting: str, why: str) -> BackupInvalid:
    return BackupInvalid(f"what backup.{setting} prints cannot be used: {why}", hint=_explain(setting))


def _backup(one: ProvidedBackup) -> Backup:
    return Backup(
        id=one.id,
        cluster="",
        engine="managed",
        started_at=one.started_at,
        finished_at=one.finished_at,
        timeline=0,
        start_lsn=_NOWHERE,
        stop_lsn=_NOWHERE,
        server_version=one.server_version,
        app_version="",
        schema="",
        database="",
        size_bytes=one.size_bytes,
        stored_bytes=one.size_bytes,
    )
