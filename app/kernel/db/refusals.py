"""Classifies errors of PostgreSQL: an outage, invalid input, or a bug.

The SQLSTATE decides. psycopg's classes are too coarse (a value too large for an index is an OperationalError), and
messages are localised.
"""

import psycopg

from app.kernel.errors import Constraints, Invalid, Refusal, Unavailable
from app.kernel.product import NAME

READ_ONLY, DISK_FULL = "25006", "53100"
_SIZE = "SELECT pg_size_pretty(pg_database_size(current_database()))"
_NOTIFYING = "PreCommit_Notify"
_LISTENERS = "SELECT pg_notification_queue_usage()"
_HINTS = {
    _NOTIFYING: f"{NAME} db shell -c '{_LISTENERS}'",
    READ_ONLY: f"{NAME} doctor --only replication --only postgresql-settings",
    DISK_FULL: f"{NAME} db shell -c '{_SIZE}'",
}
_BUSY = "the database is busy with a conflicting change"
_SLOW = "the database took too long"
_AWAY = "the database is unavailable"

# by SQLSTATE, or by its class: the first two characters
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_OUTAGES = {
    "08": _AWAY,  # connection exception; PgBouncer uses 08P01 for all errors
    READ_ONLY: "the database is read-only: it accepts no writes; processes go on by themselves when it does",
    "25P03": _AWAY,  # idle-in-transaction timeout: this process was suspended
    "25P04": _SLOW,  # transaction timeout
    "28": _AWAY,  # the password is no longer valid
    "3D": _AWAY,  # the database was dropped or renamed
    "40": _BUSY,
    "40003": _AWAY,  # statement completion unknown
    "53": "the database is short of resources",  # disk, memory, connections
    DISK_FULL: "the disk of the database is full",
    "55006": _BUSY,  # object in use
    "55P03": _BUSY,  # lock not available
    "57": _AWAY,  # shutdown, crash, starting up, dropped
    "57014": _SLOW,
    "58": "the database cannot use its files",
}
_TOO_LARGE = "a value is larger than the database can store or index"
_UNFIT = "the database cannot store a value of this kind"
_INVALID = {
    "22001": _TOO_LARGE,
    "22003": "a number is out of range",
    "22007": "a date or time is malformed",
    "22008": "a date or time is out of range",
    "22009": "a time zone is out of range",
    "22015": "a duration is out of range",
    "22018": _UNFIT,
    "22019": "an escape character is invalid",
    "2201B": "a regular expression is invalid",
    "22021": "a text holds a character that the database cannot store",
    "22023": _UNFIT,
    "22025": "an escape sequence is invalid",
    "22030": "an object has a duplicate key",
    "22032": "JSON is malformed",
    "22P02": _UNFIT,
    "22P03": _UNFIT,
    "22P05": "a text holds a character that the database cannot store",
    "54000": _TOO_LARGE,
    "54001": "a value is nested too deeply for the database",
}

_NONE: Constraints = {}


class DatabaseUnavailable(Unavailable):
    """The database does not do its work now."""

    hint = f"{NAME} doctor --only postgresql"


def away() -> DatabaseUnavailable:
    """Return the refusal of everything while the database cannot be reached."""
    return DatabaseUnavailable(_AWAY, retry_after_s=2)


def read_only() -> DatabaseUnavailable:
    """Return the refusal of changes while the database is read-only."""
    return DatabaseUnavailable(_OUTAGES[READ_ONLY], retry_after_s=2, hint=_HINTS[READ_ONLY])


def refusal_of(error: BaseException, constraints: Constraints = _NONE) -> Refusal | None:
    """Return the refusal for a failed statement, or None for a bug."""
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return _noticed_by_the_client(error)
    state = error.sqlstate
    if error.diag.source_function == _NOTIFYING:  # the queue of notifications is full: a listener does not read
        return DatabaseUnavailable(
            "the queue of notifications of the database is full", retry_after_s=2, hint=_HINTS[_NOTIFYING]
        )
    if reason := _OUTAGES.get(state) or _OUTAGES.get(state[:2]):
        return DatabaseUnavailable(reason, 1 if reason in (_BUSY, _SLOW) else 2, hint=_HINTS.get(state, ""))
    if reason := _INVALID.get(state):
        return Invalid(f"{reason} (SQLSTATE {state})")
    load = constraints.get(f"{error.diag.schema_name}.{error.diag.constraint_name}")
    return load()() if load else None


def _noticed_by_the_client(error: BaseException) -> Refusal | None:
    match error:
        case UnicodeEncodeError() | psycopg.DataError():  # a lone surrogate, or NUL
            return Invalid("a text holds a character that the database cannot store")
        case psycopg.OperationalError() | psycopg.InterfaceError():  # connecting failed, or the connection is lost
            return away()
        # the server went away while it answered, or after the answer and before it was ready for the next statement
        case psycopg.DatabaseError() if type(error) in (psycopg.DatabaseError, psycopg.InternalError):
            return away()
        case _:
            return None
