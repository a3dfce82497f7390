"""Vault and OpenBao: KV version 2. The variables VAULT_* are those of Vault's own clients.

Logs in with a token (VAULT_TOKEN, ~/.vault-token), AppRole (VAULT_ROLE_ID and VAULT_SECRET_ID), or the service account
of the pod (VAULT_KUBERNETES_ROLE).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hvac
from hvac.exceptions import (
    Forbidden,
    InvalidPath,
    InvalidRequest,
    RateLimitExceeded,
    Unauthorized,
    VaultDown,
    VaultError,
)
from requests import Response
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidURL, MissingSchema, RequestException, SSLError, Timeout, TooManyRedirects
from requests.exceptions import JSONDecodeError as NotJson

from app.kernel.config.files import CannotRead, read_value
from app.kernel.config.stores import CannotFetch

_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_USER = re.compile(r"(?<=://)[^/]*@")
_TRUE = ("1", "t", "true")


_LARGEST_BYTES = 1 << 20


class TooLarge(RequestException):
    """An answer is larger than any of Vault's."""


class _Bounded(HTTPAdapter):
    """Reads answers up to a size, which requests does not limit."""

    def send(self, *arguments: Any, **options: Any) -> Response:
        answer = super().send(*arguments, **options)
        content = bytearray()
        for part in answer.iter_content(8192):
            content += part
            if len(content) > _LARGEST_BYTES:
                answer.close()
                raise TooLarge
        answer._content = bytes(content)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        return answer


_ADDRESS = "set VAULT_ADDR, such as https://vault.example.com:8200"
_REASONS: tuple[tuple[tuple[type[Exception], ...], str, str], ...] = (
    ((VaultDown,), "Vault at {address} is sealed, or in standby", "unseal it"),
    ((RateLimitExceeded,), "Vault at {address} limits the rate", "try again later"),
    (
        (Forbidden, Unauthorized),
        "Vault at {address} denies reading {path} (403)",
        "give the token a policy that may read {api_path}, or renew the token; check VAULT_NAMESPACE",
    ),
    (
        (InvalidPath,),
        "Vault has no secret {path}",
        "check `vault kv get {path}` and VAULT_NAMESPACE; PATH begins with the mount and has no data/",
    ),
    (
        (SSLError,),
        "the certificate of {address} is not trusted",
        "set VAULT_CACERT to the CA's certificate, in PEM; check VAULT_CLIENT_CERT if it is set",
    ),
    (
        (TooManyRedirects,),
        "{address} redirects, and is not followed",
        "set VAULT_ADDR to the active Vault",
    ),
    ((InvalidURL, MissingSchema), "VAULT_ADDR is no URL", _ADDRESS),
    ((TooLarge,), "the answer of {address} is larger than 1 MiB", "check VAULT_ADDR"),
    ((NotJson,), "the answer of {address} is not that of Vault", "check VAULT_ADDR"),
    ((Timeout,), "Vault at {address} does not answer", "check VAULT_ADDR and the network"),
    ((RequestException,), "Vault at {address} cannot be reached", "start it, or check VAULT_ADDR and the network"),
    ((VaultError,), "Vault at {address} failed", "check VAULT_ADDR, and see the log of Vault"),
    ((Exception,), "the answer of {address} is not that of Vault", "check VAULT_ADDR"),
)
_FINAL = (Forbidden, Unauthorized, InvalidPath, SSLError, TooManyRedirects, InvalidURL, MissingSchema)


def read(path: str, environ: Mapping[str, str], seconds: float) -> dict[str, object]:
    """Return the fields of a secret. Raises CannotFetch."""
    address = environ.get("VAULT_ADDR", "").strip()
    if not address.startswith(("https://", "http://")):
        raise CannotFetch("VAULT_ADDR is no URL" if address else "VAULT_ADDR is not set", _ADDRESS)
    try:
        client = _client(address, environ, seconds)
        _log_in(client, environ)
        mount = _mount(client, path)
        name = path.removeprefix(f"{mount}/")
        answer = client.secrets.kv.v2.read_secret_version(name, mount_point=mount, raise_on_deleted_version=True)
        return {**answer["data"]["data"]}
    except CannotFetch:
        raise
    except Exception as error:  # noqa: BLE001 - a malformed answer fails anywhere
        message, hint = next((message, hint) for kinds, message, hint in _REASONS if isinstance(error, kinds))
        mount, _, rest = path.partition("/")
        names = {"address": _USER.sub("", address), "path": path, "api_path": f"{mount}/data/{rest}"}
        final = isinstance(error, _FINAL)
        raise CannotFetch(message.format(**names), hint.format(**names), is_final=final) from None


