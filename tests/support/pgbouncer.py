"""PgBouncer as `deploy/pgbouncer/pgbouncer.ini` configures it, before a server of a test."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.conftest import program
from tests.support.debian import UNPRIVILEGED, DebianServer, as_unprivileged, free_port
from tests.support.leaks import WATCH
from tests.support.project import ROOT, eventually

CONFIGURATION = ROOT / "deploy" / "pgbouncer" / "pgbouncer.ini"


@dataclass
class PgBouncer:
    """A PgBouncer on a port of its own. `settings` replace those of the configuration, or are added."""

    server: DebianServer
    folder: Path
    settings: dict[str, str | int]
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def env(self) -> dict[str, str]:
        """Return the settings of a project that uses it."""
        return {**self.server.env, "POSTGRES_PORT": str(self.port), **self.direct}

    @property
    def direct(self) -> dict[str, str]:
        """Return the settings that lead round it."""
        return {"POSTGRES_DIRECT_HOST": "127.0.0.1", "POSTGRES_DIRECT_PORT": str(self.server.port)}

    def configure(self) -> None:
        """Write its files."""
        users = self.folder / "userlist.txt"
        users.write_text(f'"app" "{self.server.password}"\n"admin" "{self.server.password}"\n')
        text = CONFIGURATION.read_text().replace("port=5432", f"port={self.server.port}")
        ours = {"listen_port": self.port, "auth_file": users, "admin_users": "admin", **self.settings}
        kept = [line for line in text.splitlines() if line.partition(" = ")[0] not in ours]
        (self.folder / "pgbouncer.ini").write_text("\n".join([*kept, *(f"{k} = {v}" for k, v in ours.items())]) + "\n")

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self.configure()
        log = self.folder / "pgbouncer.log"
        WATCH.follow(log)
        with log.open("ab") as written:
            self.process = subprocess.Popen(
                [*as_unprivileged(), program("pgbouncer"), str(self.folder / "pgbouncer.ini")],
                stdout=written,
                stderr=written,
            )

        def answers() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(log.read_text())
            with suppress(psycopg.OperationalError):
                self.tell("SHOW VERSION")
                return True
            return False

        eventually(answers)

    def tell(self, command: str) -> list[tuple]:
        """Give it a command of its console."""
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="admin",
            password=self.server.password,
            dbname="pgbouncer",
            autocommit=True,
        ) as connection:
            found = connection.execute(command.encode())
            return found.fetchall() if found.description else []

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, at once."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None


@contextmanager
def pgbouncer(server: DebianServer, **settings: str | int) -> Iterator[PgBouncer]:
    """Run it before a server, in a folder that an unprivileged user can read; it ends afterwards."""
    with tempfile.TemporaryDirectory(prefix="pgbouncer-", dir="/tmp") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            os.chown(folder, UNPRIVILEGED, UNPRIVILEGED)
        found = PgBouncer(server, folder, settings)
        found.start()
        try:
            yield found
        finally:
            found.end()
