"""The callers that are remembered, so that their requests run no query (ADR 40): in this process, and in Redis."""

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace

from pydantic import TypeAdapter, ValidationError

from app.kernel.cache import Invalidations
from app.kernel.cache.local import LocalCache
from app.kernel.cache.shared import Found, Lease, SharedCache
from app.modules.auth.domain.sessions import AuthenticatedCaller, LoadedCaller

TOPIC = "auth.callers"
_MOST = 10_000
_LONGEST_S = 60.0  # then a caller is read again whatever was invalidated, and its activity is stored again
_FORM = TypeAdapter(LoadedCaller)


class Callers(LocalCache[AuthenticatedCaller]):
    """Callers with their permissions, by session id or API key. Triggers invalidate them."""

    def __init__(self, invalidations: Invalidations, shared: SharedCache | None = None) -> None:
        super().__init__(TOPIC, invalidations, _MOST)
        self._is_live = lambda: invalidations.is_live
        self._shared = shared

    async def load(
        self, key: Hashable, name: str, read: Callable[[], Awaitable[LoadedCaller | None]]
    ) -> LoadedCaller | None:
        """Return a caller from Redis under a name, or else read it.

        Remembers it until it expires, or its activity must be stored, or for a minute at most.
        """
        with self.loading() as loading:
            loaded = await (self._from_redis(name, read) if self._shared and self._is_live() else read())
            if loaded is not None and loaded.fresh_s > 0:
                loading.store(key, loaded.caller, loaded.tags, min(loaded.fresh_s, _LONGEST_S))
        return loaded

    async def _from_redis(self, name: str, read: Callable[[], Awaitable[LoadedCaller | None]]) -> LoadedCaller | None:
        assert self._shared is not None
        taken = await self._shared.take(name)
        if isinstance(taken, Found):
            try:
                found = _FORM.validate_json(taken.body)
            except ValidationError:  # of another release
                return await read()
            left_s = min(found.fresh_s, _LONGEST_S) - taken.age_s
            return replace(found, fresh_s=left_s) if left_s > 0 else await read()
        loaded, body = None, ""
        try:
            loaded = await read()
            if loaded is not None and loaded.fresh_s > 0:
                body = _FORM.dump_json(loaded).decode()
        finally:
            if isinstance(taken, Lease):
                lasts_s = min(loaded.fresh_s, _LONGEST_S) if loaded else 0.0
                await self._shared.store(name, taken, body, loaded.tags if loaded else (), lasts_s)
        return loaded
