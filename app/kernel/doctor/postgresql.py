"""Checks of the PostgreSQL server: reachable, safe settings, replication, privileges, connections, certificates."""

import asyncio
import shlex
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psycopg

from app.kernel.addresses import endpoints
from app.kernel.backup.primary import slot_name
from app.kernel.config import PostgresSettings
from app.kernel.db.libpq import Attempt
from app.kernel.db.server import Server, pooler, too_old
from app.kernel.doctor import Check, Finding, NotChecked, fail, in_shell, in_thread, warn
from app.kernel.doctor.certificates import expiry
from app.kernel.doctor.deployment import Deployment
from app.kernel.errors import Unavailable

_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""https://www.postgresql.org/docs/current/protocol-message-formats.html"""
_ASK_S = 3.0
_LAG_WARN_S, _LAG_FAIL_S = 60, 600
_KEPT_FAIL_BYTES = 5_000_000_000
_QUEUED_WARN, _QUEUED_FAIL = 0.1, 0.5  # of the 8 GB that notifications may take
_STATEMENT_MS = 2000
_DROP = "SELECT pg_drop_replication_slot('{}')"
_KEPT_ON_STANDBY = """
    SELECT greatest(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), restart_lsn), 1)::bigint FROM pg_replication_slots
    WHERE slot_name = %s AND NOT active AND restart_lsn IS NOT NULL AND pg_is_in_recovery()
"""
_EXTRA_CONNECTIONS = 3
"""Of one process beyond its pool: the listener, the renewer of leases, and one for the probes of a full pool."""

# bad value, level, why. Values that cost durability or let tables grow without end
_HARMFUL = {
    "fsync": ("off", fail, "a crash of the machine destroys the database"),
    "full_page_writes": ("off", fail, "a crash of the machine can destroy pages"),
    "autovacuum": ("off", fail, "tables grow without end, and transaction ids run out"),
    "track_counts": ("off", fail, "autovacuum does not work without it"),
    "synchronous_commit": ("off", warn, "a crash of the server loses what was committed just before"),
    "zero_damaged_pages": ("on", fail, "damaged pages are silently emptied"),
    "default_transaction_read_only": ("on", fail, "every change is refused"),
}


async def postgresql(d: Deployment) -> AsyncIterator[Finding]:
    """Connect as processes do: name, port, TLS, password, database, version."""
    reached = await d.reached()
    attempt = reached.attempt
    if attempt.is_pooled:
        error = pooler(reached.server.label)
        yield fail(str(error), error.hint)
    elif not attempt.server_version:
        yield fail(f"PostgreSQL at {reached.server.label}: {attempt.reason}", _remedy(d, attempt, is_direct=True))
    elif why := too_old(attempt.server_version):
        yield fail(f"PostgreSQL at {reached.server.label} is {why}", "pg_upgrade  # to 15 or newer")
    if (through := reached.through) is None:
        return
    label = reached.server.pool_label
    if not through.server_version:
        yield fail(f"PostgreSQL or PgBouncer at {label}: {through.reason}", _remedy(d, through))
    elif through.database != attempt.database:
        fix = f"export POSTGRES_DIRECT_HOST=NAME_OF_THE_SERVER  # that {label} leads to"
        yield fail(f"{label} leads to another database than {reached.server.label}", fix)


def _remedy(d: Deployment, attempt: Attempt, *, is_direct: bool = False) -> str:
    """Return a command for the reason of a failed attempt, and the hint that processes give."""
    settings = d[PostgresSettings]
    host, port = endpoints(settings.host or "localhost", settings.port)[0]
    if is_direct and settings.direct_host:
        host, port = endpoints(settings.direct_host, settings.direct_port or settings.port)[0]
    where = f"-h {shlex.quote(host)} -p {port}" if settings.host else "-U postgres"
    role, database = settings.user, settings.db
    match attempt.sqlstate[:2]:
        case "3D":
            command = f"createdb {where} -U postgres -O {shlex.quote(role)} {shlex.quote(database)}"
        case "42":
            command = _admin(f'GRANT CONNECT ON DATABASE "{database}" TO "{role}"', "postgres")
        case "28":
            command = f"psql {where} -U {shlex.quote(role)} -d {shlex.quote(database)}"
        case "53":
            command = _admin(
                "SELECT usename, application_name, count(*) FROM pg_stat_activity GROUP BY 1, 2", "postgres"
            )
        case _ if attempt.for_good or attempt.in_tls:
            command = f"openssl s_client -starttls postgres -connect {host}:{port}"
        case _:
            command = f"pg_isready {where}"
    return f"{command}  # {attempt.hint}"


