"""Providers of the platform module. Each imports its dependencies when it is opened."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app.kernel.actions.compose import Providers
from app.kernel.process import Process
from app.modules.platform.domain.messages import Recipients


@asynccontextmanager
async def recipients(p: Process) -> AsyncGenerator[Recipients]:
    """Provide the recipients of notifications; webhooks need the HTTP client."""
    from app.kernel.config import SentinelSettings
    from app.modules.platform.recipients import NotifyRecipients, is_webhook

    urls = p.settings[SentinelSettings].notify_urls.get_secret_value()
    if not any(map(is_webhook, urls.split())):
        yield NotifyRecipients(urls)
        return
    from app.kernel.http.client import http_client

    yield NotifyRecipients(urls, await p.use(http_client))


PROVIDERS: Providers = {Recipients: recipients}
