"""The support bundle: data for remote diagnosis, without secrets, payloads and personal data.

A part that fails or takes too long is recorded, and the others are kept.
"""

import asyncio
import io
import json
import os
import platform
import sys
import tarfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import LiteralString, NamedTuple

from app.kernel.config import LoggerSettings, schema
from app.kernel.config.files import CannotRead, read_value
from app.kernel.doctor import Check, in_thread
from app.kernel.doctor.deployment import Deployment
from app.kernel.doctor.run import run_checks
from app.kernel.doctor.show import as_dict
from app.kernel.product import NAME, VERSION
from app.kernel.telemetry.redact import is_secret_name, redacted, redacted_fields, remember
from app.kernel.text import error_text, storable_tree

_PART_S = 40.0
_LOG_BYTES = 200_000
_PART_BYTES = 2_000_000
_ERRORS = 50

Part = Callable[[], Awaitable[object]]

# without payloads, keys and statements, which may be personal data
_QUERIES: dict[str, LiteralString] = {
    "postgresql": """
        SELECT name, setting, unit, source FROM pg_settings
        WHERE name = ANY(%(names)s) OR name LIKE 'autovacuum%%' ORDER BY name
    """,
    "connections": """
        SELECT application_name, state, wait_event_type, count(*), max(now() - state_change)::text AS longest
        FROM pg_stat_activity WHERE backend_type = 'client backend' GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT 200
    """,
    "tables": """
        SELECT schemaname || '.' || relname AS table, pg_total_relation_size(relid) AS size_bytes, n_live_tup,
            n_dead_tup, last_autovacuum, last_vacuum, last_analyze, last_autoanalyze
        FROM pg_stat_user_tables WHERE schemaname = ANY(%(schemas)s) ORDER BY 2 DESC LIMIT 500
    """,
    "queues": """
        SELECT q.name, q.paused_at, q.paused_until, q.concurrency, q.seen_at, j.state, count(j.id),
            min(j.run_at) AS oldest
        FROM kernel.queues q FULL JOIN kernel.jobs j ON j.queue = q.name
        GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 6 LIMIT 500
    """,
    "dead_letters": """
        SELECT queue, task, count(*), max(died_at) AS newest FROM kernel.dead_letters
        GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 200
    """,
    "schedules": """
        SELECT name, task, queue, spec, misfire, overlap, next_fire_at, last_fire_at, fired_count, skipped_count,
            paused_at, paused_until, seen_at
        FROM kernel.schedules ORDER BY name LIMIT 500
    """,
    "processes": """
        SELECT name, version, host, pid, state, services, started_at, last_seen_at, memory_bytes, worker, workers
        FROM kernel.processes
        ORDER BY name LIMIT 500
    """,
    "captured_errors": """
        SELECT kind, type, title, culprit, state, count, processes, first_seen_at, last_seen_at, first_release,
            last_release, samples
        FROM kernel.errors ORDER BY last_seen_at DESC LIMIT %(errors)s
    """,
}
_SETTINGS = [
    "server_version", "max_connections", "shared_buffers", "work_mem", "maintenance_work_mem", "effective_cache_size",
    "fsync", "full_page_writes", "synchronous_commit", "wal_level", "max_wal_size", "max_wal_senders",
    "superuser_reserved_connections", "max_prepared_transactions", "server_encoding", "TimeZone", "jit", "ssl",
]  # fmt: skip


class Collected(NamedTuple):
    """The parts of a bundle by file name, and the reasons of those that failed."""

    contents: dict[str, bytes]
    failed: dict[str, str]
    is_late: bool
    """Whether a part was not ready in time: a thread of it may hang."""


def remember_all(d: Deployment) -> None:
    """Redact every secret that can be known, also of invalid settings and of variables that are not ours."""
    remember(d.settings.secrets())
    secret = {setting.variable for kind in d.sections for setting in schema(kind) if setting.is_secret}
    secret |= {f"{name}_FILE" for name in secret}
    for name, value in d.environ.items():
        if name not in secret and not is_secret_name(name):
            continue
        remember({value, *value.split()})
        if name.endswith("_FILE"):
            with suppress(CannotRead):
                found = read_value(value)
                remember({found, *found.split()})


