"""The supervisor: starts workers, replaces those that end or hang, reloads them one by one, and stops them."""

import asyncio
import faulthandler
import random
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from app.kernel.errors import Unavailable
from app.kernel.running import NOT_ANNOUNCED, announced
from app.kernel.sockets import Sockets, WrongSocket
from app.kernel.systemd.notify import Notifier
from app.kernel.workers import HANDLED, HEARTBEAT_S, LastSignal
from app.kernel.workers.answers import Answers
from app.kernel.workers.log import Log
from app.kernel.workers.member import Member

_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 0.2, 30.0
_STABLE_S = 60.0  # a worker that ran for so long did not fail at its start
_READY_S = 120.0  # for a new worker in a reload
_POLL_S = 0.2
_LATER_S = 10.0  # beyond the time in which workers stop
_AT_ONCE_S = 12.0
_EXTENSION_S = 30.0


class Supervisor:
    """Keeps a number of workers running."""

    def __init__(
        self,
        name: str,
        count: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        root: Path,
        *,
        hangs_up: bool,
    ) -> None:
        """With `hangs_up`, SIGHUP means that the terminal was closed. Raises WrongSocket."""
        self._name, self._count, self._root, self._command = name, count, root, command
        self._environment = dict(environment)
        self._hangs_up = hangs_up
        self._last_signal = LastSignal()
        self._notify = Notifier.taken_from(self._environment)
        self._inherited = Sockets.taken_from(self._environment)
        self._sockets: dict[tuple[str, str, int], socket.socket] = {}
        self._log = Log(name)
        self._current: dict[int, Member] = {}
        self._all: set[Member] = set()
        self._failures: dict[int, int] = {}
        self._answers = Answers(count, self._current, self._all)
        self._tasks: asyncio.TaskGroup
        self._stopping, self._at_once, self._reload_wanted = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._has_started = False
        self._status = 0
        self._announced = ExitStack()
        self._url = ""

    async def run(self) -> int:
        """Run until a stop signal; return the exit status, which is that of a worker that does not start."""
        loop = asyncio.get_running_loop()
        for number in HANDLED:
            loop.add_signal_handler(number, self._on_signal, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)  # blocked while the supervisor was loaded
        with self._announced:
            async with asyncio.TaskGroup() as self._tasks:
                ticking = self._tasks.create_task(self._tick())
                supervising = self._tasks.create_task(self._supervise())
                await self._stopping.wait()
                supervising.cancel()
                await self._stop()
                ticking.cancel()
        self._notify.close()
        return self._status

    # starting, replacing, reloading

    async def _supervise(self) -> None:
        """Start the workers, the first one alone because it may migrate; then reload them when asked to."""
        if not (await self._start([1]) and await self._start(range(2, self._count + 1))):
            return
        self._has_started = True
        self._log.write("info", f"{self._count} workers are ready")
        self._notify.ready()
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            self._notify.reloading()
            await self._reload()
            self._notify.ready()

    async def _start(self, numbers: Iterable[int]) -> bool:
        """Start workers for the first time; return whether all became ready. The first failure ends the supervisor."""
        members = [await self._spawn(number) for number in numbers]
        self._current.update({member.number: member for member in members})
        for member in members:
            await _first_of(member.ready, member.ended)
            if not member.ready.is_set():
                if member.status <= 0:  # otherwise it has said why
                    self._log.write("error", f"{member.name} {_ending(member.status)} before it was ready")
                self._fail(member.status if member.status > 0 else 70)
                return False
            self._announce()
        try:
            self._inherited.check_all_used()
        except WrongSocket as error:
            self._log.write("error", str(error))
            self._fail(78)
            return False
        return True

    def _fail(self, status: int) -> None:
        self._status = status
        self._stopping.set()

    async def _spawn(self, number: int) -> Member:
        member = Member(number, self._answers.answer, self._told)
        await member.start(self._command, self._environment, self._count)
        self._all.add(member)
        self._tasks.create_task(self._attend(member))
        return member

    async def _attend(self, member: Member) -> None:
        """Serve a worker to its end; start another one if it was not to end."""
        started = time.monotonic()
        await member.run(self._listen)
        self._all.discard(member)
        self._answers.ended(member)
        is_in_place = self._current.get(member.number) is member
        if self._stopping.is_set() or member.state == "leaving":
            if member.status and member.ready.is_set() and not self._at_once.is_set():
                self._log.write("error", f"{member.name} {_ending(member.status)}", worker=member.number)
                self._status = self._status or (70 if self._stopping.is_set() else 0)
        elif is_in_place and (self._has_started or member.ready.is_set()):
            self._answers.restarted(member)
            if time.monotonic() - started > _STABLE_S:
                self._failures.pop(member.number, None)
            await self._start_another(member)

    async def _start_another(self, former: Member) -> None:
        number = former.number
        while True:
            failures = self._failures[number] = self._failures.get(number, 0) + 1
            most_s = min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 10))
            delay_s = random.uniform(most_s / 2, most_s)  # noqa: S311 - so that workers do not fail in step
            what = f"{former.name} {_ending(former.status)}; starting another one in {delay_s:.1f} s"
            self._log.write("error", what, worker=number, failures=failures)
            await _first_of(self._stopping, timeout_s=delay_s)
            if self._stopping.is_set() or self._current[number] is not former:
                return  # a reload has replaced it
            try:
                self._current[number] = await self._spawn(number)
            except OSError as error:  # no memory, no processes
                self._log.write("error", f"{former.name} cannot be started: {error}")
            else:
                return

    async def _reload(self) -> None:
        """Replace the workers one by one. If a new one does not become ready, the former ones continue."""
        self._log.write("info", f"reloading {self._count} workers, one by one")
        for number in range(1, self._count + 1):
            try:
                new = await self._spawn(number)
            except OSError as error:
                self._log.write("error", f"reload failed: no new worker {number}: {error}; the former workers continue")
                return
            if reason := await self._unready(new):
                kept = f"workers {number} to {self._count}" if number < self._count else f"worker {number}"
                self._log.write("error", f"reload failed: the new {new.name} {reason}; the former {kept} continue")
                await self._end(new, signal.SIGTERM)
                return
            former, self._current[number] = self._current[number], new
            self._failures.pop(number, None)
            self._announce()
            former.leave()
            await self._end(former)
        for address in self._sockets.keys() - {address for member in self._all for address in member.addresses}:
            self._sockets.pop(address).close()
        self._log.write("info", f"reloaded {self._count} workers")

    async def _unready(self, new: Member) -> str:
        """Wait until a new worker is ready; return why it is not."""
        deadline, missing = time.monotonic() + _READY_S, {"process": "starting"}
        while missing and not new.ended.is_set():
            if time.monotonic() > deadline:
                reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
                return f"is not ready after {_READY_S:g} s ({reasons})"
            await _first_of(new.ended, timeout_s=_POLL_S)
            missing = await new.missing()
        return _ending(new.status) if new.ended.is_set() else ""

    async def _end(self, member: Member, number: signal.Signals | None = None) -> None:
        """Wait for the end of a worker that was asked to end, or ask it now with a signal; kill it when it is late."""
        if number:
            member.state = "leaving"
            member.signal(number)
        await _first_of(member.ended, timeout_s=member.stop_s + _LATER_S)
        if not member.ended.is_set():
            self._log.write("error", f"{member.name} has not ended in time: killing it", worker=member.number)
            member.signal(signal.SIGKILL)
            await member.ended.wait()

    # stopping

    async def _stop(self) -> None:
        """Stop all workers within the time that they have."""
        for sock in self._sockets.values():
            sock.close()
        limit_s = max((member.stop_s for member in self._all), default=0.0) + _LATER_S
        self._notify.stopping(limit_s)
        for member in self._all:
            member.signal(signal.SIGTERM)
        ends = asyncio.ensure_future(_all_of(member.ended for member in list(self._all)))
        ended = asyncio.Event()
        ends.add_done_callback(lambda _: ended.set())
        await _first_of(ended, self._at_once, timeout_s=limit_s)
        await _first_of(ended, timeout_s=_AT_ONCE_S if self._at_once.is_set() else 0)
        for member in self._all:
            self._log.write("error", f"{member.name} has not ended in time: killing it", worker=member.number)
            member.signal(signal.SIGKILL)
        await ends
        self._log.write("info", "stopped")

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP and not self._hangs_up:
            self._reload_wanted.set()
        elif number in (signal.SIGUSR1, signal.SIGUSR2):
            if number == signal.SIGUSR2:
                faulthandler.dump_traceback(2)
            for member in self._all:
                if member.ready.is_set():
                    member.signal(number)
        elif self._last_signal.is_same(number):
            pass
        elif not self._stopping.is_set():
            self._log.write("info", f"{number.name}: stopping {len(self._all)} workers")
            self._stopping.set()
        elif number != signal.SIGHUP:
            self._log.write("warning", f"{number.name} again: stopping at once")
            self._status = 130
            self._at_once.set()
            for member in self._all:
                member.signal(signal.SIGTERM)
                member.signal(signal.SIGQUIT)

    # requests and messages of workers

    def _listen(self, member: Member, request: tuple[Any, str, int, str]) -> socket.socket:
        if self._stopping.is_set():
            raise Unavailable("stopped before having started")
        name, host, port, section = request
        address = (name, host, port)
        if address not in self._sockets:
            self._sockets[address] = self._inherited.listen(name, host, port, section)
        member.addresses.add(address)
        return self._sockets[address]

    def _told(self, what: str, value: Any) -> None:
        if what == "settings":
            self._log.configure(value["log"])
        elif what == "serving":  # a worker tells it after it is ready
            self._announce()

    def _announce(self) -> None:
        """Leave the address of the workers in place for `app health`, as soon as one serves."""
        url = next((member.url for member in self._current.values() if member.url), self._url)
        if url == self._url:
            return
        self._announced.close()
        if not self._announced.enter_context(announced(self._name, url, self._root)):
            self._log.write("warning", NOT_ANNOUNCED)
        self._url = url

    # health

    async def _tick(self) -> None:
        """Kill workers that hang, and report to systemd, until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for member in list(self._all):
                member.silent_s += HEARTBEAT_S  # not by the clock: the supervisor may have been frozen too
                if member.hangs and not member.is_killed:
                    what = f"{member.name} hangs: no heartbeat for {member.silent_s:g} s; killing it"
                    self._log.write("error", what, worker=member.number)
                    self._tasks.create_task(member.kill())
            ready = [member for member in self._current.values() if member.state == "ready" and not member.hangs]
            if not self._has_started:
                self._notify.extend(_EXTENSION_S)  # migrations may take long
            if not self._stopping.is_set():
                self._notify.status(f"{len(ready)} of {self._count} workers ready")
            if self._notify.watchdog_s and (ready or self._stopping.is_set()):
                self._notify.ping()


async def _first_of(*events: asyncio.Event, timeout_s: float | None = None) -> None:
    """Wait until one of the events is set, at most for a time."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _all_of(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


def _ending(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
