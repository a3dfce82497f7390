"""Checks of `doctor` about the address of the auth API."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from app.kernel.addresses import is_loopback
from app.kernel.config import HttpServerSettings
from app.kernel.doctor import Check, Finding, fail, warn
from app.kernel.doctor.deployment import Deployment
from app.modules.auth.settings import AuthSettings


async def issuer(d: Deployment) -> AsyncIterator[Finding]:
    """Report an issuer that clients cannot reach, and a proxy in front whose address is not trusted."""
    url = urlsplit(d[AuthSettings].issuer)
    if d.is_published:
        return
    if not url.hostname or is_loopback(url.hostname):
        problem = f"auth.issuer is {d[AuthSettings].issuer}: nobody else can verify tokens of this address"
        yield fail(problem, "export AUTH_ISSUER=https://NAME")
    elif url.scheme == "http":
        problem = f"auth.issuer is {d[AuthSettings].issuer}: passwords and tokens cross the network in clear text"
        yield warn(problem, f"export AUTH_ISSUER=https://{url.netloc}")
    elif not d[HttpServerSettings].trusted_proxies and not d[HttpServerSettings].tls_cert:
        problem = (
            "auth.issuer is https and this process serves http, so a proxy is in front; it is not trusted"
            " (http_server.trusted_proxies), so all clients have its address, and share its limits of attempts"
        )
        yield warn(problem, "export HTTP_SERVER_TRUSTED_PROXIES=ADDRESS_OF_THE_PROXY")


CHECKS = (Check("issuer", "settings", "The public address is reachable and its proxy trusted.", issuer),)
