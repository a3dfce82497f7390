"""Our settings of a session: for the whole session, or behind a pooler for one transaction."""

from collections.abc import Mapping
from typing import LiteralString, cast

from psycopg import sql

Settings = Mapping[str, str | int]

_TRANSACTION_TIMEOUT = 170_000  # the version that has it
_SPACE = "\\ "  # in an option

# required values, because a role or a database may have others. Not default_transaction_read_only: operators set it
_SETTINGS: Settings = {
    "timezone": "UTC",
    "datestyle": "ISO,MDY",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": 1,
    "array_nulls": "on",
    "transform_null_equals": "off",
    "standard_conforming_strings": "on",
    "search_path": "public",
    "row_security": "on",
    "exit_on_error": "off",
    "client_min_messages": "warning",
    "statement_timeout": 10_000,
    "lock_timeout": 10_000,
    "idle_in_transaction_session_timeout": 60_000,
}
_OF_CONNECTIONS: Settings = {
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "idle_session_timeout": 0,
    # the server detects within seconds that this process has died, and releases its locks
    "tcp_keepalives_idle": 2,
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 4,
}


def session_options(version: int, settings: Settings) -> str:
    """Return the options of a connection to a server of a version (times in milliseconds)."""
    wanted = {**_for(version), **_OF_CONNECTIONS, **settings}
    return " ".join(f"-c {name}={str(value).replace(' ', _SPACE)}" for name, value in wanted.items())


def begin_with(version: int, settings: Settings) -> LiteralString:
    """Return the SQL that begins a transaction with the settings, in one round trip (times in milliseconds)."""
    wanted = {**_for(version), **settings}
    set_each = sql.SQL(", ").join(
        sql.SQL("set_config({}, {}, true)").format(name, str(value)) for name, value in wanted.items()
    )
    begin = sql.SQL("BEGIN ISOLATION LEVEL READ COMMITTED NOT DEFERRABLE; SELECT {}").format(set_each)
    return cast("LiteralString", begin.as_string())


def _for(version: int) -> Settings:
    return {**_SETTINGS, **({"transaction_timeout": 0} if version >= _TRANSACTION_TIMEOUT else {})}