async def server_settings(d: Deployment) -> AsyncIterator[Finding]:
    """Report settings of the server, the database and the role that endanger data or refuse work."""
    rows = await d.all("SELECT name, setting, source FROM pg_settings WHERE name = ANY(%s)", (list(_HARMFUL),))
    for name, setting, source in sorted(rows):
        bad, level, why = _HARMFUL[name]
        if setting == bad:
            yield level(f"{name} is {setting} ({source}): {why}", _set_back(d, name, source))
    encoding, checksums = await d.one("SELECT current_setting('server_encoding'), current_setting('data_checksums')")
    if encoding != "UTF8":
        fix = "CREATE DATABASE app2 ENCODING 'UTF8' TEMPLATE template0"
        yield fail(f"the encoding of the database is {encoding}, not UTF8", in_shell(fix))
    if checksums == "off":
        yield warn(
            "data_checksums is off: pages that the disk has damaged are read, and backed up, without an error",
            'pg_checksums --enable -D "$PGDATA"  # as the account of the server, while that is stopped',
        )
    (most,) = await d.one("SELECT current_setting('max_connections')::int")
    if most < 20:
        yield warn(f"max_connections is {most}: too few for several processes", _as_admin("max_connections", "100"))


def _set_back(d: Deployment, name: str, source: str) -> str:
    settings = d[PostgresSettings]
    if source == "user":
        return in_shell(f'ALTER ROLE "{settings.user}" RESET {name}')
    if source == "database":
        return in_shell(f'ALTER DATABASE "{settings.db}" RESET {name}')
    return _as_admin(name, "off" if _HARMFUL[name][0] == "on" else "on")


def _as_admin(name: str, value: str) -> str:
    reload = "SELECT pg_reload_conf()" if name != "max_connections" else "SELECT 'restart it now'"
    return f"psql -U postgres -c {shlex.quote(f'ALTER SYSTEM SET {name} = {value}')} -c {shlex.quote(reload)}"


async def replication(d: Deployment) -> AsyncIterator[Finding]:
    """Report a standby in place of the primary, standbys that lag, and slots that keep WAL for nobody."""
    server = (await d.reached()).server
    attempts = await server.attempts()
    for finding in _hosts(attempts):
        yield finding
    if await d.one("SELECT pg_is_in_recovery()") == (True,):
        if len(attempts) > 1:
            promote = "pg_ctl promote -D FOLDER  # on the standby that is to take over; docs/runbooks.md, Failover"
            yield fail(f"none of {server.label} is a primary that answers, so no changes are taken", promote)
        else:
            yield fail("the server is a standby, which takes no changes", "export POSTGRES_HOST=NAME_OF_THE_PRIMARY")
    else:
        async for finding in _of_primary(d):
            yield finding
    standbys = [label for label, ended in attempts.items() if ended.server_version and ended.is_read_only]
    slot = slot_name(d[PostgresSettings].db)
    for label in dict.fromkeys([*standbys, *server.replica_labels]):
        with suppress(Unavailable, psycopg.Error):  # the checks postgresql and replicas report it
            if kept_bytes := await _kept_on_standby(server, label, slot):
                host, _, port = label.rpartition(":")
                drop = f"psql -h {shlex.quote(host)} -p {port} -U postgres -c {shlex.quote(_DROP.format(slot))}"
                yield warn(
                    f"the standby {label}, a former primary, keeps {kept_bytes / 1e6:.0f} MB of WAL for backups, which"
                    f" come from the primary: the replication slot {slot} fills its disk",
                    drop,
                )


async def _kept_on_standby(server: Server, label: str, slot: str) -> int:
    """Return how much WAL a standby keeps for a slot, in bytes; 0 if it is no standby, or has no such slot."""
    connection = await server.open_reading(label, statement_timeout=_STATEMENT_MS)
    try:
        row = await (await connection.execute(_KEPT_ON_STANDBY, (slot,))).fetchone()
    finally:
        connection.drop()
    return row[0] if row else 0


