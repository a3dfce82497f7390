"""Where a request comes from."""

from collections.abc import Sequence

from app.kernel.addresses import Network, canonical, network, parsed
from app.kernel.callers import Origin
from app.kernel.http.asgi import Scope, header

_LONGEST_USER_AGENT = 256
_MOST_HOPS = 32


def networks(trusted: Sequence[str]) -> list[Network]:
    """Return the networks that are written as addresses or CIDR. Raises ValueError."""
    return [network(text) for text in trusted]


def origin(scope: Scope, trusted: Sequence[Network]) -> Origin:
    """Return address, user agent and request id."""
    agent = (header(scope, b"user-agent") or b"")[:_LONGEST_USER_AGENT].decode("latin-1")
    printable = agent if agent.isprintable() else "".join(c if c.isprintable() else "?" for c in agent)
    return Origin(client_address(scope, trusted), printable, scope.get("state", {}).get("request_id", ""))


def client_address(scope: Scope, trusted: Sequence[Network]) -> str:
    """Return the address of the client, in its one spelling.

    `X-Forwarded-For` counts as far as trusted proxies wrote it: from the last element to the first that is none of
    theirs. At one that is no address (`unknown`, an obfuscated name) it is unknown who was before, so the proxy that
    wrote it counts. `Forwarded` and `X-Real-IP` are not read.
    """
    client = scope.get("client")
    address = (canonical(client[0]) or client[0]) if client else ""
    if not trusted or not is_trusted(address, trusted):
        return address
    forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    for hop in reversed(forwarded.decode("latin-1").rsplit(",", _MOST_HOPS)[-_MOST_HOPS:]):
        if not (written := hop.strip(" \t")):  # RFC 9110, section 5.6.1.2: an empty element means nothing
            continue
        if not (found := canonical(written)):
            break
        address = found
        if not is_trusted(address, trusted):
            break
    return address


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """Return whether an address is in one of the networks."""
    found = parsed(address)
    return found is not None and any(found in network for network in trusted)
