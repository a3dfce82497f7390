"""Recipients through Apprise: one URL each."""

import asyncio
import hashlib
from typing import Any

from app.kernel.errors import NotFound, Unavailable
from app.modules.platform.domain import Message


class AppriseRecipients:
    """Those whose Apprise URLs are in the settings. The URLs hold secrets, so they go by fingerprints."""

    def __init__(self, urls: str) -> None:
        self._urls = {hashlib.sha256(url.encode()).hexdigest()[:12]: url for url in urls.split()}

    def names(self) -> list[str]:
        return list(self._urls)

    async def send(self, message: Message) -> None:
        url = self._urls.get(message.recipient)
        if url is None:
            raise NotFound(f"no recipient {message.recipient} in sentinel.notify_urls")
        if not await asyncio.to_thread(_send, url, message):
            scheme = url.partition("://")[0]
            raise Unavailable(f"the {scheme} recipient {message.recipient} did not accept the message")


def _send(url: str, message: Message) -> bool:
    from apprise import Apprise  # takes a quarter of a second to import

    recipients: Any = Apprise()
    return bool(recipients.add(url)) and bool(
        recipients.notify(title=message.title, body=message.body, body_format="text")
    )
