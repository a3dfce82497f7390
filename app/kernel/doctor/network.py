"""Checks of what we send to: the collector of traces."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import urlsplit

from app.kernel.config import TelemetrySettings
from app.kernel.doctor import Check, Finding, NotChecked, warn
from app.kernel.doctor.deployment import Deployment

_ASK_S = 3.0
_MOST_LINES = 50


async def unreachable(host: str, port: int, *, tls: bool = False) -> str:
    """Return why a connection to an address fails, or an empty text."""
    try:
        async with asyncio.timeout(_ASK_S):
            context = ssl.create_default_context() if tls else None
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except TimeoutError:
        return f"no answer within {_ASK_S:g} s"
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is refused: {error.verify_message}"
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    with suppress(OSError):
        writer.transport.abort()
    return ""


async def starts_tls(host: str, port: int) -> str:
    """Return why a mail server does not offer encryption (STARTTLS, RFC 3207), or an empty text. Sends no mail."""
    try:
        async with asyncio.timeout(_ASK_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                if not (await _reply(reader)).startswith(b"220"):
                    return "it is not a mail server"
                writer.write(b"EHLO localhost\r\n")
                offered = await _reply(reader)
                writer.write(b"QUIT\r\n")
            finally:
                writer.transport.abort()
    except TimeoutError:
        return f"no answer within {_ASK_S:g} s"
    except (OSError, UnicodeError, ValueError, EOFError) as error:
        return getattr(error, "strerror", None) or "it is not a mail server"
    return "" if b"STARTTLS" in offered.upper() else "it does not offer STARTTLS, so the password would not be sent"


async def _reply(reader: asyncio.StreamReader) -> bytes:
    """Read a reply of SMTP (RFC 5321, section 4.2.1). Raises EOFError, ValueError."""
    lines: list[bytes] = []
    for _ in range(_MOST_LINES):
        lines.append(await reader.readline())
        if not lines[-1]:
            raise EOFError
        if lines[-1][3:4] != b"-":
            break
    return b"".join(lines)


async def collector(d: Deployment) -> AsyncIterator[Finding]:
    """Connect to the OpenTelemetry collector; sends nothing."""
    endpoint = d[TelemetrySettings].otlp_endpoint
    if not endpoint:
        raise NotChecked("telemetry.otlp_endpoint is empty, so traces are not exported")
    parts = urlsplit(endpoint)
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 4318)
    if why := await unreachable(parts.hostname or "", port, tls=tls):
        listen = f"nc -vz {parts.hostname} {port}  # then start it, or correct TELEMETRY_OTLP_ENDPOINT"
        yield warn(f"the collector {parts.hostname}:{port} is unreachable: {why}; traces are dropped", listen)


CHECKS = (Check("collector", "network", "The collector of traces is reachable.", collector),)
