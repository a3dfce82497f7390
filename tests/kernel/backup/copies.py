"""Physical copies of a test's server, as an engine of backups without a target."""

import shutil
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from app.kernel.backup import Backup
from app.kernel.backup.counts import take_counts
from app.kernel.backup.engine import Prepared, Progress, Pruned, Restore, Verified, Wal
from app.kernel.db.devserver.embedded import embedded_binaries
from tests.conftest import TestDatabase, program

PROGRESS = Progress(lambda _name, _size: lambda _done: None)


def programs() -> Path:
    """Return the folder of the programs that fit the servers of tests."""
    return embedded_binaries() or Path(program("postgres")).parent


@dataclass
class Copies:
    """Takes copies with pg_basebackup; WAL after them comes from the data folder of the server."""

    database: TestDatabase
    folder: Path
    name: str = "copies"
    taken: list[Backup] = field(default_factory=list)
    stored: Wal | None = None

    def create(self, conninfo: str, progress: Progress) -> Backup:
        began, server = datetime.now(UTC), self.database.server
        base = self.folder / f"base-{len(self.taken)}"
        where = ("-h", server.host, "-p", str(server.port), "-U", server.user)
        command = [programs() / "pg_basebackup", *where, "-D", base, "-X", "fetch", "--checkpoint=fast", "--no-sync"]
        subprocess.run(command, check=True, timeout=60)
        size = sum(path.stat().st_size for path in base.rglob("*") if path.is_file())
        with psycopg.connect(conninfo) as connection:
            row = connection.execute(
                "SELECT system_identifier::text, pg_current_wal_lsn()::text,"
                " (SELECT max(migration_id) FROM _migrations) FROM pg_control_system()"
            ).fetchone()
        assert row is not None
        cluster, lsn, schema = row
        backup = Backup(
            id=base.name,
            cluster=cluster,
            engine=self.name,
            started_at=began,
            finished_at=datetime.now(UTC),
            timeline=1,
            start_lsn=lsn,
            stop_lsn=lsn,
            server_version=180000,
            app_version="0",
            schema=schema,
            database=self.database.name,
            size_bytes=size,
            stored_bytes=size,
            counts=take_counts(conninfo),
        )
        self.taken.append(backup)
        return backup

    def list(self) -> Sequence[Backup]:
        return self.taken

    def wal(self, cluster: str) -> Wal | None:
        return self.stored

    def verify(self, backup: Backup, progress: Progress) -> Verified:
        raise NotImplementedError

    def prepare(self, restore: Restore, progress: Progress) -> Prepared:
        [backup] = [backup for backup in self.taken if backup.id == restore.backup]
        shutil.copytree(self.folder / backup.id, restore.into)
        return Prepared(backup, restore.into, programs(), self._wal)

    @contextmanager
    def _wal(self) -> Generator[str]:
        found = next(self.database.server.folder.rglob("pg_wal"))
        archive = self.folder / "archive"
        archive.mkdir(exist_ok=True)
        for path in found.iterdir():
            if path.is_file():
                shutil.copy(path, archive)
        archive.chmod(0o755)
        for path in archive.iterdir():
            path.chmod(0o644)
        yield f"cp {archive}/%f %p 2>/dev/null"

    def prune(self, *, is_dry: bool) -> Pruned:
        raise NotImplementedError
