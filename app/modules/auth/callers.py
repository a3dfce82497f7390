"""The callers that this process remembers, so that their requests run no query (ADR 40)."""

from collections.abc import Hashable

from app.kernel.cache import Invalidations
from app.kernel.cache.local import Loading, LocalCache
from app.modules.auth.domain.sessions import AuthenticatedCaller, LoadedCaller

_MOST = 10_000
_LONGEST_S = 60.0  # then a caller is read again whatever was invalidated, and its activity is stored again


class Callers(LocalCache[AuthenticatedCaller]):
    """Callers with their permissions, by session id or API key. Triggers invalidate them."""

    def __init__(self, invalidations: Invalidations) -> None:
        super().__init__("auth.callers", invalidations, _MOST)

    def remember(self, loading: Loading[AuthenticatedCaller], key: Hashable, loaded: LoadedCaller) -> None:
        """Remember a caller until it expires, or its activity must be stored, or for a minute at most."""
        if loaded.fresh_s > 0:
            loading.store(key, loaded.caller, loaded.tags, min(loaded.fresh_s, _LONGEST_S))
