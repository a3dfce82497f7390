"""TLS of the public listener: loads certificate and key, and refuses what clients would refuse."""

import shlex
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from loguru import logger

from app.kernel.certificates import ends_soon, not_after
from app.kernel.config import HttpServerSettings, Misconfigured
from app.kernel.product import NAME

_CERT, _KEY = "http_server.tls_cert", "http_server.tls_key"
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; HTTP/2 prohibits the others (RFC 9113, section 9.2.2)


@dataclass(frozen=True, slots=True)
class _Loaded:
    context: ssl.SSLContext
    content: bytes
    about: str
    not_after: datetime


class Tls:
    """The certificate that new connections get."""

    def __init__(self, cert: str, key: str) -> None:
        """Load the files. Raises Misconfigured with the reason if they cannot be used."""
        self._cert, self._key = cert, key
        self._loaded = _load(cert, key)

    @property
    def context(self) -> ssl.SSLContext:
        """The context of new connections. Those that are open keep theirs."""
        return self._loaded.context

    @property
    def about(self) -> str:
        """The names and the end of validity of the certificate."""
        return self._loaded.about

    @property
    def not_after(self) -> datetime:
        """The end of validity of the certificate and of those that signed it."""
        return self._loaded.not_after

    async def reload(self) -> str | None:
        """Load the files again if their content has changed; return what is used now.

        Raises Misconfigured, and keeps the certificate in use, if they cannot be used.
        """
        loaded = _load(self._cert, self._key)
        if loaded.content == self._loaded.content:
            return None
        self._loaded = loaded
        return loaded.about


def tls(settings: HttpServerSettings) -> Tls | None:
    """Return the TLS of the settings, or None without. Raises Misconfigured."""
    if not settings.tls_cert and not settings.tls_key:
        return None
    for key, value, other in ((_CERT, settings.tls_cert, _KEY), (_KEY, settings.tls_key, _CERT)):
        if not value:
            raise _unusable(key, f"missing, but {other} is set", f"{NAME} config explain {key}")
    return Tls(settings.tls_cert, settings.tls_key)


def _load(cert: str, key: str) -> _Loaded:
    chain, private = _read(_CERT, cert), _read(_KEY, key)
    look = f"openssl x509 -noout -subject -enddate -in {shlex.quote(cert)}"
    if Path(key).stat().st_mode & 0o007:
        raise _unusable(_KEY, f"every user of this machine has access to {key}", f"chmod o= {shlex.quote(key)}")
    try:
        certificates = x509.load_pem_x509_certificates(chain)
    except ValueError:
        raise _unusable(_CERT, f"{cert} has no certificate in PEM format", look) from None
    leaf, now, until = certificates[0], datetime.now(UTC), not_after(certificates)
    if until <= now:
        raise _unusable(_CERT, f"the certificate in {cert} expired on {until:%Y-%m-%d %H:%M} UTC; renew it", look)
    if leaf.not_valid_before_utc > now:
        since = leaf.not_valid_before_utc
        raise _unusable(_CERT, f"the certificate in {cert} is not valid before {since:%Y-%m-%d %H:%M} UTC", look)
    if b"ENCRYPTED" in private:
        raise _unusable(_KEY, f"the key in {key} has a passphrase", f"openssl pkey -in {shlex.quote(key)}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # costs us more than the client
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _unusable(_KEY, f"the key in {key} is not that of the certificate in {cert}", look) from None
        raise _unusable(
            _KEY,
            f"{key} has no private key in PEM format that can be used ({error.reason})",
            f"head -n 1 {shlex.quote(key)}",
        ) from None
    about = f"certificate of {_names(leaf)}, valid until {until:%Y-%m-%d %H:%M} UTC"
    if ends_soon(until):
        logger.warning("the {}, ends soon; renew it and send SIGHUP", about)
    return _Loaded(context, chain + private, about, until)


def _read(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unusable(setting, f"cannot read {path}: {error.strerror}", f"ls -l {shlex.quote(path)}") from None


def _names(leaf: x509.Certificate) -> str:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return leaf.subject.rfc4514_string()
    return ", ".join([*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))])


def _unusable(setting: str, reason: str, hint: str) -> Misconfigured:
    return Misconfigured(f"{setting}: {reason}", hint=hint)
