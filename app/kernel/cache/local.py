"""A cache in the memory of a process."""

import time
from collections import OrderedDict
from collections.abc import Collection, Generator, Hashable
from contextlib import contextmanager
from typing import Generic, TypeVar

from app.kernel.cache import Invalidations

V = TypeVar("V")


class Loading(Generic[V]):
    """A value that is being loaded, to be stored unless it is invalidated meanwhile."""

    __slots__ = ("_cache", "_started_at", "gone", "is_void")

    def __init__(self, cache: "LocalCache[V]") -> None:
        self._cache = cache
        self._started_at = time.monotonic()
        self.gone: set[str] = set()
        self.is_void = False

    def store(self, key: Hashable, value: V, tags: Collection[str], seconds: float) -> None:
        """Keep the value for some seconds since the loading began, unless it was invalidated since then."""
        if not self.is_void and self.gone.isdisjoint(tags):
            self._cache.put(key, value, tags, self._started_at + seconds)


class LocalCache(Generic[V]):
    """Values in the memory of this process, up to a number; the oldest ones leave first.

    It is empty to its users while invalidations may not arrive.
    """

    def __init__(self, topic: str, invalidations: Invalidations, most: int) -> None:
        self._most = most
        self._invalidations = invalidations
        self._entries: OrderedDict[Hashable, tuple[float, V, Collection[str]]] = OrderedDict()
        self._tagged: dict[str, set[Hashable]] = {}
        self._loading: set[Loading[V]] = set()
        from app.kernel.telemetry import metrics

        self._counts = metrics.cache_lookups(topic)
        invalidations.subscribe(topic, self._forget)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> V | None:
        """Return a stored value, or None."""
        if not self._invalidations.is_live:
            self._counts.bypassed += 1
            return None
        entry = self._entries.get(key)
        if entry is None or entry[0] <= time.monotonic():
            self._counts.misses += 1
            return None
        self._counts.hits += 1
        return entry[1]

    @contextmanager
    def loading(self) -> Generator[Loading[V]]:
        """Load a value inside, with a statement that starts inside, and store it."""
        begun = Loading(self)
        self._loading.add(begun)
        try:
            yield begun
        finally:
            self._loading.discard(begun)

    def put(self, key: Hashable, value: V, tags: Collection[str], until: float) -> None:
        """Keep a value until a time of `time.monotonic`. `Loading.store` calls it."""
        self._drop(key)
        while len(self._entries) >= self._most:
            self._drop(next(iter(self._entries)))
        self._entries[key] = (until, value, tags)
        for tag in tags:
            self._tagged.setdefault(tag, set()).add(key)

    def _drop(self, key: Hashable) -> None:
        _, _, tags = self._entries.pop(key, (0.0, None, ()))
        for tag in tags:
            keys = self._tagged[tag]
            keys.discard(key)
            if not keys:
                del self._tagged[tag]

    def _forget(self, tags: frozenset[str] | None) -> None:
        if tags is None:
            self._entries.clear()
            self._tagged.clear()
        else:
            for tag in tags:
                for key in list(self._tagged.get(tag, ())):
                    self._drop(key)
        for loading in self._loading:
            if tags is None:
                loading.is_void = True
            else:
                loading.gone |= tags
