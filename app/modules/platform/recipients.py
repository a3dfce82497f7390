"""Recipients of messages: webhooks through the HTTP client, all others through Apprise."""

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import parse_qsl, urlsplit

from pydantic import SecretStr

from app.kernel.errors import NotFound, Unavailable
from app.modules.platform.domain.messages import Message

if TYPE_CHECKING:
    from app.kernel.http.client import HttpClient

_WEBHOOKS = {"json": "http", "jsons": "https"}


class NotifyRecipients:
    """The recipients in the settings, named by fingerprints because their URLs hold secrets. Webhooks need `http`."""

    def __init__(self, urls: SecretStr, http: "HttpClient | None" = None) -> None:
        self._secret = urls
        self._http = http

    def _urls(self) -> dict[str, str]:
        urls = self._secret.get_secret_value().split()  # they may be renewed
        return {hashlib.sha256(url.encode()).hexdigest()[:12]: url for url in urls}

    def names(self) -> list[str]:
        return list(self._urls())

    async def send(self, message: Message) -> None:
        url = self._urls().get(message.recipient)
        if url is None:
            raise NotFound(f"no recipient {message.recipient} in sentinel.notify_urls")
        if self._http is not None and is_webhook(url):
            accepted = await _post(self._http, url, message)
        else:
            accepted = await asyncio.to_thread(_notify, url, message)
        if not accepted:
            scheme = url.partition("://")[0]
            raise Unavailable(f"the {scheme} recipient {message.recipient} did not accept the message")


class Server(NamedTuple):
    """Where the messages to a recipient go; `host` is empty when that is not known."""

    host: str
    port: int = 0
    tls: bool = False
    starts_tls: bool = False


def server_of(url: str) -> Server | None:
    """Return the server of a recipient, or None for an invalid URL. Connects to nothing."""
    import logging

    from apprise import Apprise

    logging.getLogger("apprise").disabled = True  # its messages have parts of the URL
    parsed: Any = cast("Any", Apprise).instantiate(url)
    if parsed is None:
        return None
    if smtp := getattr(parsed, "smtp_host", None):
        mode = str(getattr(parsed, "secure_mode", ""))
        tls = bool(parsed.secure)
        return Server(smtp, parsed.port or 25, tls and mode == "ssl", tls and mode == "starttls")
    if host := getattr(parsed, "host", None):
        tls = bool(parsed.secure)
        return Server(host, parsed.port or (443 if tls else 80), tls)
    address = urlsplit(str(getattr(parsed, "notify_url", "")))  # of a service such as Slack
    if address.scheme != "https" or not address.hostname or "{" in address.hostname:
        return Server("")
    return Server(address.hostname, address.port or 443, tls=True)


def is_webhook(url: str) -> bool:
    """Return whether the HTTP client serves a URL: `json://` or `jsons://` without Apprise options."""
    try:
        parts = urlsplit(url)
        fields = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        plain = parts.scheme in _WEBHOOKS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return plain and all(name[:1] == "+" for name, _ in _plus(fields))


def _plus(fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Restore the plus that marks a header field, which form decoding turns into a space."""
    return [(f"+{name[1:]}" if name[:1] == " " else name, value) for name, value in fields]


async def _post(http: "HttpClient", url: str, message: Message) -> bool:
    """Post a message in Apprise's `json://` format, version 1.0; return whether it was accepted."""
    parts = urlsplit(url)
    target = f"{_WEBHOOKS[parts.scheme]}://{parts.netloc}{parts.path}"
    headers = {name[1:]: value for name, value in _plus(parse_qsl(parts.query, keep_blank_values=True))}
    body: dict[str, Any] = {
        "version": "1.0",
        "title": message.title,
        "message": message.body,
        "type": "info",
        "attachments": [],
    }
    try:
        answer = await http.post(target, json=body, headers=headers)
    except Unavailable:
        return False
    return answer.is_success


def _notify(url: str, message: Message) -> bool:
    from apprise import Apprise  # takes a quarter of a second to import

    from app.kernel.telemetry.traces import trace_requests

    trace_requests()
    recipients: Any = Apprise()
    return bool(recipients.add(url)) and bool(
        recipients.notify(title=message.title, body=message.body, body_format="text")
    )
