"""What modules compute and remember: in the memory of each process, and in Redis if there is one."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from app.kernel.cache import Invalidations, invalidate
from app.kernel.cache.local import Loading, LocalCache
from app.kernel.cache.shared import Found, SharedCache
from app.kernel.db import Queries
from app.kernel.errors import Unavailable

T = TypeVar("T")
TOPIC = "computed"
"""A trigger invalidates a tag with `SELECT kernel.invalidate('computed', ARRAY['TAG'])`."""
_MOST = 10_000
_COMPUTE_S = 30.0
_WAIT_S = 2.0


class Cache:
    """Computes a value once, and remembers it for a time, or until one of its tags is invalidated.

    Many callers at once wait for one computation: in each process, and with Redis in all of them, where a process
    computes the value itself after two seconds. That saves work, and promises nothing: a computation that is slow, or
    an outage of Redis, makes several at once. While invalidations may not arrive, every call computes.
    """

    def __init__(self, invalidations: Invalidations, shared: SharedCache | None = None) -> None:
        """`shared` is of the topic TOPIC."""
        self._invalidations = invalidations
        self._shared = shared
        self._local = LocalCache[tuple[Any]](TOPIC, invalidations, _MOST)
        self._running: dict[str, _Running] = {}

    async def get_or_compute(
        self, key: str, seconds: float, kind: type[T], compute: Callable[[], Awaitable[T]], tags: Collection[str] = ()
    ) -> T:
        """Return the value of a key, of a type that has a form in JSON; do not change it.

        `compute` reads what it needs inside, from the primary database. Keys and tags begin with the name of the
        module; a key whose meaning changes in a release is another key. Raises what `compute` raises, to all that
        wait for it, and Unavailable when it takes 30 seconds.
        """
        if (kept := self._local.get(key)) is not None:
            return kept[0]
        if not self._invalidations.is_live:
            return await compute()
        running = self._running.get(key)
        if running is None or not running.is_current():
            running = self._running[key] = _Running(tags)
            running.task = asyncio.ensure_future(self._run(running, key, seconds, kind, compute))
            running.task.add_done_callback(_seen)
        assert running.task is not None
        return await asyncio.shield(running.task)

    async def invalidate(self, tx: Queries, *tags: str) -> None:
        """Forget what has one of the tags, in every process, when the transaction commits. Safe to repeat."""
        await invalidate(tx, TOPIC, tags)

    async def _run(
        self, running: "_Running", key: str, seconds: float, kind: type[T], compute: Callable[[], Awaitable[T]]
    ) -> T:
        lasts_s = seconds * random.uniform(0.9, 1.0)  # noqa: S311 - not all at once
        try:
            with self._local.loading() as running.loading:
                async with asyncio.timeout(_COMPUTE_S):
                    value, tags, age_s = await self._obtain(key, lasts_s, _adapter(kind), compute, running.tags)
                running.loading.store(key, (value,), tags, lasts_s - age_s)
                return value
        except TimeoutError as error:
            raise Unavailable(f"{key} was not computed within {_COMPUTE_S:g} s") from error
        finally:
            if self._running.get(key) is running:
                del self._running[key]

    async def _obtain(
        self,
        key: str,
        lasts_s: float,
        adapter: TypeAdapter[T],
        compute: Callable[[], Awaitable[T]],
        tags: Collection[str],
    ) -> tuple[T, Collection[str], float]:
        """Return the value, its tags and its age."""
        taken = await self._shared.take(key, _WAIT_S) if self._shared else None
        if isinstance(taken, Found):
            try:
                return adapter.validate_json(taken.body), {*tags, *taken.tags}, taken.age_s
            except ValidationError:  # of another release
                taken = None
        if taken is None or self._shared is None:
            return await compute(), tags, 0.0
        body = ""
        try:
            value = await compute()
            body = adapter.dump_json(value).decode()
        finally:
            await self._shared.store(key, taken, body, tags, lasts_s)
        return value, tags, 0.0

    async def close(self) -> None:
        """Cancel what is being computed."""
        tasks = [running.task for running in self._running.values() if running.task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)


class _Running:
    """A computation that others may join until one of its tags is invalidated."""

    __slots__ = ("loading", "tags", "task")

    def __init__(self, tags: Collection[str]) -> None:
        self.tags = tags
        self.loading: Loading[tuple[Any]] | None = None
        self.task: asyncio.Future[Any] | None = None

    def is_current(self) -> bool:
        return self.loading is None or (not self.loading.is_void and self.loading.gone.isdisjoint(self.tags))


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def _seen(task: "asyncio.Future[Any]") -> None:
    """Take note of an error for which nobody waits any more."""
    if not task.cancelled():
        task.exception()
