"""Listening sockets: bound here, or inherited from systemd (sd_listen_fds(3)).

An inherited socket stays open when its process ends: connections wait in its backlog for the next process. Imports
only the standard library, because the supervisor of workers does.
"""

import errno
import os
import socket
from collections.abc import MutableMapping
from typing import Any, Literal

from app.kernel.errors import Unavailable
from app.kernel.product import NAME

Name = Literal["http", "operations"]
"""A listener of a process, and the FileDescriptorName of its socket in systemd."""
BACKLOG = 1024
_FIRST = 3  # SD_LISTEN_FDS_START
_MOST = 64
_NAMES = ("http", "operations")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104 - compared, not listened on


class WrongSocket(Exception):
    """An inherited socket cannot be used; the message says why, and what to change."""


class InheritedSocket(socket.socket):
    """A listening socket that stays open when this process closes it: its backlog is left to the next process."""


class Sockets:
    """The sockets that the listeners of a process get."""

    def __init__(self) -> None:
        self._inherited: list[tuple[str, InheritedSocket]] = []
        self._used: dict[InheritedSocket, Name] = {}

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> "Sockets":
        """Return the sockets that systemd passes, and remove them from the environment, because children inherit it.

        Raises WrongSocket for what is no listening TCP socket.
        """
        owner, count, names = (environment.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
        found = cls()
        if owner != str(os.getpid()):
            return found
        if not (count.isascii() and count.isdigit() and int(count) <= _MOST):
            raise WrongSocket(f"LISTEN_FDS={count} is not a number of sockets")
        named = names.split(":") if names else []
        for place in range(int(count)):
            name = named[place] if place < len(named) else "unknown"
            found._inherited.append((name, _checked(_FIRST + place, name)))
        return found

    def listen(self, name: Name, host: str, port: int, section: str = "") -> socket.socket:
        """Return the inherited socket with the name or the port of a listener, else one that is bound to the address.

        A listener that asks again gets its inherited socket again.
        `section` is where the address is set; by default, with --host and --port. Raises WrongSocket if an inherited
        socket listens elsewhere, and Unavailable with a reason and a remedy if the address cannot be used.
        """
        found = self._found(name, port)
        if found is None:
            return bind(host, port, section)
        fd_name, sock = found
        self._used[sock] = name
        address, actual = sock.getsockname()[:2]
        host_option, port_option = _options(section)
        if port not in (0, actual):
            raise WrongSocket(
                f"the inherited socket {fd_name!r} listens on port {actual}, and {port_option} is {port};"
                f" make ListenStream= and {port_option} equal, or take any port with 0"
            )
        if not _is_covered(address, host):
            raise WrongSocket(
                f"the inherited socket {fd_name!r} listens on {address}, and {host_option} is {host};"
                f" make ListenStream= and {host_option} equal"
            )
        return sock

    def check_all_used(self) -> None:
        """Raise WrongSocket if no listener has taken an inherited socket: its connections would stay unanswered."""
        for name, sock in self._inherited:
            if sock in self._used:
                continue
            raise WrongSocket(
                f"no listener of this process uses the inherited socket {name!r}, port {sock.getsockname()[1]}; make"
                f" its port that of a listener, or set FileDescriptorName= to {' or '.join(_NAMES)}"
            )

    def _found(self, name: Name, port: int) -> tuple[str, InheritedSocket] | None:
        free = [each for each in self._inherited if self._used.get(each[1], name) == name]
        for each in free:
            if each[0] == name or each[1] in self._used:
                return each
        unnamed = [each for each in free if each[0] not in _NAMES]
        for each in unnamed:
            if each[1].getsockname()[1] == port:
                return each
        return unnamed[0] if len(unnamed) == 1 and (port == 0 or name == "http") else None


def bind(host: str, port: int, section: str = "") -> socket.socket:
    """Return a socket bound to the address of a section of settings; by default, the one that --host and --port set.

    Raises Unavailable with a reason and a remedy.
    """
    sock: socket.socket | None = None
    try:
        family, address = resolved(host, port)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except (OSError, OverflowError, ValueError) as error:
        if sock is not None:
            sock.close()
        hint = ""
        if getattr(error, "errno", None) == errno.EADDRINUSE:  # each process of a machine needs its own
            hint = f"export {section.upper()}_PORT={port + 1}" if section else f"{NAME} doctor --only ports"
        raise Unavailable(_why_not(host, port, error, section), hint=hint) from None
    sock.setblocking(False)
    return sock


def resolved(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Return the family and the address to listen on: IPv4, if the host has it. Raises OSError, UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, address


def _options(section: str) -> tuple[str, str]:
    return (f"{section}.host", f"{section}.port") if section else ("--host", "--port")


def _why_not(host: str, port: int, error: Exception, section: str) -> str:
    """Return why the address cannot be used, and what to change."""
    host_option, port_option = _options(section)
    if isinstance(error, socket.gaierror | UnicodeError):
        reason = error.strerror if isinstance(error, socket.gaierror) else "it is not a host name"
        return f"the host {host!r} does not resolve ({reason}); give an address of this machine with {host_option}"
    match getattr(error, "errno", None):
        case errno.EADDRINUSE:
            return f"port {port} on {host} is in use; choose another with {port_option}"
        case errno.EACCES | errno.EPERM:
            return f"port {port} on {host} is reserved for root; choose 1024 or higher with {port_option}"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine; choose another with {host_option}"
        case errno.EAFNOSUPPORT:
            return f"{host} is an IPv6 address, which this machine does not support; choose another with {host_option}"
        case _:
            return f"port {port} on {host} cannot be used: {error}; see {host_option} and {port_option}"


def _checked(fd: int, name: str) -> InheritedSocket:
    """Return the listening socket of a descriptor. Raises WrongSocket."""
    about = f"the inherited socket {name!r} (descriptor {fd})"
    try:
        sock = InheritedSocket(fileno=fd)
    except OSError as error:
        raise WrongSocket(f"{about} is not a socket: {error.strerror}") from None
    reason = ""
    if sock.family not in _FAMILIES:
        reason = "is not a TCP socket; set ListenStream= to an address and a port"
    elif sock.type != socket.SOCK_STREAM:
        reason = "is a datagram socket; set ListenStream=, not ListenDatagram="
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        reason = "is not listening; set Accept=no"
    if reason:
        sock.close()
        raise WrongSocket(f"{about} {reason}")
    os.set_inheritable(fd, False)
    sock.setblocking(False)
    return sock


def _is_covered(address: str, host: str) -> bool:
    """Return whether an address is one of a host. A wildcard has all of them."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    return address in found or bool(found & _WILDCARDS)
