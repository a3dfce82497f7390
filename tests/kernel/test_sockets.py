"""Listening sockets that a process inherits as from systemd."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from app.kernel.sockets import InheritedSocket, Sockets, WrongSocket
from app.kernel.workers.worker import Worker
from tests.support.activation import Activation, listening
from tests.support.project import Project


@contextmanager
def inherited(*named: tuple[str, socket.socket]) -> Iterator[Sockets]:
    """The sockets of a process that has inherited these."""
    sockets = Sockets()
    with ExitStack() as opened:
        for name, sock in named:
            sockets._inherited.append((name, opened.enter_context(InheritedSocket(fileno=os.dup(sock.fileno())))))  # pyright: ignore[reportPrivateUsage]
            opened.enter_context(sock)
        yield sockets


def port_of(sock: socket.socket) -> int:
    return sock.getsockname()[1]


def test_sockets_are_found_by_name_then_by_port_and_others_are_bound() -> None:
    first, second, third = listening(), listening(), listening()
    with inherited(("a.socket", first), ("operations", second), ("b.socket", third)) as sockets:
        assert port_of(sockets.listen("operations", "127.0.0.1", 0)) == port_of(second)
        assert port_of(sockets.listen("http", "localhost", port_of(third))) == port_of(third)
        with pytest.raises(WrongSocket, match=r"no listener of this process uses the inherited socket 'a\.socket'"):
            sockets.check_all_used()
        assert port_of(sockets.listen("http", "localhost", port_of(third))) == port_of(third)  # again, as workers do


def test_port_0_takes_any_socket_and_without_one_a_port_is_bound() -> None:
    only = listening()
    with inherited(("a.socket", only)) as sockets:
        assert port_of(sockets.listen("http", "127.0.0.1", 0)) == port_of(only)
        sockets.check_all_used()
        with sockets.listen("operations", "127.0.0.1", 0) as bound:
            assert not isinstance(bound, InheritedSocket)


@pytest.mark.parametrize(
    ("bound", "host"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.2", "127.0.0.1"), ("127.0.0.1", "::1")]
)
def test_a_socket_on_another_address_than_the_configured_one_is_refused(bound: str, host: str) -> None:
    with inherited(("http", listening(bound))) as sockets, pytest.raises(WrongSocket, match="make ListenStream= and"):
        sockets.listen("http", host, 0)


def test_a_socket_on_one_address_is_part_of_a_wildcard() -> None:
    with inherited(("http", listening())) as sockets:
        assert sockets.listen("http", "0.0.0.0", 0)


def _unlistening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def _datagram() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _local() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(Path(tempfile.mkdtemp()) / "socket"))
    sock.listen()
    return sock


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_unlistening, "is not listening; set Accept=no"),
        (_datagram, "is a datagram socket; set ListenStream=, not ListenDatagram="),
        (_local, "is not a TCP socket; set ListenStream= to an address and a port"),
        (listening, "listens on port"),
    ],
)
def test_a_wrong_socket_ends_the_start_with_one_line(cli: Project, make, reason: str) -> None:
    with Activation(make()) as activation:
        running = cli.start("run-auth-http", "--port", "9", activation=activation)
        assert running.wait() == 78
    (line,) = running.errors.read_text().splitlines()
    assert line.startswith("app: the inherited socket 'unknown'")
    assert reason in line


def test_sockets_of_another_process_are_ignored_and_forgotten() -> None:
    environment = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "OTHER": "kept"}
    Sockets.taken_from(environment).check_all_used()
    assert environment == {"OTHER": "kept"}


@pytest.mark.parametrize("count", ["", "x", "-1", "65", "²"])
def test_a_malformed_number_of_sockets_is_refused(count: str) -> None:
    with pytest.raises(WrongSocket, match="is not a number of sockets"):
        Sockets.taken_from({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def test_a_socket_of_the_supervisor_is_not_passed_to_children() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, listening() as listener:
        socket.send_fds(ours, [b'{"is_inherited": false}'], [listener.fileno()])
        with Worker(1, 2, theirs, theirs).sockets.listen("http", "127.0.0.1", 0) as given:
            assert port_of(given) == port_of(listener)
            assert not given.get_inheritable()
