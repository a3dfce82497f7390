"""Addresses of Redis or Valkey. An error never contains the address, which may have a password."""

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

FORMS = "redis://HOST:PORT/DB, redis+sentinel://HOST,HOST/SERVICE or redis+cluster://HOST,HOST (rediss with TLS)"
Kind = Literal["single", "sentinel", "cluster"]
_KINDS: dict[str, Kind] = {"": "single", "+sentinel": "sentinel", "+cluster": "cluster"}
_URL = re.compile(r"redis(s?)(\+sentinel|\+cluster|)://(?:(.*)@)?([^/]*)/?(.*)", re.DOTALL)
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+(?:%\w+)?\]|[\w.-]+)(?::([0-9]{1,5}))?", re.ASCII)
_PORT, _SENTINEL_PORT = 6379, 26379


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is, and how to sign in. With Sentinel, `hosts` are the Sentinels."""

    kind: Kind
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    db: int = 0
    service: str = ""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_user: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{self.service} of {hosts}" if self.service else hosts


def address(url: str) -> Address:
    """Return the parts of a URL. Raises ValueError, which says what is wrong with it."""
    found = _URL.fullmatch(url.strip())
    if found is None:
        raise ValueError(f"expected {FORMS}")
    tls, kind = bool(found[1]), _KINDS[found[2]]
    if "?" in found[5] or "#" in found[5]:
        raise ValueError("expected no options after ? or #, and those characters as %3F and %23 in a password")
    user, colon, password = (unquote(part) for part in (found[3] or "").partition(":"))
    if found[3] is not None and not colon:
        raise ValueError("expected a colon between user and password, or before a password without a user")
    hosts = tuple(_host(text, _SENTINEL_PORT if kind == "sentinel" else _PORT) for text in found[4].split(","))
    if kind == "single" and len(hosts) > 1:
        raise ValueError("expected one host; several are for redis+sentinel:// and redis+cluster://")
    service, _, db = found[5].partition("/") if kind == "sentinel" else ("", "", found[5])
    service = unquote(service)
    if kind == "sentinel" and not service:
        raise ValueError("expected the name of the service after the Sentinels: redis+sentinel://HOST,HOST/SERVICE")
    if not re.fullmatch("[0-9]{0,5}", db, re.ASCII):
        raise ValueError("expected the number of a database after the last /")
    if kind == "cluster" and int(db or 0):
        raise ValueError("expected no database: a cluster has only database 0")
    return Address(kind, tls, hosts, int(db or 0), service, user or None, password or None)


def _host(text: str, port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text.strip())
    if found is None or not 0 < int(found[2] or port) < 65536:
        raise ValueError(f"expected hosts as HOST or HOST:PORT, separated by commas: {FORMS}")
    return found[1].strip("[]"), int(found[2] or port)
