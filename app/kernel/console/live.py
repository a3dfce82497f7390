"""Live pages: a stream for each tab, which sends the changed part of its page.

Tabs that see the same share its rendering: it is made at most every two seconds, however many tabs there are, and only
while somebody looks. Rendering takes at most a twentieth of the time: of many different views, each is made less often.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from dataclasses import dataclass, field

from app.kernel.errors import Denied, Refusal, Unauthenticated
from app.kernel.http.results import ServerSentEvent

TICK_S = 2.0
_PATIENCE_S = 4.0
"""How long a tab waits for the turn of its view, before it keeps what it shows."""
_REST = 19
"""For each second of rendering, the views rest so many seconds."""
_MOST_VIEWS = 500
_TIME = re.compile(r"(<time [^>]*>)[^<]*")
CSRF = "csrf-of-this-session"
"""Stands for the token of the session in what sessions share."""
ENDED = ServerSentEvent("the page is no longer shown", name="end")


async def ended() -> AsyncGenerator[ServerSentEvent]:
    """Yield what ends the stream of a page, which is then loaded again."""
    yield ENDED


@dataclass
class _Shared:
    """What tabs with the same view share."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    text: str = ""
    made_at: float = float("-inf")
    users: int = 0


class Live:
    """The views that tabs look at in this process."""

    def __init__(self) -> None:
        self._views: dict[Hashable, _Shared] = {}
        self._turn = asyncio.Lock()

    async def stream(
        self, shown: str, look: Callable[[], Awaitable[tuple[Hashable, Callable[[], Awaitable[str]], str]]]
    ) -> AsyncGenerator[ServerSentEvent]:
        """Yield the part of a page whenever it differs from what is shown; `live` when what is shown is still right.

        `look` authenticates the visitor anew; it returns the key of the view, a function that renders it, and the token
        for its forms. The stream ends when the visitor is signed out, or no longer has the permission.
        """
        last = shown
        while True:
            await asyncio.sleep(TICK_S)
            try:
                key, render, csrf = await look()
                text = await self._rendered(key, render)
            except (Unauthenticated, Denied):
                yield ENDED
                return
            except Refusal:  # such as an outage: what is shown stays, and the page says that it is old
                continue
            if text and (found := digest(text)) != last:
                last = found
                yield ServerSentEvent(text.replace(CSRF, csrf))
            else:
                yield ServerSentEvent("", name="live")

    async def _rendered(self, key: Hashable, render: Callable[[], Awaitable[str]]) -> str:
        """Return a view that is about one tick old; an older one, or nothing, while others have their turn."""
        if key not in self._views and len(self._views) >= _MOST_VIEWS:
            return await render()
        view = self._views.setdefault(key, _Shared())
        view.users += 1
        try:
            async with view.lock:
                if time.monotonic() - view.made_at >= TICK_S * 0.9 and await self._has_turn():
                    started_at = time.monotonic()
                    try:
                        view.text, view.made_at = await render(), time.monotonic()
                    finally:
                        rest_s = (time.monotonic() - started_at) * _REST
                        asyncio.get_running_loop().call_later(rest_s, self._turn.release)
                return view.text
        finally:
            view.users -= 1
            self._forget()

    async def _has_turn(self) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await self._turn.acquire()
        except TimeoutError:
            return False

    def _forget(self) -> None:
        old = time.monotonic() - 2 * TICK_S
        for key in [key for key, view in self._views.items() if not view.users and view.made_at < old]:
            del self._views[key]


def digest(text: str) -> str:
    """Return what differs when a view has changed; relative times alone do not count."""
    return hashlib.sha256(_TIME.sub(r"\1", text).encode(errors="replace")).hexdigest()[:16]
