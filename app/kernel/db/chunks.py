"""Changes of many rows, a few at a time, so that no statement runs into its timeout or holds locks for long."""

from typing import Any, LiteralString

from app.kernel.db import Queries

_CHUNK = 5000
_MOST_CHUNKS = 2000


async def run_in_chunks(db: Queries, sql: LiteralString, **parameters: Any) -> int:
    """Run a statement that touches at most `%(chunk)s` rows until it finds no more; return how many rows it touched.

    Bounded: what is left after ten million is for the next call. Safe to repeat.
    """
    total = 0
    for _ in range(_MOST_CHUNKS):
        touched = await db.run(sql, {**parameters, "chunk": _CHUNK})
        total += touched
        if touched < _CHUNK:
            break
    return total
