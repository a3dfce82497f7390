"""What platform provides to its features. Imports what a provider needs when it is opened, not before."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app.kernel.actions.compose import Providers
from app.kernel.process import Process
from app.modules.platform.domain.messages import Recipients


@asynccontextmanager
async def recipients(p: Process) -> AsyncGenerator[Recipients]:
    """Provide those who are notified of errors; the HTTP client is opened only for webhooks."""
    from app.kernel.config import SentinelSettings
    from app.modules.platform.recipients import NotifyRecipients, is_webhook

    urls = p.settings[SentinelSettings].notify_urls.get_secret_value()
    if not any(map(is_webhook, urls.split())):
        yield NotifyRecipients(urls)
        return
    from app.kernel.http.client import http_client

    yield NotifyRecipients(urls, await p.use(http_client))


PROVIDERS: Providers = {Recipients: recipients}
