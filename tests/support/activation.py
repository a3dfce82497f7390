"""Socket activation as systemd does it: the harness holds the listening socket, and starts processes with it."""

import json
import os
import socket
import sys
from contextlib import ExitStack
from types import TracebackType

# becomes the command: sd_listen_fds(3) wants the descriptors at 3 and the process id of the command
_BECOME = """
import json, os, sys
sources, command = json.loads(sys.argv[1]), sys.argv[2:]
for place, fd in enumerate(sources):
    os.dup2(fd, 100 + place, inheritable=False)
    os.close(fd)
for place in range(len(sources)):
    os.dup2(100 + place, 3 + place)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(command[0], command)
"""


class Activation:
    """Sockets that stay open, and how a command is started with them."""

    def __init__(self, *sockets: socket.socket, names: str = "") -> None:
        self.sockets = sockets
        self.env = {"LISTEN_FDS": str(len(sockets))} | ({"LISTEN_FDNAMES": names} if names else {})
        self._open = ExitStack()
        for sock in sockets:
            self._open.enter_context(sock)

    def command(self, command: list[str]) -> list[str]:
        """Return the command that inherits the sockets. Pass `fds` to it."""
        return [sys.executable, "-c", _BECOME, json.dumps(self.fds), *command]

    @property
    def fds(self) -> list[int]:
        return [sock.fileno() for sock in self.sockets]

    def __enter__(self) -> "Activation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


def listening(host: str = "127.0.0.1", family: int = socket.AF_INET) -> socket.socket:
    """Return a listening socket on a free port."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, 0))
    sock.listen(1024)
    os.set_inheritable(sock.fileno(), True)
    return sock
