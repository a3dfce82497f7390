"""Providers of the platform module. Each imports its dependencies when it is opened."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app.kernel.actions.compose import Providers
from app.kernel.config import SentinelSettings
from app.kernel.process import Process
from app.kernel.process.needs import uses
from app.modules.platform.domain.messages import Recipients


@asynccontextmanager
@uses(SentinelSettings)
async def recipients(p: Process) -> AsyncGenerator[Recipients]:
    """Provide the recipients of notifications; webhooks need the HTTP client."""
    from app.modules.platform.recipients import NotifyRecipients, is_webhook

    secret = p.settings[SentinelSettings].notify_urls
    if not any(map(is_webhook, secret.get_secret_value().split())):
        yield NotifyRecipients(secret)
        return
    from app.kernel.http.client import http_client

    yield NotifyRecipients(secret, await p.use(http_client))


PROVIDERS: Providers = {Recipients: recipients}
