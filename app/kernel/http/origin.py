"""Where a request comes from."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from app.kernel.http.asgi import Scope, header
from app.kernel.operations import Origin

Network = IPv4Network | IPv6Network
_LONGEST_USER_AGENT = 256


def networks(trusted: Sequence[str]) -> list[Network]:
    """Return the networks that are written as addresses or CIDR. Raises ValueError."""
    return [ip_network(text) for text in trusted]


def origin(scope: Scope, trusted: Sequence[Network]) -> Origin:
    """Return address, user agent and request id. `X-Forwarded-For` counts only as far as trusted proxies wrote it."""
    client = scope.get("client")
    address = client[0] if client else ""
    if trusted and _is_trusted(address, trusted):
        forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        for hop in reversed(b",".join(forwarded).decode("latin-1").split(",")):
            if not _is_address(hop.strip()):
                break
            address = hop.strip()
            if not _is_trusted(address, trusted):
                break
    agent = (header(scope, b"user-agent") or b"")[:_LONGEST_USER_AGENT].decode("latin-1")
    printable = agent if agent.isprintable() else "".join(c if c.isprintable() else "?" for c in agent)
    return Origin(address, printable, scope.get("state", {}).get("request_id", ""))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    return _is_address(address) and any(ip_address(address) in network for network in trusted)
