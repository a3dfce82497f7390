"""The database as actions and repositories see it. Knows no driver.

A read is one statement on any connection; a change happens inside `async with db.begin() as tx`, and everything that
takes part is given `tx`. Parameters are `%s` or `%(name)s`, never formatted into the text.
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
    """What can run a statement. Each method raises Unavailable when the database cannot answer in time."""

    async def one(self, sql: LiteralString, parameters: Parameters = ()) -> Row | None:
        """Run one statement; return its first row, or None."""
        ...

    async def all(self, sql: LiteralString, parameters: Parameters = ()) -> list[Row]:
        """Run one statement; return its rows."""
        ...

    async def run(self, sql: LiteralString, parameters: Parameters = ()) -> int:
        """Run one statement; return how many rows it touched."""
        ...

    async def copy(self, sql: LiteralString, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows with one COPY ... FROM STDIN."""
        ...


class Transaction(Queries, Protocol):
    """An open transaction: what is run on it becomes visible together, or not at all."""


class Database(Queries, Protocol):
    """A pool of connections."""

    def begin(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction: commit when the body ends, roll back when it raises."""
        ...


async def now(db: Queries) -> datetime:
    """Return the time by the database's clock: the one clock of a deployment, as those of its machines differ."""
    row = await db.one("SELECT now()")
    assert row is not None
    return row[0]


async def run_in_chunks(db: Queries, sql: LiteralString, **parameters: Any) -> int:
    """Run a statement that touches at most `%(chunk)s` rows until it finds no more; return how many rows it touched.

    So no statement runs into its timeout or holds locks for long. What is left after ten million is for the next call.
    """
    total = 0
    for _ in range(_MOST_CHUNKS):
        touched = await db.run(sql, {**parameters, "chunk": _CHUNK})
        total += touched
        if touched < _CHUNK:
            break
    return total
