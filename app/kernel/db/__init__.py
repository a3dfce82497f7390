"""The interface of the database for actions and repositories, without a driver.

A read is one statement on any connection. A change is made inside `async with db.begin() as tx`, and `tx` is passed on.
Parameters are `%s` or `%(name)s`, never formatted into the text.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, LiteralString, Protocol

Parameters = Sequence[Any] | Mapping[str, Any]
Row = tuple[Any, ...]

_CHUNK = 5000
_MOST_CHUNKS = 2000


class Queries(Protocol):
    """Runs statements. Each method raises Unavailable when the database does not answer in time."""

    async def one(self, sql: LiteralString, parameters: Parameters = ()) -> Row | None:
        """Run one statement; return its first row, or None."""
        ...

    async def all(self, sql: LiteralString, parameters: Parameters = ()) -> list[Row]:
        """Run one statement; return its rows."""
        ...

    async def run(self, sql: LiteralString, parameters: Parameters = ()) -> int:
        """Run one statement; return the number of affected rows."""
        ...

    async def copy(self, sql: LiteralString, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows with one COPY ... FROM STDIN."""
        ...


class Transaction(Queries, Protocol):
    """An open transaction."""


class Database(Queries, Protocol):
    """A pool of connections."""

    def begin(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction: commit when the body ends, roll back when it raises."""
        ...


class Replicas(Protocol):
    """The replicas of the database."""

    def reading(self, who: str) -> Database:
        """Return where somebody's read is made: where everything is visible that they have changed."""
        ...

    async def wrote(self, db: Queries, who: str) -> None:
        """Let somebody see what they have changed in a transaction, once it has committed. Nobody is an empty text."""
        ...


def where(*conditions: LiteralString) -> LiteralString:
    """Return a WHERE clause of those conditions that are not empty.

    A filter that is not given is left out of the statement: `%(x)s IS NULL OR x = %(x)s` keeps a plan from an index.
    """
    clause: LiteralString = " "
    for condition in conditions:
        if condition:
            clause += ("WHERE " if clause == " " else "AND ") + condition + " "
    return clause


async def now(db: Queries) -> datetime:
    """Return the time of the database, the reference clock of a deployment."""
    row = await db.one("SELECT now()")
    assert row is not None
    return row[0]


async def run_in_chunks(db: Queries, sql: LiteralString, **parameters: Any) -> int:
    """Repeat a statement of at most `%(chunk)s` rows until none is left; return the number of affected rows.

    Small chunks keep statements below their timeout and locks short. A call ends after ten million rows.
    """
    total = 0
    for _ in range(_MOST_CHUNKS):
        touched = await db.run(sql, {**parameters, "chunk": _CHUNK})
        total += touched
        if touched < _CHUNK:
            break
    return total
