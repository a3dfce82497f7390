"""Runs of backups, drills, prunings and verifications: one at a time of each kind in a deployment, recorded."""

import os
import socket
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from loguru import logger
from psycopg.types.json import Jsonb

from app.kernel.backup import BackupRunning, Kind
from app.kernel.identifiers import uuid7
from app.kernel.telemetry.redact import redacted, redacted_fields
from app.kernel.text import storable, storable_tree

_LOCK: LiteralString = "SELECT pg_try_advisory_lock(hashtext('backup'), hashtext(%s))"
_WHO: LiteralString = """
    SELECT runner, started_at FROM kernel.backup_runs WHERE kind = %s AND state = 'running'
    ORDER BY started_at DESC LIMIT 1
"""
# whoever holds the lock is the only runner: the process of another row that is running has ended
_ABANDONED: LiteralString = """
    UPDATE kernel.backup_runs SET state = 'failed', finished_at = now(), problem = 'its process ended'
    WHERE kind = %s AND state = 'running'
"""
_BEGIN: LiteralString = (
    "INSERT INTO kernel.backup_runs (id, kind, state, engine, runner) VALUES (%s, %s, 'running', %s, %s)"
)
_END: LiteralString = """
    UPDATE kernel.backup_runs SET state = %(state)s, finished_at = now(), backup_id = %(backup_id)s,
        size_bytes = %(size_bytes)s, stored_bytes = %(stored_bytes)s, problem = %(problem)s, details = %(details)s
    WHERE id = %(id)s
"""


@dataclass(slots=True)
class Outcome:
    """What a run sets before it ends."""

    backup_id: str | None = None
    size_bytes: int | None = None
    stored_bytes: int | None = None
    problem: str | None = None
    """Set: the run has failed, although it ended."""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])


@contextmanager
def recorded(conninfo: str, kind: Kind, engine: str) -> Generator[Outcome]:
    """Run the body as the only run of its kind, and record its outcome. The body sets the fields of what is yielded.

    Raises BackupRunning when another one runs, and what the body raises, which is recorded as its problem.
    The body goes on if the connection is lost meanwhile; its outcome is then recorded over a new one.
    """
    runner, run = f"{socket.gethostname()}:{os.getpid()}", uuid7()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        if not _one(connection, _LOCK, kind):
            other = _one(connection, _WHO, kind)
            who = f"{other[0]} since {other[1]:%Y-%m-%d %H:%M:%S %Z}" if other else "another process"
            raise BackupRunning(f"a {kind} runs already: {who}")
        connection.execute(_ABANDONED, (kind,))
        connection.execute(_BEGIN, (run, kind, engine, runner))
        outcome = Outcome()
        try:
            yield outcome
        except BaseException as error:
            outcome.problem = str(error) or type(error).__name__
            raise
        finally:
            with suppress(psycopg.Error):
                _end(connection, run, outcome)
            if connection.broken:
                _end_elsewhere(conninfo, run, outcome)


@contextmanager
def recorded_if_possible(conninfo: str | None, kind: Kind, engine: str) -> Generator[Outcome]:
    """Run the body, and record its outcome if there is a database with the table for it. Raises as `recorded` does."""
    with ExitStack() as stack:
        outcome, reason = Outcome(), "there is no database"
        if conninfo is not None:
            try:
                outcome, reason = stack.enter_context(recorded(conninfo, kind, engine)), ""
            except psycopg.Error as error:
                reason = " ".join(str(error).split())
        if reason:
            logger.warning("the outcome of this {} is not recorded: {}", kind, reason)
        yield outcome


def _one(connection: psycopg.Connection[Any], statement: LiteralString, *parameters: object) -> Any:
    row = connection.execute(statement, parameters).fetchone()
    return row[0] if row is not None and len(row) == 1 else row


def _end(connection: psycopg.Connection[Any], run: object, outcome: Outcome) -> None:
    connection.execute(
        _END,
        {
            "id": run,
            "state": "failed" if outcome.problem else "succeeded",
            "backup_id": outcome.backup_id,
            "size_bytes": outcome.size_bytes,
            "stored_bytes": outcome.stored_bytes,
            "problem": outcome.problem and storable(redacted(outcome.problem)),
            "details": Jsonb(storable_tree(redacted_fields(outcome.details))),
        },
    )


def _end_elsewhere(conninfo: str, run: object, outcome: Outcome) -> None:
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            _end(connection, run, outcome)
    except psycopg.Error as error:
        logger.warning("the outcome of a backup run could not be recorded: {}", error)
