"""Checks of `doctor` about notifications."""

from collections.abc import AsyncIterator
from functools import partial

from app.kernel.config import SentinelSettings
from app.kernel.doctor import Check, Finding, NotChecked, fail, in_thread, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.doctor.network import starts_tls, unreachable
from app.modules.platform.recipients import Server, server_of


async def notifications(d: Deployment) -> AsyncIterator[Finding]:
    """Connect to the servers of all recipients; sends nothing."""
    urls = d[SentinelSettings].notify_urls.get_secret_value().split()
    if not urls and d.is_published:
        raise NotChecked("sentinel.notify_urls is empty, so nobody is notified")
    if not urls:
        yield warn("nobody is notified of errors and outages", "export SENTINEL_NOTIFY_URLS=mailto://...")
    for number, url in enumerate(urls, 1):
        scheme = url.partition("://")[0]
        what = f"recipient {number} of sentinel.notify_urls ({scheme})"
        server = await in_thread(partial(server_of, url))
        if server is None:
            yield fail(f"{what} is not a valid URL", f"correct SENTINEL_NOTIFY_URLS: {scheme}://...")
        elif server.host and (why := await _unreachable(server)):
            test = f"nc -vz {server.host} {server.port}  # then correct SENTINEL_NOTIFY_URLS"
            yield fail(f"{what}: {server.host}:{server.port}: {why}", test)


async def _unreachable(server: Server) -> str:
    if server.starts_tls:
        return await starts_tls(server.host, server.port)
    return await unreachable(server.host, server.port, tls=server.tls)


CHECKS = (Check("notifications", "network", "Those who are notified can be reached.", notifications, timeout_s=15),)
