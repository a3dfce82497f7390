"""Checks of `doctor` about the address of the auth API, and its master secret."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from app.kernel.addresses import is_loopback
from app.kernel.config import HttpServerSettings
from app.kernel.doctor import Check, Finding, NotChecked, fail, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.product import NAME
from app.modules.auth.master_secret import CannotDecrypt, Sealer
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


async def signing_keys(d: Deployment) -> AsyncIterator[Finding]:
    """Report signing keys that the master secret of this environment does not decrypt: nobody could sign in."""
    if d.fetching is not None or {"auth.master_secret", "auth.master_secret_previous"} & d.settings.withheld.keys():
        raise NotChecked("auth.master_secret is not known")
    sealer = Sealer(d[AuthSettings].master_secrets(), "signing keys")
    rows = await d.all("SELECT kid, private_key FROM auth.signing_keys ORDER BY created_at DESC, kid DESC")
    for kid, private_key in rows:
        try:
            sealer.open(bytes(private_key), kid)
        except CannotDecrypt:
            problem = f"auth.master_secret is not the secret that the signing key {kid} was encrypted with"
            yield fail(problem, f"{NAME} config explain auth.master_secret  # then set the original secret there")
            return


CHECKS = (
    Check("issuer", "settings", "The public address is reachable and its proxy trusted.", issuer),
    Check("signing-keys", "schema", "The master secret is that of the stored keys.", signing_keys),
)