async def _of_primary(d: Deployment) -> AsyncIterator[Finding]:
    lags = "SELECT application_name, extract(epoch FROM replay_lag)::float8 FROM pg_stat_replication"
    for name, lag_s in await d.all(lags):
        if lag_s is not None and lag_s > _LAG_WARN_S:
            look = in_shell("SELECT * FROM pg_stat_replication")
            yield (fail if lag_s > _LAG_FAIL_S else warn)(f"the standby {name} lags by {lag_s:.0f} s", look)
    slots = """
        SELECT slot_name, coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint,
            coalesce(wal_status, '')
        FROM pg_replication_slots WHERE NOT active AND NOT temporary
    """
    for name, kept_bytes, status in await d.all(slots):
        is_full = kept_bytes > _KEPT_FAIL_BYTES or status in ("unreserved", "lost")
        if name.startswith(slot_name("")) and not is_full:
            continue  # the agent of backups advances it without streaming with it
        problem = f"nobody reads the replication slot {name}, which keeps {kept_bytes / 1e6:.0f} MB of WAL on the disk"
        drop = in_shell(_DROP.format(name)) + "  # unless its reader returns soon"
        yield (fail if is_full else warn)(problem, drop)


def _hosts(attempts: Mapping[str, Attempt]) -> Iterator[Finding]:
    """Yield what is wrong with the hosts of `postgres.host`: several primaries, or one that could not take over."""
    if len(attempts) < 2:
        return
    primaries = [label for label, ended in attempts.items() if ended.server_version and not ended.is_read_only]
    if len(primaries) > 1:
        problem = f"{' and '.join(primaries)} accept writes: each lacks what was written to the other"
        yield fail(problem, "pg_ctl stop -m fast  # on the old primary; then docs/runbooks.md, Failover")
    for label, ended in attempts.items():
        if not ended.server_version:
            host, _, port = label.rpartition(":")
            yield warn(
                f"PostgreSQL at {label}: {ended.reason}", f"pg_isready -h {shlex.quote(host)} -p {port}  # {ended.hint}"
            )


async def privileges(d: Deployment) -> AsyncIterator[Finding]:
    """Report a role that may do too much, or cannot migrate."""
    sql = """
        SELECT rolsuper, rolname, rolconnlimit, has_schema_privilege('public', 'CREATE'),
            has_database_privilege(current_database(), 'CREATE')
        FROM pg_roles WHERE rolname = current_user
    """
    is_super, role, limit, in_public, in_database = await d.one(sql)
    if is_super and not d.is_published:
        yield warn(
            f"the role {role} is a superuser: a stolen password is the whole server",
            in_shell(_alter(role, "NOSUPERUSER")),
        )
    if 0 <= limit < d[PostgresSettings].pool_size:
        problem = f"the role {role} may have {limit} connections, fewer than postgres.pool_size"
        yield warn(problem, in_shell(_alter(role, "CONNECTION LIMIT -1")))
    database = d[PostgresSettings].db
    grants = {f'SCHEMA public TO "{role}"': in_public, f'DATABASE "{database}" TO "{role}"': in_database}
    for what, may in grants.items():
        if not may:
            yield fail(
                f"the role {role} cannot migrate: it lacks CREATE on {what.split()[0].lower()} {what.split()[1]}",
                _admin(f"GRANT CREATE ON {what}", database),
            )
    owners = """
        SELECT nspname, pg_get_userbyid(nspowner) FROM pg_namespace
        WHERE nspname = ANY(%s) AND NOT pg_has_role(current_user, nspowner, 'USAGE')
    """
    for schema, owner in await d.all(owners, (d.schemas,)):
        change = f'ALTER SCHEMA {schema} OWNER TO "{role}"'
        yield fail(f"the schema {schema} belongs to {owner}, so {role} cannot migrate it", _admin(change, database))


def _alter(role: str, what: str) -> str:
    return f'ALTER ROLE "{role}" {what}'


def _admin(statement: str, database: str) -> str:
    return f"psql -U postgres -d {shlex.quote(database)} -c {shlex.quote(statement)}"