def parts(d: Deployment, checks: Sequence[Check]) -> dict[str, Part]:
    """Return the parts of the bundle by file name."""
    found: dict[str, Part] = {
        "version.json": lambda: in_thread(_version),
        "packages.txt": lambda: in_thread(_packages),
        "environment.txt": lambda: in_thread(lambda: "\n".join(sorted(d.environ)) + "\n"),
        "settings.json": lambda: in_thread(lambda: _settings(d)),
        "doctor.json": lambda: _doctor(d, checks),
        "migrations.json": lambda: _rows(d, "SELECT migration_id, applied_at_utc FROM _migrations ORDER BY 1"),
        **{f"{name}.json": _query(d, sql) for name, sql in _QUERIES.items()},
    }
    for name, path in _logs(d).items():
        found[name] = _tail(path)
    return found


def _version() -> object:
    return {
        "product": NAME,
        "version": VERSION,
        "python": sys.version,
        "platform": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "cpus": os.cpu_count(),
        "user": os.geteuid(),
        "at": datetime.now(UTC),
    }


def _packages() -> str:
    found = {f"{found.name}=={found.version}" for found in metadata.distributions()}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def _settings(d: Deployment) -> object:
    values = [{"setting": v.key, "value": v.value, "source": v.source} for v in d.settings.values()]
    return {"environment": d.environment, "error": str(d.error or ""), "settings": values}


async def _doctor(d: Deployment, checks: Sequence[Check]) -> object:
    return as_dict(d, await run_checks(d, checks))


async def _rows(d: Deployment, sql: LiteralString) -> list[dict[str, object]]:
    given = {"names": _SETTINGS, "schemas": d.schemas, "errors": _ERRORS}
    names, rows = await d.table(sql, given)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _query(d: Deployment, sql: LiteralString) -> Part:
    return lambda: _rows(d, sql)


def _logs(d: Deployment) -> dict[str, Path]:
    found = {"embedded-supervisor.log": d.data / "postgres/supervisor.log"}
    if LoggerSettings in d.settings.sections and d[LoggerSettings].output != "stdout":
        found["log.txt"] = Path(d[LoggerSettings].output)
    return {name: path for name, path in found.items() if name == "log.txt" or os.path.lexists(path)}


def _tail(path: Path) -> Part:
    def read() -> str:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_BYTES))
            if size > _LOG_BYTES:
                file.readline()  # the rest of a line may begin within a secret
            return file.read(_LOG_BYTES).decode(errors="replace")

    return lambda: in_thread(read)


async def collect(found: Mapping[str, Part]) -> Collected:
    """Return the redacted content of each part, and the reasons of those that failed."""
    late = False

    async def one(part: Part) -> bytes | str:
        try:
            async with asyncio.timeout(_PART_S):
                return _redacted(await part())
        except TimeoutError:
            nonlocal late
            late = True
            return f"not ready within {_PART_S:g} s"
        except Exception as error:  # noqa: BLE001 - of any part
            return redacted(error_text(error))

    done = await asyncio.gather(*(one(part) for part in found.values()))
    contents = {name: content for name, content in zip(found, done, strict=True) if isinstance(content, bytes)}
    failed = {name: reason for name, reason in zip(found, done, strict=True) if isinstance(reason, str)}
    return Collected(contents, failed, late)


def _redacted(content: object) -> bytes:
    if isinstance(content, str):
        text = redacted(content)
    else:  # before it is JSON, in which a secret may be escaped
        text = json.dumps(redacted_fields({"content": storable_tree(content)})["content"], indent=1, ensure_ascii=False)
    return text.encode(errors="replace")[:_PART_BYTES]


def write(path: Path, contents: Mapping[str, bytes], failed: Mapping[str, str]) -> None:
    """Write the archive, readable for its owner only. Raises FileExistsError, OSError; nothing is left of it then."""
    folder = path.name.removesuffix(".tar.gz")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            more = {"failed.json": json.dumps(failed, indent=1).encode()} if failed else {}
            for name, content in sorted({**contents, **more}.items()):
                member = tarfile.TarInfo(f"{folder}/{name}")
                member.size, member.mode, member.mtime = len(content), 0o600, int(time.time())
                archive.addfile(member, io.BytesIO(content))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
