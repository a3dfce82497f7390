"""A worker's end of the link: who it is, its sockets, its heartbeat, and the questions it passes on."""

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from loguru import logger

from app.kernel.config import LoggerSettings, ProcessSettings
from app.kernel.errors import Unavailable
from app.kernel.services import Service
from app.kernel.sockets import InheritedSocket, Name, Sockets, WrongSocket
from app.kernel.systemd.notify import Notifier
from app.kernel.telemetry import logs, metrics
from app.kernel.workers import HEARTBEAT_S, VARIABLE
from app.kernel.workers.families import Family
from app.kernel.workers.link import Link, NoAnswer

if TYPE_CHECKING:
    from app.kernel.process import Process

_ASK_S = 4.0
_BIND_S = 10.0
_LONGEST_BYTES = 65536


class Worker:
    """The connection of a process to its supervisor."""

    def __init__(self, number: int, count: int, control: socket.socket, sockets: socket.socket) -> None:
        self.number = number
        self.count = count
        self.label = f"worker {number}/{count}"
        self.sockets: Sockets = _SupervisedSockets(sockets)
        self.notify: Notifier = _WorkerNotifier(self)
        self._control = control
        self._link: Link | None = None

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> "Worker | None":
        """Return the worker that the environment describes, and remove it from there, because children inherit it."""
        if not (text := environment.pop(VARIABLE, "")):
            return None
        number, count, supervisor, control, sockets = (int(part) for part in text.split(":"))
        _end_with(supervisor)
        return cls(number, count, _opened(control), _opened(sockets))

    async def run(self, p: "Process", services: Sequence[Service]) -> int:
        """Run a process as a worker: it answers the supervisor, sends heartbeats, and ends when the supervisor has."""
        async with self._linked(p):
            return await p.run(services)

    @asynccontextmanager
    async def _linked(self, p: "Process") -> AsyncGenerator[None]:

        async def answer(what: str) -> Any:
            return metrics.snapshot() if what == "metrics" else await p.missing()

        def receive(what: str, _: Any) -> None:
            if what == "leave":
                p.is_replaced = True
                signal.raise_signal(signal.SIGTERM)

        async def run() -> None:
            await link.run()
            logger.warning("the supervisor has ended")
            signal.raise_signal(signal.SIGTERM)

        async def beat() -> None:
            log, process = p.settings[LoggerSettings], p.settings[ProcessSettings]
            about: dict[str, object] = {"format": log.format, "level": log.level, "output": log.output}
            about["priorities"] = logs.PRIORITIES if log.output == "stdout" and logs.is_journal(1) else {}
            self.tell("settings", {"log": about, "timeout_s": process.worker_timeout, "stop_s": process.stop_s})
            while True:
                self.tell("heartbeat")
                await asyncio.sleep(HEARTBEAT_S)

        self._link = link = Link(self._control, answer, receive)
        await link.connect()
        running, beating = asyncio.ensure_future(run()), asyncio.ensure_future(beat())
        try:
            yield
        finally:
            self.tell("metrics", metrics.snapshot())
            beating.cancel()
            running.cancel()
            await asyncio.wait({beating, running})

    def tell(self, what: str, value: object = None) -> None:
        """Send a message to the supervisor."""
        if self._link is not None:
            self._link.tell(what, value)

    async def missing_of_all(self) -> dict[str, str]:
        """Return what keeps the workers from accepting work: worker and name to reason, empty when all are ready."""
        try:
            return await self._ask("missing")
        except NoAnswer:
            return {"supervisor": f"no answer within {_ASK_S:g} s"}

    async def metrics_of_all(self) -> tuple[dict[str, list[Family]], list[Family]]:
        """Return the metrics of each worker that answered, and the sums of ended ones and of the supervisor.

        Those of this worker only if the supervisor does not answer.
        """
        try:
            workers, ended = await self._ask("metrics")
        except NoAnswer:
            return {str(self.number): metrics.snapshot()}, []
        return workers, ended

    async def _ask(self, what: str) -> Any:
        if self._link is None:
            raise NoAnswer(what)
        return await self._link.ask(what, _ASK_S)


class _SupervisedSockets(Sockets):
    """Sockets that the supervisor binds once, for all workers."""

    def __init__(self, supervisor: socket.socket) -> None:
        super().__init__()
        self._supervisor = supervisor
        self._supervisor.settimeout(_BIND_S)

    def listen(self, name: Name, host: str, port: int, section: str = "") -> socket.socket:
        try:
            self._supervisor.sendall(json.dumps([name, host, port, section]).encode())
            text, fds, _, _ = socket.recv_fds(self._supervisor, _LONGEST_BYTES, 1)
        except OSError as error:
            raise Unavailable(f"the supervisor gives no socket: {error}") from None
        if not text:
            raise Unavailable("the supervisor has ended")
        answer = json.loads(text)
        if not fds:
            if answer["is_wrong"]:
                raise WrongSocket(answer["reason"])
            raise Unavailable(answer["reason"], hint=answer["hint"])
        os.set_inheritable(fds[0], False)
        kind = InheritedSocket if answer["is_inherited"] else socket.socket
        return kind(fileno=fds[0])


class _WorkerNotifier(Notifier):
    """Notifies the supervisor in place of systemd."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def ready(self) -> None:
        self._worker.tell("ready")


def _opened(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    return socket.socket(fileno=fd)


def _end_with(supervisor: int) -> None:
    """Get SIGTERM when the supervisor ends, even if the event loop is blocked. On other systems, only the link ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGTERM), *([ctypes.c_ulong(0)] * 3))  # PR_SET_PDEATHSIG
    if os.getppid() != supervisor:
        os._exit(0)
