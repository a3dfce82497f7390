"""The reference of an API: /openapi.json, and /docs for people."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from app.kernel.actions.operation import ActionOperation
from app.kernel.concurrency import Shared
from app.kernel.http.asgi import App, Receive, Scope, Send, respond
from app.kernel.http.assets import Assets
from app.kernel.http.openapi import openapi
from app.kernel.http.problems import check_reads, nothing
from app.kernel.http.reference.page import page

_PATHS = ("/openapi.json", "/docs")
_ASSETS = "/docs/assets/"
_POLICY = (
    b"default-src 'none'; style-src 'self'; script-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)


class Documentation:
    """Answer /openapi.json and /docs, made at the first request; pass everything else to the application.

    The page is made without a template engine, because it is the only page of most processes that have it.
    """

    def __init__(self, operations: Sequence[ActionOperation], title: str, app: App = nothing) -> None:
        self._app = app
        self._operations = operations
        self._title = title
        self._made: dict[str, tuple[bytes, bytes]] = {}
        self._making = Shared(self._make)
        self._assets: Assets | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path not in _PATHS and not path.startswith(_ASSETS):
            await self._app(scope, receive, send)
            return
        if self._assets is None:
            await self._making()
        if self._assets is not None and path not in _PATHS:
            await self._assets(scope, receive, send)
            return
        scope["state"]["route"] = path
        check_reads(scope)
        content_type, body = self._made[path]
        await respond(send, 200, content_type, body, [(b"content-security-policy", _POLICY)])

    async def _make(self) -> None:
        """Make both, in a thread: it takes half a second."""
        self._assets = await asyncio.to_thread(self._written)

    def _written(self) -> Assets:
        assets, document = Assets(_ASSETS, Path(__file__).parent), openapi(self._operations, self._title)
        html = page(document, assets.url("reference.css"), assets.url("reference.js"))
        self._made = {
            "/openapi.json": (b"application/json", json.dumps(document).encode()),
            "/docs": (b"text/html; charset=utf-8", html.encode()),
        }
        return assets
