"""More clients than there are descriptors or memory for, at real processes."""

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.project import Project, Running, eventually


def limited(project: Project, files: int, folder: Path) -> Project:
    """The project, whose processes may have so many files open."""
    shell = folder / "python"
    shell.write_text(f'#!/bin/sh\nulimit -n {files}\nexec {project.python} "$@"\n')
    shell.chmod(0o755)
    project.python = str(shell)
    return project


def descriptors(running: Running) -> int:
    """Return how many there are of clients."""
    lines = [line.split() for line in Path(f"/proc/{running.pid}/net/tcp").read_text().splitlines()[1:]]
    port = urlsplit(running.url()).port
    inodes = {f"socket:[{line[9]}]" for line in lines if int(line[1].partition(":")[2], 16) == port and line[3] != "0A"}
    found = 0
    for file in Path(f"/proc/{running.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += os.readlink(file) in inodes  # noqa: PTH115 - it is no path
    return found


def resident_bytes(running: Running) -> int:
    return int(Path(f"/proc/{running.pid}/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def clients(url: str, count: int, said: bytes) -> Iterator[list[socket.socket]]:
    """So many connections, on each of which the same was said."""
    parts = urlsplit(url)
    with ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection((parts.hostname, parts.port), 10))
            sock.settimeout(10)
            sock.sendall(said)
            socks.append(sock)
        yield socks


def health(url: str) -> bool:
    """Return whether /health answers within a second."""
    try:
        return httpx.get(f"{url}/health", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("command", ["run-auth-http", "run-platform-http", "run-event-consumer"])
def test_more_clients_than_descriptors_are_refused_and_health_is_answered(
    project: Project, tmp_path: Path, command: str
) -> None:
    running = limited(project, 64, tmp_path).start(command, env={"POSTGRES_POOL_SIZE": "10"})
    url = running.ready()
    body = b"POST /auth/v1/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    for said in (b"", b"GET /health HTTP/1.1\r\nhost: x\r\n", body, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"):
        with clients(url, 100, said):
            assert health(url), said
            assert descriptors(running) > 0
            assert httpx.get(f"{url}/ready", timeout=5).status_code == 200, said
        assert health(url), said
        eventually(lambda: descriptors(running) == 0, 5)
    assert any("address" in message and "refused" in message for message in running.messages())
    assert running.stop() == 0


def test_unfinished_bodies_do_not_fill_the_memory(project: Project) -> None:
    running = project.start("run-auth-http", env={"HTTP_SERVER_MAX_CONNECTIONS": "700"})
    url = running.ready()
    before = resident_bytes(running)
    size = 1_000_000
    head = (
        "POST /auth/v1/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {size + 1}\r\n\r\n"
    )
    with clients(url, 300, head.encode() + b" " * size) as socks:
        assert resident_bytes(running) - before < 100_000_000
        told = [sock.recv(1000)[:13] for sock in socks]
    assert told.count(b"HTTP/1.1 503 ") > 250, "those that were too much were not told so"
    assert health(url)
    assert 'http_server_refused_total{reason="body"}' in httpx.get(f"{url}/metrics").text
    assert running.stop() == 0
