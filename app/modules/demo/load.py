"""What goes on while somebody looks: orders, and requests, some of which are refused."""

import asyncio
import time
from random import Random
from typing import TYPE_CHECKING

from app.kernel.db import Database
from app.kernel.errors import Unavailable
from app.kernel.identifiers import uuid7
from app.kernel.process import pause
from app.modules.demo.shop import Shop

if TYPE_CHECKING:
    from app.kernel.http.client import HttpClient

_EVERY_S = 1.0
_RANDOM = Random(1843)  # noqa: S311 - nothing is secret here
_PATHS = ("/platform/v1/queues", "/platform/v1/jobs", "/platform/v1/errors", "/auth/v1/me", "/platform/v1/schedules")


class Load:
    """The load of the demo: an order and some requests every second."""

    def __init__(self, db: Database, shop: Shop, client: "HttpClient", url: str) -> None:
        self._db = db
        self._shop = shop
        self._client = client
        self._url = url

    async def run(self, stop: asyncio.Event, token: str) -> None:
        """Run until stopped. `token` is an API key."""
        number = int(time.time())
        while not await pause(stop, _EVERY_S):
            number += 1
            await self._shop.sell(self._db, number)
            await self._ask(token)

    async def _ask(self, token: str) -> None:
        asked = [(path, token) for path in _RANDOM.sample(_PATHS, 3)]
        if _RANDOM.random() < 0.2:
            asked += [(f"/platform/v1/jobs/{uuid7()}", token), ("/auth/v1/me", "guessed")]
        for path, key in asked:
            try:
                await self._client.get(f"{self._url}{path}", headers={"authorization": f"Bearer {key}"})
            except Unavailable:  # it is stopping
                return
