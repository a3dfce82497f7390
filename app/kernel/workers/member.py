"""A worker as the supervisor sees it: a process that runs the command, and the supervisor's end of its link."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from app.kernel.errors import Unavailable
from app.kernel.sockets import InheritedSocket, WrongSocket
from app.kernel.workers import VARIABLE
from app.kernel.workers.families import Family
from app.kernel.workers.link import Answer, Link, NoAnswer, Receive

_LONGEST_BYTES = 65536
_ANSWER_S = 2.5
_SILENT_S = 3.0  # afterwards, its answers are not awaited
_STACKS_S = 1.0
_STOP_S, _TIMEOUT_S = 60.0, 30.0  # until it has sent its own

Listen = Callable[["Member", tuple[Any, str, int, str]], socket.socket]


class Member:
    """One worker process."""

    def __init__(self, number: int, answer: Answer, told: Receive) -> None:
        self.number = number
        self.name = f"worker {number}"
        self.state: Literal["starting", "ready", "leaving"] = "starting"
        self.ready, self.ended = asyncio.Event(), asyncio.Event()
        self.status = 0
        self.url = ""
        self.addresses: set[tuple[str, str, int]] = set()
        """What it listens on."""
        self.metrics: list[Family] = []
        self.silent_s = 0.0
        self.stop_s, self.timeout_s = _STOP_S, _TIMEOUT_S
        self.is_killed = False
        self._answer, self._told = answer, told
        self._process: asyncio.subprocess.Process
        self._link: Link

    @property
    def hangs(self) -> bool:
        """Whether it has been silent for too long."""
        return self.state == "ready" and self.silent_s > self.timeout_s

    async def start(self, command: Sequence[str], environment: Mapping[str, str], count: int) -> None:
        """Start the process. Raises OSError."""
        ours, theirs = socket.socketpair()
        ours_sockets, theirs_sockets = socket.socketpair()
        self._sockets = ours_sockets
        with theirs, theirs_sockets:
            fds = (theirs.fileno(), theirs_sockets.fileno())
            about = ":".join(map(str, (self.number, count, os.getpid(), *fds)))
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env={**environment, VARIABLE: about},
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=fds,
                process_group=0,  # the keys of a terminal are for the supervisor, which forwards
            )
        self._link = Link(ours, self._answer, self._receive)
        await self._link.connect()

    async def run(self, listen: Listen) -> None:
        """Serve the worker until it has ended."""
        loop = asyncio.get_running_loop()
        self._sockets.setblocking(False)
        loop.add_reader(self._sockets, self._give_socket, listen)
        try:
            await asyncio.gather(self._link.run(), self._process.wait())
        finally:
            loop.remove_reader(self._sockets)
            self._sockets.close()
            self.status = self._process.returncode or 0
            self.ended.set()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal. Ignored when the process has ended."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    def leave(self) -> None:
        """Ask it to finish its requests and jobs, and to leave new ones to others."""
        self.state = "leaving"
        self._link.tell("leave")

    async def missing(self) -> dict[str, str]:
        """Return what keeps it from accepting work."""
        if not self.ready.is_set():
            return {"process": "starting"}
        try:
            return await self._ask("missing")
        except NoAnswer:
            return {"process": "no answer"}

    async def measure(self) -> bool:
        """Renew `metrics`; return whether it answered."""
        try:
            self.metrics = await self._ask("metrics")
        except NoAnswer:
            return False
        return True

    async def _ask(self, what: str) -> Any:
        if self.silent_s > _SILENT_S:
            raise NoAnswer(what)
        return await self._link.ask(what, _ANSWER_S)

    async def kill(self) -> None:
        """End it without cleaning up; it first writes where it hangs."""
        self.is_killed = True
        self.signal(signal.SIGUSR2)
        await asyncio.sleep(_STACKS_S)
        self.signal(signal.SIGKILL)

    def _receive(self, what: str, value: Any) -> None:
        self.silent_s = 0.0
        match what:
            case "settings":
                self.stop_s, self.timeout_s = value["stop_s"], value["timeout_s"]
            case "ready":
                if self.state == "starting":
                    self.state = "ready"
                self.ready.set()
            case "serving":
                self.url = value
            case "metrics":
                self.metrics = value
            case _:
                pass
        self._told(what, value)

    def _give_socket(self, listen: Listen) -> None:
        """Answer a request for a listening socket."""
        try:
            request = self._sockets.recv(_LONGEST_BYTES)
        except OSError:
            request = b""
        if not request:
            asyncio.get_running_loop().remove_reader(self._sockets)
            return
        try:
            sock = listen(self, json.loads(request))
        except (Unavailable, WrongSocket) as error:
            hint = error.hint if isinstance(error, Unavailable) else ""
            answer = {"reason": str(error), "hint": hint, "is_wrong": isinstance(error, WrongSocket)}
            self._sockets.sendall(json.dumps(answer).encode())
        else:
            answer = {"is_inherited": isinstance(sock, InheritedSocket)}
            socket.send_fds(self._sockets, [json.dumps(answer).encode()], [sock.fileno()])
