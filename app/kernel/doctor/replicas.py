"""The check of the replicas that reads are made on."""

import shlex
from collections.abc import AsyncIterator

import psycopg

from app.kernel.config import PostgresSettings
from app.kernel.db.replicas import REPLAYED, WRITTEN
from app.kernel.db.server import Server
from app.kernel.doctor import Check, Finding, NotChecked, fail, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.errors import Unavailable

_STATEMENT_MS = 2000
_LAG = "SELECT coalesce(extract(epoch FROM now() - pg_last_xact_replay_timestamp()), 0)::float8"


async def replicas(d: Deployment) -> AsyncIterator[Finding]:
    """Report replicas that do not answer, are no standbys of the primary, or lag by too much."""
    reached = await d.reached()
    server = reached.server
    if not server.replicas:
        raise NotChecked("no replicas are configured (postgres.replica_hosts)")
    if reached.attempt.is_read_only:
        raise NotChecked("no host of postgres.host accepts writes")
    written, system = await d.one(WRITTEN)
    for label in server.replica_labels:
        try:
            replayed, of_system, lag_s = await _measured(server, label)
        except (Unavailable, psycopg.Error) as error:
            host, _, port = label.rpartition(":")
            yield warn(
                f"the replica {label} does not answer: {' '.join(str(error.__cause__ or error).split())}",
                f"pg_isready -h {shlex.quote(host)} -p {port}",
            )
            continue
        if of_system != system:
            yield fail(f"the replica {label} is no copy of this database", _without(label))
        elif label == server.primary and len(server.replica_labels) == 1:
            yield warn(f"the only replica, {label}, is the primary, so reads do not leave it", _without(label))
        elif replayed is None and label != server.primary:
            yield fail(f"the replica {label} is no standby: it was promoted, or copied", _without(label))
        elif replayed is not None and replayed < written and lag_s > (most := d[PostgresSettings].replica_max_lag):
            problem = f"the replica {label} lags by {lag_s:.0f} s, more than postgres.replica_max_lag ({most:g} s)"
            yield warn(problem, "SELECT pg_is_wal_replay_paused(), * FROM pg_stat_wal_receiver  # in psql, there")


async def _measured(server: Server, label: str) -> tuple[int | None, int, float]:
    """Return what a replica has replayed, of which system, and the age of the last transaction that it replayed."""
    connection = await server.open_reading(label, statement_timeout=_STATEMENT_MS)
    try:
        replayed = await (await connection.execute(REPLAYED)).fetchone()
        lag = await (await connection.execute(_LAG)).fetchone()
    finally:
        connection.drop()
    assert replayed is not None
    assert lag is not None
    return replayed[0], replayed[1], lag[0]


def _without(label: str) -> str:
    return f"export POSTGRES_REPLICA_HOSTS=...  # without {label}"


CHECKS = (Check("replicas", "postgresql", "Replicas for reads follow the primary closely.", replicas),)
