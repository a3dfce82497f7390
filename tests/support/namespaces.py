"""Network namespaces on a bridge of this machine, between which the network can be cut. They need root and iproute2."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

NETWORK = "198.18.{}"  # RFC 2544: for tests only


@dataclass(frozen=True)
class Namespace:
    """A network of its own with one address, which this machine reaches."""

    name: str
    host: str

    @property
    def command(self) -> list[str]:
        """Return what to put before a command that shall run there."""
        return ["ip", "netns", "exec", self.name]

    @contextmanager
    def cut_off(self, others: list["Namespace"]) -> Iterator[None]:
        """Let nothing through to or from others meanwhile; this machine still reaches all of them."""
        ways = [way for other in others for way in ((self, other), (other, self))]
        for one, other in ways:
            _ip("-n", one.name, "route", "add", "blackhole", other.host)
        try:
            yield
        finally:
            for one, other in ways:
                _ip("-n", one.name, "route", "del", "blackhole", other.host)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Make some, which can reach each other. Raises OSError or CalledProcessError where that is not allowed."""
    pid = os.getpid()
    bridge, subnet = f"t{pid}", NETWORK.format(pid % 250)
    with ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        made: list[Namespace] = []
        for number in range(count):
            made.append(Namespace(f"{bridge}-{number}", f"{subnet}.{number + 2}"))
            name, end = made[-1].name, f"v{pid}-{number}"
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", name)
            stack.callback(_ip, "link", "del", end)
            _ip("link", "set", end, "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{made[-1].host}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
        yield made