async def connections(d: Deployment) -> AsyncIterator[Finding]:
    """Compare what all live processes may open with what the server allows; report notifications that nobody reads."""
    settings = d[PostgresSettings]
    sql = """
        SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
                - coalesce(current_setting('reserved_connections', true)::int, 0),
            (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
            (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
            (SELECT count(*) FROM pg_stat_activity
                WHERE backend_type = 'client backend' AND application_name !~ '^(run-|doctor@|migrate@)')::int,
            pg_notification_queue_usage()
    """
    most, of_database, of_role, others, queued = await d.one(sql)
    if queued > _QUEUED_WARN:
        problem = f"notifications fill {queued:.0%} of their queue, because a session listens and does not read"
        look = in_shell("SELECT pid, application_name, state, xact_start FROM pg_stat_activity ORDER BY xact_start")
        yield (fail if queued > _QUEUED_FAIL else warn)(problem, f"{look}  # then pg_terminate_backend of the oldest")
    most = min([most, *(limit for limit in (of_database, of_role) if limit >= 0)])
    live = await d.all("SELECT count(*)::int FROM kernel.processes WHERE last_seen_at > now() - interval '10 seconds'")
    processes = max(live[0][0], 1)
    through = (await d.reached()).through
    pool = 0 if through and through.is_pooled else settings.pool_size  # PgBouncer bounds its own
    needed = processes * (pool + _EXTRA_CONNECTIONS) + others
    if needed <= most * 0.9:
        return
    count = f"{processes} process{'es' if processes > 1 else ''}"
    problem = (
        f"{count} may open {pool} + {_EXTRA_CONNECTIONS} connections each (postgres.pool_size), others"
        f" have {others}: {needed} of {most} that the server allows"
    )
    fits = int((most * 0.9 - others) / processes) - _EXTRA_CONNECTIONS
    fix = f"export POSTGRES_POOL_SIZE={fits}" if fits > 0 else _as_admin("max_connections", str(needed * 2))
    yield (fail if needed > most else warn)(problem, fix)


async def certificates(d: Deployment) -> AsyncIterator[Finding]:
    """Report certificates that have expired or will soon: of the server, and of the authority for verify-full."""
    settings = d[PostgresSettings]
    if settings.ssl == "disable" or not settings.host or settings.host.startswith(("/", "@")):
        raise NotChecked("the connection to the database does not use TLS (postgres.ssl)")
    if settings.ssl == "verify-full" and settings.ssl_root_cert != "system":
        path = Path(settings.ssl_root_cert)
        try:
            content = await in_thread(path.read_bytes)
        except OSError as error:
            yield fail(
                f"postgres.ssl_root_cert: cannot read {path}: {error.strerror}", f"ls -l {shlex.quote(str(path))}"
            )
        else:
            look = f"openssl x509 -noout -enddate -in {shlex.quote(str(path))}"
            if finding := expiry(f"the certificate of the authority, {path},", content, look):
                yield finding
    for host, port in endpoints(settings.host, settings.port):
        look = f"openssl s_client -starttls postgres -connect {host}:{port} </dev/null"
        try:
            der = await _certificate(host, port)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            continue  # the check postgresql reports it
        if der is not None and (finding := expiry(f"the certificate of PostgreSQL at {host}", der, look)):
            yield finding


async def _certificate(host: str, port: int) -> bytes | None:
    """Return the certificate that the server presents, unverified, in DER; None without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with asyncio.timeout(_ASK_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(_SSL_REQUEST)
            if await reader.readexactly(1) != b"S":
                return None
            await writer.start_tls(context)
            return writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            with suppress(OSError):
                writer.transport.abort()


CHECKS = (
    Check("postgresql", "postgresql", "PostgreSQL answers, accepts us, and is new enough.", postgresql),
    Check("postgresql-settings", "postgresql", "Its settings are safe.", server_settings),
    Check("replication", "postgresql", "It is the primary, and its standbys keep up.", replication),
    Check("privileges", "postgresql", "Our role may do what it must, and no more.", privileges),
    Check(
        "connections", "postgresql", "All processes fit into max_connections, and notifications are read.", connections
    ),
    Check("certificates", "postgresql", "Certificates of its TLS are valid for a while.", certificates),
)
