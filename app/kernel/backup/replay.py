"""Replays WAL on a data folder that was fetched: up to a time, up to a position, or all that is stored."""

import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, LiteralString

import psycopg
from psycopg.rows import TupleRow

from app.kernel.backup.engine import Prepared
from app.kernel.backup.scratch import Scratch, ServerEnded, scratch_server, telling
from app.kernel.errors import Unavailable

_ATTEMPTS = 6
_REFUSED_S = 60.0
_MISSED = "recovery ended before configured recovery target was reached"
_TOO_LOW = ("insufficient parameter settings", "is a lower setting than on the")
_LAST_TRANSACTION = re.compile(rb"last completed transaction was at log time (\S+ \S+)")
_IS_THERE: LiteralString = """
    SELECT CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() = 'paused' ELSE true END
"""
_STATE: LiteralString = """
    SELECT pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp(),
        CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_insert_lsn()) END
"""


@dataclass(frozen=True, slots=True)
class Until:
    """How far to replay: all transactions committed until a time, or all WAL before a position; else everything."""

    to: datetime | None = None
    lsn: str = ""
    timeline: int | None = None

    def options(self) -> dict[str, str]:
        """Return the settings of recovery."""
        found = {"recovery_target_timeline": str(self.timeline or "latest")}
        if self.to is not None:
            found |= {"recovery_target_time": self.to.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")}
        elif self.lsn:
            found |= {"recovery_target_lsn": self.lsn, "recovery_target_inclusive": "off"}
        return found


@dataclass(frozen=True, slots=True)
class Replayed:
    """How far WAL was replayed, and the timeline on which the server goes on; 0 while it is paused.

    `is_reached` is False if the stored WAL ended before the target.
    """

    lsn: str
    timeline: int
    last_transaction_at: datetime | None
    is_reached: bool = True


@contextmanager
def replaying(
    prepared: Prepared,
    until: Until,
    *,
    action: Literal["promote", "pause"],
    options: Mapping[str, str] | None = None,
    users: Sequence[str] = (),
    tick: Callable[[Scratch], object] = lambda _: None,
    orderly: bool = True,
) -> Generator[tuple[Scratch, Replayed]]:
    """Run a server that has replayed WAL, and then accepts writes (`promote`), or only reads (`pause`).

    After `pause`, another call replays on. Without a target, and when the stored WAL ends before it, the server has
    replayed all and accepts writes. Raises Unavailable with the reason when it cannot replay, and whatever kept WAL
    from being fetched.
    """
    is_reached, newest = True, None
    (prepared.folder / "standby.signal").unlink(missing_ok=True)  # of a backup of a standby; its recovery never ends
    (prepared.folder / "recovery.signal").touch()
    for _ in range(_ATTEMPTS):
        with ExitStack() as attempt:
            command = attempt.enter_context(prepared.wal())
            if not is_reached:  # no more segments than the first time: those stored since would lead past the target
                command = f'case "%f" in *.history) {command} ;; *) false ;; esac'
            wanted = {
                "restore_command": command,
                "recovery_target_action": action,
                # without reads, recovery does not stop for settings that the primary was given since
                "hot_standby": "on" if action == "pause" else "off",
                **until.options(),
                **(options or {}),
            }
            run = scratch_server(
                prepared.folder,
                prepared.programs,
                wanted,
                until=Scratch.accepts_reads if action == "pause" else Scratch.accepts_writes,
                users=users,
                tick=tick,
                orderly=orderly,
            )
            try:
                server = attempt.enter_context(run)
                _wait(server, tick)
            except ServerEnded as error:
                if _MISSED.encode() in error.output:
                    newest, is_reached, until = _newest(error.output), False, Until(timeline=until.timeline)
                elif not any(text.encode() in error.output for text in _TOO_LOW):
                    raise
                continue  # the control file has the new settings now
            yield server, _replayed(server, newest, is_reached=is_reached)
            return
    raise Unavailable(f"the settings of the primary changed more than {_ATTEMPTS} times in the WAL to replay")


def _wait(server: Scratch, tick: Callable[[Scratch], object]) -> None:
    """Wait until it is paused at the target, or accepts writes. Raises Unavailable when it refuses connections."""
    answered = time.monotonic()

    def is_there(server: Scratch) -> bool:
        if any(text.encode() in server.output for text in _TOO_LOW):
            raise ServerEnded(server.folder, server.output)
        nonlocal answered
        try:
            with psycopg.connect(server.conninfo()) as connection:
                is_done = bool(_one(connection, _IS_THERE)[0])
        except psycopg.OperationalError as error:
            if time.monotonic() > answered + _REFUSED_S:  # otherwise it ends, or restarts
                message = f"PostgreSQL runs on {server.folder}, but refuses connections: {telling(str(error).encode())}"
                raise Unavailable(message) from error
            return False
        answered = time.monotonic()
        return is_done

    server.wait(is_there, tick=tick)


def _replayed(server: Scratch, newest: datetime | None, *, is_reached: bool) -> Replayed:
    with psycopg.connect(server.conninfo()) as connection:
        lsn, transaction, segment = _one(connection, _STATE)
    return Replayed(str(lsn), int(str(segment)[:8] or "0", 16), newest or transaction, is_reached)


def _one(connection: psycopg.Connection[TupleRow], statement: LiteralString) -> TupleRow:
    row = connection.execute(statement).fetchone()
    if row is None:
        raise Unavailable("PostgreSQL returned no row")
    return row


def _newest(output: bytes) -> datetime | None:
    found = _LAST_TRANSACTION.findall(output)
    return datetime.fromisoformat(found[-1].decode()) if found else None
