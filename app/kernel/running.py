"""The processes that run on this machine or in this container: each leaves its address for `app health`.

An address is a small file in memory, locked for as long as its process lives, so that one which was killed is
recognised in any PID namespace. Imports only the standard library.
"""

import contextlib
import fcntl
import json
import os
import pwd
import secrets
import stat
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from app.kernel.product import NAME

FOLDERS = (Path("/dev/shm"), Path("/tmp"))  # noqa: S108 - the owner of each file is checked
"""Writable also with a read-only root and in hardened systemd units. The first one that is."""
_PREFIX = f"{NAME}-process-"
NOT_ANNOUNCED = f"no folder for the address of this process is writable: {NAME} health needs --port"
_LONGEST = 4096
_LONGEST_ANSWER = 1 << 20
_BEING_WRITTEN_S = 60.0
_LISTENING = "0A"  # TCP_LISTEN


class Running(NamedTuple):
    """A process that serves: its command, and the URL of its listener."""

    name: str
    url: str


@contextlib.contextmanager
def announced(name: str, url: str, root: Path) -> Generator[bool]:
    """Leave the address of a process of the installation at `root` while the body runs.

    Gives False when no folder is writable. Removes the addresses of killed processes.
    """
    list(_found(None))
    opened = _create()
    if opened is None:
        yield False
        return
    path, fd = opened
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, json.dumps({"name": name, "url": url, "place": _place(root)}).encode())
        yield True
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(fd)


def running(root: Path) -> list[Running]:
    """Return the processes of the installation at `root` that run as users whom this one trusts, by name."""
    return sorted(_found(_place(root)))


def trusted() -> set[int]:
    """Return the users whose processes are believed: this one, root, and for root the user of our units."""
    found = {0, os.geteuid()}
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            found.add(pwd.getpwnam(NAME).pw_uid)
    return found


def ask(
    url: str, path: str, timeout_s: float, body: object = None, *, verified: bool = False, token: str = ""
) -> tuple[int, dict[str, Any]] | None:
    """Return the status and the JSON object that a listener answers; None without such an answer.

    A `body` is posted as JSON. `verified` checks the certificate; that of a process on this machine is for the public
    name. `token` is an access token.
    """
    import http.client
    import ssl

    parts = urlsplit(url)
    host, path = reachable(parts.hostname or ""), parts.path.rstrip("/") + path
    if parts.scheme == "https":
        context = ssl.create_default_context()
        if not verified:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, parts.port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            connection.request("POST", path, json.dumps(body), {**headers, "Content-Type": "application/json"})
        response = connection.getresponse()
        answer: object = json.loads(response.read(_LONGEST_ANSWER))
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return (response.status, cast("dict[str, Any]", answer)) if isinstance(answer, dict) else None


def url_of(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL of a listener."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def strangers(port: int) -> set[int]:
    """Return the users who listen on a TCP port here and are not trusted. Empty without Linux."""
    found = set[int]()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, uid, *_ = line.split()
                if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                    found.add(int(uid))
    return found - trusted()


def reachable(host: str) -> str:
    """Return the address to connect to for a listening address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on


def _place(root: Path) -> list[str]:
    """Return what must be the same for an address to mean anything: namespaces of processes and network, code."""
    found = [str(root)]
    for kind in ("pid", "net"):
        with contextlib.suppress(OSError):  # not on Linux
            found.append(os.readlink(f"/proc/self/ns/{kind}"))  # noqa: PTH115 - it is not a path
    return found


def _create() -> tuple[Path, int] | None:
    for folder in FOLDERS:
        path = folder / f"{_PREFIX}{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    return None


def _found(place: list[str] | None) -> Iterator[Running]:
    """Yield the processes at a place; remove the files of killed ones."""
    users = trusted()
    for folder in FOLDERS:
        for path in folder.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if (content := _read(path, users)) and content["place"] == place:
                    found = Running(str(content["name"]), str(content["url"]))
                    if urlsplit(found.url).port and "".join(found).isprintable():  # as others may have written it
                        yield found


def _read(path: Path, users: set[int]) -> dict[str, object] | None:
    """Return the content of the file of a living process of some users. Raises OSError and ValueError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_uid not in users:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            found: object = json.loads(os.read(fd, _LONGEST))
            return cast("dict[str, object]", found) if isinstance(found, dict) else None
        if about.st_size or time.time() - about.st_mtime > _BEING_WRITTEN_S:
            path.unlink()
        return None
    finally:
        os.close(fd)