def _client(address: str, environ: Mapping[str, str], seconds: float) -> Any:
    for name in ("VAULT_CACERT", "VAULT_CAPATH", "VAULT_CLIENT_CERT", "VAULT_CLIENT_KEY"):
        if (path := environ.get(name)) and not os.access(path, os.R_OK):
            raise CannotFetch(f"{name}: cannot read {path}", "check the file and its owner")
    verify: bool | str = environ.get("VAULT_CACERT") or environ.get("VAULT_CAPATH") or True
    if environ.get("VAULT_SKIP_VERIFY", "").lower() in _TRUE:
        verify = False
    certificate, key = environ.get("VAULT_CLIENT_CERT"), environ.get("VAULT_CLIENT_KEY")
    cert: Any = (certificate, key) if certificate and key else certificate or None
    limit: Any = seconds
    namespace = environ.get("VAULT_NAMESPACE") or None
    client = hvac.Client(url=address, token="", cert=cert, verify=verify, timeout=limit, namespace=namespace)
    for scheme in ("https://", "http://"):
        client.session.mount(scheme, _Bounded())
    client.session.max_redirects = 0  # the token, the secret id or the JWT would go wherever an answer points to
    return client


def _log_in(client: Any, environ: Mapping[str, str]) -> None:
    """Set a token. Raises CannotFetch."""
    mount = environ.get("VAULT_AUTH_MOUNT", "").strip("/")
    role_id, role = _value(environ, "VAULT_ROLE_ID"), environ.get("VAULT_KUBERNETES_ROLE")
    if token := _value(environ, "VAULT_TOKEN"):
        client.token = token
        return
    try:
        if role_id:
            secret_id = _value(environ, "VAULT_SECRET_ID") or None
            client.auth.approle.login(role_id, secret_id, mount_point=mount or "approle")
        elif role:
            jwt = _from_file("the token of the service account", environ.get("VAULT_JWT_FILE") or _SERVICE_ACCOUNT)
            client.auth.kubernetes.login(role, jwt, mount_point=mount or "kubernetes")
        else:
            home = Path(environ.get("HOME", "/nonexistent")) / ".vault-token"
            if not home.is_file():
                raise CannotFetch(
                    "there is no way to log in to Vault",
                    "set VAULT_TOKEN, VAULT_ROLE_ID and VAULT_SECRET_ID, or VAULT_KUBERNETES_ROLE; each also as _FILE",
                )
            client.token = _from_file("the token", str(home))
    except (InvalidRequest, Forbidden, Unauthorized, InvalidPath):
        how = "VAULT_ROLE_ID and VAULT_SECRET_ID" if role_id else "VAULT_KUBERNETES_ROLE and the service account"
        raise CannotFetch("Vault refuses the login", f"check {how}, and VAULT_AUTH_MOUNT") from None


def _value(environ: Mapping[str, str], name: str) -> str:
    file = environ.get(f"{name}_FILE")
    return environ.get(name, "").strip() or (_from_file(f"{name}_FILE", file) if file else "")


def _from_file(what: str, path: str) -> str:
    try:
        return read_value(path).strip()
    except CannotRead as error:
        raise CannotFetch(f"cannot read {what} from {path} ({error})", "check the file and its owner") from None


def _mount(client: Any, path: str) -> str:
    """Return the mount of a path, as `vault kv get` finds it. Raises CannotFetch unless it is KV version 2."""
    first = path.partition("/")[0]
    try:
        answer = client.adapter.get(f"/v1/sys/internal/ui/mounts/{quote(path)}")
        found: dict[str, Any] = answer["data"]
        options: dict[str, Any] = found.get("options") or {}
    except (Forbidden, InvalidPath):
        return first  # reading the secret says why
    if found["type"] not in ("kv", "generic"):
        raise CannotFetch(f"{first} is no KV mount of Vault", "PATH begins with the mount of a KV engine, version 2")
    if str(options.get("version")) != "2":
        raise CannotFetch(f"{first} is KV version 1", f"upgrade it: vault kv enable-versioning {first}")
    return str(found["path"]).strip("/")
