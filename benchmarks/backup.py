"""Backup and restore against plain `pg_basebackup` to the same disk, and `GET /me` during a backup.

`python -m benchmarks.backup [gigabytes [rounds]]`
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import psycopg

from app.kernel.db.devserver.embedded import embedded_binaries
from benchmarks.http import log_in
from benchmarks.measure import Broken, Table, free_port, interleaved, postgres, project, scratch, wait_ready
from tests.conftest import PostgresServer
from tests.support.project import Project

ROWS_PER_GB = 4_600_000
PER_S, QUIET_S, WITHIN_S = 100, 20.0, 600
PLAIN, BACKUP, RESTORE = "plain pg_basebackup", "app backup create", "app backup restore"
# like an audit trail: ids and digests, which hardly compress, beside words, which do
FILL = """
    CREATE TABLE filling AS
    SELECT gen_random_uuid() AS id, now() - n * interval '5 seconds' AS at, 'auth.action' || n % 60 AS action,
        'actor:' || n % 5000 AS target, jsonb_build_object('n', n, 'digest', md5(n::text)) AS details,
        '10.0.' || n % 250 || '.' || n % 199 AS address, 'Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0' AS agent
    FROM generate_series(1, {rows}) n
"""
LAST = "SELECT count(*) FROM kernel.backup_runs WHERE kind = 'backup' AND state = 'succeeded'"


def timed(command: list[str], of: Project) -> float:
    """Return the seconds a command takes."""
    started = time.perf_counter()
    done = subprocess.run(command, env=of.environment(), cwd=of.root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Broken(f"{' '.join(command)}: {done.returncode} {done.stderr[-1000:]}")
    return time.perf_counter() - started


def transfers(of: Project, server: PostgresServer, folder: Path) -> dict[str, Callable[[], float]]:
    """Return what is timed in turns. Each deletes what it has written, and waits until the disk is idle."""
    programs = embedded_binaries()
    if programs is None:
        raise Broken("the embedded PostgreSQL is not installed")
    app = [of.python, "-m", "app", "backup"]
    plain = [str(programs / "pg_basebackup"), "-h", server.host, "-p", str(server.port), "-U", server.user]

    def into(made: Path, command: list[str]) -> Callable[[], float]:
        def measure() -> float:
            took_s = timed(command, of)
            shutil.rmtree(made)
            os.sync()
            return took_s

        return measure

    def backup() -> float:
        for former in (folder / "target").iterdir():
            shutil.rmtree(former)
        os.sync()
        took_s = timed([*app, "create", "--no-input"], of)
        os.sync()
        return took_s

    return {
        PLAIN: into(folder / "plain", [*plain, "-D", str(folder / "plain"), "-X", "stream", "-c", "fast"]),
        BACKUP: backup,
        RESTORE: into(folder / "restored", [*app, "restore", "--into", str(folder / "restored"), "--no-input"]),
    }


def latencies(port: int, token: str, until: Callable[[], bool]) -> list[float]:
    """Return the milliseconds of requests at a steady rate, from when each was due, until told to end."""
    lines = ["GET /auth/v1/me HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Authorization: Bearer {token}"]
    request, took_ms = "\r\n".join([*lines, "\r\n"]).encode(), list[float]()
    started, due_in = time.perf_counter(), count()
    while True:  # the server closes a connection after some requests
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answer = b""
            while b"connection: close" not in answer.lower():
                due = started + next(due_in) / PER_S
                time.sleep(max(0.0, due - time.perf_counter()))
                sock.sendall(request)
                if b" 200 " not in (answer := sock.recv(65536))[:16]:
                    raise Broken(f"unexpected: {answer!r}")
                took_ms.append((time.perf_counter() - due) * 1000)
                if len(took_ms) % PER_S == 0 and until():
                    return took_ms


def p99(took_ms: list[float]) -> float:
    return sorted(took_ms)[int(len(took_ms) * 0.99)]


def beside(of: Project, connection: psycopg.Connection, port: int, token: str) -> dict[str, Callable[[], float]]:
    """Return what measures `GET /me` in run-all-in-one: by itself, and while its job takes a backup."""

    def quiet() -> float:
        end = time.monotonic() + QUIET_S
        return p99(latencies(port, token, lambda: time.monotonic() > end))

    def busy() -> float:
        [before] = connection.execute(LAST).fetchone() or (0,)
        end = time.monotonic() + WITHIN_S
        if (asked := of.app("schedules", "trigger", "platform.backup")).returncode != 0:
            raise Broken(asked.stderr)

        def is_over() -> bool:
            if time.monotonic() > end:
                raise Broken("the backup does not end")
            return (connection.execute(LAST).fetchone() or (0,))[0] > before

        return p99(latencies(port, token, is_over))

    return {"quiet": quiet, "during a backup": busy}


def main() -> None:
    given = [float(text) for text in sys.argv[1:]]
    gigabytes, rounds = given + [5.0, 3][len(given) :]
    with scratch() as folder, postgres(folder / "pg") as server, project(folder, server) as of:
        (folder / "target").mkdir()
        of.env |= {
            "AUTH_MASTER_SECRET": secrets.token_hex(),
            "BACKUP_TARGET": str(folder / "target"),
            "BACKUP_KEY": secrets.token_hex(),
            "BACKUP_WAL": "none",
        }
        if (made := of.app("migrate", "up")).returncode != 0:
            raise Broken(made.stderr)
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute(FILL.format(rows=int(gigabytes * ROWS_PER_GB)).encode())
            connection.execute("CREATE INDEX ON filling (id)")
            connection.execute("VACUUM (ANALYZE, FREEZE) filling")
            connection.execute("CHECKPOINT")
            [size] = connection.execute("SELECT sum(pg_database_size(oid))::bigint FROM pg_database").fetchone() or (0,)
            table = Table(f"Backups of {size / 1e9:.1f} GB, medians of {rounds:g} rounds in turns")
            os.sync()
            took_s = interleaved(transfers(of, server, folder), int(rounds))
            for name, seconds in took_s.items():
                table.add(f"`{name}`", size / 1e6 / seconds, " MB/s")
            stored = json.loads(of.app("backup", "list", "--json").stdout)
            table.add("size on the target", stored["items"][0]["stored_bytes"] / size * 100, "%")
            for name in (BACKUP, RESTORE):
                table.add(f"speed of `{name}` / {PLAIN}", took_s[PLAIN] / took_s[name] * 100, "%", least=80)
            port = free_port()
            wait_ready(of.start("run-all-in-one", "--port", str(port)).popen, port)
            found = interleaved(beside(of, connection, port, log_in(of, port)["access_token"]), int(rounds))
            for name, milliseconds in found.items():
                table.add(f"`GET /me` at {PER_S}/s, {name}, p99", milliseconds, " ms")
            table.add("during a backup / quiet", found["during a backup"] / found["quiet"], "x", most=1.5)
    table.show()


if __name__ == "__main__":
    main()
