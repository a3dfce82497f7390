"""Invalidation of what processes remember (ADR 40).

A transaction that changes what is cached invalidates it, with `invalidate` or in a trigger. When it commits, PostgreSQL
notifies the listening connection of each process. The process that has committed does not wait for the notification:
its database connection reports the invalidation, too.
"""

import json
from collections.abc import Callable, Collection

from app.kernel.db import Queries

Forget = Callable[[frozenset[str] | None], None]
"""Forgets what has one of the tags; everything if None."""

CHANNEL = "kernel_cache"
"""The channel of PostgreSQL. `NOTIFY kernel_cache` by hand empties the caches of all processes."""
ASK_S = 2.0
TRUSTED_S = 5.0
"""Without a sign of life from the server for this long, caches are bypassed: the network may silently drop packets."""


async def invalidate(tx: Queries, topic: str, tags: Collection[str] | None = None) -> None:
    """Invalidate in every process, when the transaction commits, what has one of the tags; everything if None.

    More tags than fit into a notification (8,000 bytes) invalidate the whole topic. Safe to repeat.
    """
    await tx.run("SELECT kernel.invalidate(%s, %s)", (topic, None if tags is None else list(tags)))


class Invalidations:
    """The invalidations that reach this process, by topic."""

    def __init__(self, is_live: Callable[[], bool]) -> None:
        """`is_live` returns whether all invalidations of other processes arrive."""
        self._is_live = is_live
        self._subscribers: dict[str, list[Forget]] = {}

    @property
    def is_live(self) -> bool:
        """Whether all invalidations arrive. Otherwise, caches must be bypassed."""
        return self._is_live()

    def subscribe(self, topic: str, forget: Forget) -> None:
        """Call `forget` with the tags of each invalidation of a topic."""
        self._subscribers.setdefault(topic, []).append(forget)

    def received(self, payload: str) -> None:
        """Pass an invalidation on. One that is not understood invalidates everything."""
        try:
            found = json.loads(payload)
            topic, tags = found["topic"], found["tags"]
            forgotten = None if tags is None else frozenset(map(str, tags))
        except (ValueError, KeyError, TypeError):
            self.missed()
            return
        for forget in self._subscribers.get(topic, ()):
            forget(forgotten)

    def missed(self) -> None:
        """Invalidate everything, because invalidations may have been missed."""
        for subscribers in self._subscribers.values():
            for forget in subscribers:
                forget(None)
