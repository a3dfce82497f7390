"""Restores a data folder: fetches a backup, replays WAL, checks, stores the new timeline, and puts it in its place."""

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from app.kernel.backup import Backup, BackupInvalid
from app.kernel.backup.engine import Engine, Prepared, Progress, Restore
from app.kernel.backup.replay import Replayed, Until, replaying
from app.kernel.backup.scratch import Scratch, control
from app.kernel.backup.staging import staged
from app.kernel.backup.timelines import history_name
from app.kernel.db.devserver.child import Account
from app.kernel.errors import Refusal, Unavailable
from app.kernel.text import exact

_LEFT = ("backup_label.old", "tablespace_map.old", "backup_manifest")


@dataclass(frozen=True, slots=True)
class Restored:
    """A data folder in its place, ready to be started."""

    folder: Path
    former: Path | None
    """Where the folder is now that was replaced."""
    backup: Backup
    replayed: Replayed
    programs: Path
    took_s: float
    lost: str
    warning: str = ""

    @property
    def start_command(self) -> list[str]:
        """How to start it, as the owner of the folder; reachable by nobody else where it asks for no password."""
        owner = self.folder.stat()
        private = ["-o", "-c listen_addresses= -c unix_socket_permissions=0700"] if self._trusts() else []
        log = str(self.folder / "server.log")
        words = [str(self.programs / "pg_ctl"), "-D", str(self.folder), "-l", log, *private, "start"]
        if owner.st_uid != os.geteuid():
            words = ["setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups", *words]
        return words

    def _trusts(self) -> bool:
        """Return whether whoever reaches the server is let in, as with the data of the embedded one."""
        try:
            lines = (self.folder / "pg_hba.conf").read_text(errors="replace").splitlines()
        except OSError:  # it is elsewhere, as on Debian
            return False
        return any("trust" in line.partition("#")[0].split() for line in lines)


def restore(
    engine: Engine,
    wanted: Restore,
    progress: Progress,
    *,
    replaces: bool = False,
    account: Account | None = None,
    users: Sequence[str] = (),
) -> Restored:
    """Restore to the folder `wanted.into`, which becomes visible at the end; a former one is renamed, never deleted.

    Safe to repeat after it was killed. Raises NotFound, Invalid, Conflict, BackupInvalid, Unavailable; then nothing has
    changed.
    """
    begun = time.monotonic()
    with staged(wanted.into, replaces=replaces, account=account) as staging:
        prepared = engine.prepare(dataclasses.replace(wanted, into=staging.data), progress)
        if os.geteuid() == 0:
            os.chown(prepared.folder, staging.account.uid, staging.account.gid)
        until = Until(wanted.to, wanted.lsn, prepared.timeline)
        alive = progress.step("check", None)
        with replaying(prepared, until, action="promote", users=users, tick=lambda _: alive(0)) as (server, replayed):
            _check(server, prepared.backup)
        state = control(prepared.folder, prepared.programs).get("Database cluster state")
        if state != "shut down":
            raise Unavailable(f"PostgreSQL did not stop cleanly on {prepared.folder}: {state}")
        warning = _store(prepared, replayed)
        for name in _LEFT:
            (prepared.folder / name).unlink(missing_ok=True)
        former = staging.finish()
    took_s, lost = time.monotonic() - begun, _lost(wanted, prepared, replayed)
    return Restored(staging.place, former, prepared.backup, replayed, prepared.programs, took_s, lost, warning)


def _lost(wanted: Restore, prepared: Prepared, replayed: Replayed) -> str:
    """Return what the restored server does not have, in one line."""
    stored = prepared.stored
    if stored is None:
        return f"everything after the backup ({prepared.backup.stop_lsn}): no WAL after it is stored"
    if stored.gap:
        return f"everything after {replayed.lsn}; {stored.gap}"
    until = f"WAL was stored until {stored.lsn} at {exact(stored.stored_at)}"
    if not replayed.is_reached:
        return f"everything after {replayed.lsn}: the stored WAL ended before the moment that was wanted; {until}"
    if wanted.to or wanted.lsn:
        return f"everything after {exact(wanted.to) or wanted.lsn}, as wanted; {until}"
    return f"everything after {replayed.lsn}; {until}"


def _check(server: Scratch, backup: Backup) -> None:
    """Look at the database that was backed up, and flush everything, so that the server stops at once."""
    try:
        with psycopg.connect(server.conninfo(backup.database), autocommit=True) as connection:
            connection.execute("SELECT count(*) FROM pg_catalog.pg_class")
            connection.execute("CHECKPOINT")
    except psycopg.Error as error:
        message = f"the database {backup.database} of backup {backup.id} cannot be read after it was restored: {error}"
        raise BackupInvalid(message) from error


def _store(prepared: Prepared, replayed: Replayed) -> str:
    """Store the history of the new timeline; return a warning if that is not possible, as of a read-only target."""
    history = prepared.folder / "pg_wal" / history_name(replayed.timeline)
    try:
        prepared.store(history)
    except (Refusal, OSError) as error:
        return (
            f"the history of timeline {replayed.timeline} could not be stored ({error}): store {history.name} of pg_wal"
            " before another restore, which would use the number again"
        )
    return ""
