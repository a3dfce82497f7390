"""Addresses: canonical spelling, networks, the unit of rate limits, and lists of hosts with ports."""

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

Network = IPv4Network | IPv6Network
_WITH_IPV4 = tuple(map(IPv6Network, ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")))
_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[0-9.]+)(?=:))(?::(?P<port>[0-9]{1,5}))?")
_LEAST = 0xFFFF  # `::`, `::1` and their neighbours are IPv6
_LONGEST = 128
_REMEMBERED = 4096
_ENDPOINT = re.compile(r"(?P<host>\[[^\[\]]+\]|[^\[\]:]+)(?::(?P<port>[1-9][0-9]{0,4}))?", re.ASCII)
_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")


@lru_cache(_REMEMBERED)
def canonical(text: str) -> str:
    """Return the canonical spelling of an address, or an empty text when it is invalid.

    Port, brackets, quotes and zone are dropped. An IPv4 address in an IPv6 one - mapped (RFC 4291, section 2.5.5.2),
    translated (RFC 6052, section 2.1; RFC 2765, section 2.1) or compatible (RFC 4291, section 2.5.5.1) - becomes IPv4.
    """
    address = parsed(text)
    return "" if address is None else str(address)


@lru_cache(_REMEMBERED)
def limited(address: str) -> str:
    """Return the unit of rate limits: the IPv4 address, or the /64 network of an IPv6 one."""
    found = parsed(address)
    if isinstance(found, IPv6Address):
        return str(IPv6Network((found, 64), strict=False))
    return address if found is None else str(found)


def network(text: str) -> Network:
    """Parse an address or CIDR. Raises ValueError."""
    found = ip_network(text)
    if isinstance(found, IPv6Network) and found.prefixlen >= 96 and (v4 := found.network_address.ipv4_mapped):
        return IPv4Network((v4, found.prefixlen - 96))
    return found


def is_loopback(host: str) -> bool:
    """Return whether an address or name is a loopback one."""
    name = host.strip().lower().removesuffix(".")
    if name in _LOCAL_NAMES or name.endswith(".localhost"):
        return True
    address = parsed(name)
    return address is not None and address.is_loopback


def endpoints(hosts: str, port: int) -> list[tuple[str, int]]:
    """Return host and port of each of some hosts, separated by commas; `port` is for those without their own.

    A host is a name, an address or, beginning with a slash or @, a socket folder: `db1,db2:5433,[::1]:5434`.
    Raises ValueError.
    """
    return [_endpoint(host.strip(), port) for host in hosts.split(",")]


def _endpoint(text: str, port: int) -> tuple[str, int]:
    if text.startswith(("/", "@")) or (text.count(":") > 1 and "[" not in text):
        return text, port
    match = _ENDPOINT.fullmatch(text)
    if match is None or int(match["port"] or port) > 65535:
        raise ValueError("expected a host, or a host and a port such as db1:5433 or [::1]:5433")
    return match["host"].strip("[]"), int(match["port"] or port)


def nats_servers(text: str) -> list[str]:
    """Return the URLs of NATS servers, separated by commas. Raises ValueError, without the passwords in them."""
    found = [url.strip() for url in text.split(",") if url.strip()]
    for url in found:
        try:
            parts = urlsplit(url)
            # a password with / ? or # that is not percent-encoded would be taken for a host, a path or more
            is_bare = parts.path in ("", "/") and not parts.query and not parts.fragment
            is_valid = parts.scheme in ("nats", "tls") and parts.hostname and is_bare
            is_valid = is_valid and (parts.port is None or parts.port > 0)
        except ValueError:
            is_valid = False
        if not is_valid:
            raise ValueError("expected addresses such as nats://HOST:4222 or tls://HOST:4222, separated by commas")
    return found


@lru_cache(_REMEMBERED)
def parsed(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address as `canonical` does, or None."""
    if len(text) > _LONGEST:
        return None
    bare = text.strip(" \t")
    if len(bare) > 1 and bare[0] == bare[-1] == '"':
        bare = bare[1:-1]
    if match := _WITH_PORT.fullmatch(bare):
        if int(match["port"] or 0) > 65535:
            return None
        bare = match["v6"] or match["v4"]
    bare, zone, _ = bare.partition("%")
    try:
        address = IPv6Address(bare) if zone else ip_address(bare)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        v4 = address.ipv4_mapped
        if v4 is None and int(address) > _LEAST and any(address in network for network in _WITH_IPV4):
            v4 = IPv4Address(int(address) & 0xFFFF_FFFF)
        return v4 or address
    return address


def networks(texts: Iterable[str]) -> list[Network]:
    """Parse addresses or CIDR. Raises ValueError."""
    return [network(text) for text in texts]


def is_in(address: str, networks: Iterable[Network]) -> bool:
    """Return whether an address is in one of the networks."""
    found = parsed(address)
    return found is not None and any(found in network for network in networks)
