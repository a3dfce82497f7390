"""A process: opens resources once, runs services, drains, closes in reverse.

A *provider* is an async context manager function that takes the Process. A *service* runs until its stop event is set,
then drains and returns. After grafana/dskit's modules, with functions in place of classes.
"""

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from loguru import logger

from app.kernel.config import CLOSE_S, ProcessSettings, Section, Settings
from app.kernel.errors import Constraints, Unavailable
from app.kernel.process.launch import Launch
from app.kernel.process.needs import used_by
from app.kernel.process.reload import Reload, Reloads
from app.kernel.running import announced
from app.kernel.services import Run, Service, in_order
from app.kernel.systemd.status import reporting
from app.kernel.text import error_text
from app.kernel.workers import LastSignal

_GARBAGE = 10_000
T = TypeVar("T")
Provider = Callable[["Process"], AbstractAsyncContextManager[T]]
State = Literal["starting", "ready", "stopping"]
Check = Callable[[], Awaitable[None]]


class DependencyCycle(Exception):
    """Providers that need each other; the message names the cycle."""


class Process:
    """One operating system process: its name, settings, state, and what it has opened."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        root: Path,
        providers: Mapping[type[Any], Provider[Any]] | None = None,
        *,
        launch: Launch | None = None,
        migrates: bool = True,
        data: Path | None = None,
        constraints: Constraints | None = None,
    ) -> None:
        """A process that does not migrate warns of pending migrations, and goes on as far as it can."""
        self.name = name
        self.settings = settings
        self.root = root
        self.data = data or root / ".local"
        self.providers: Mapping[type[Any], Provider[Any]] = providers or {}
        self.made: dict[type[Any], Any] = {}
        self.state: State = "starting"
        self.started_at = datetime.now(UTC)
        self.services: tuple[str, ...] = ()
        self.labels: dict[str, str] = {}
        """How services are called in the registry when it is not by their names."""
        self.checks: dict[str, Check] = {}
        self.degraded: dict[str, Callable[[], str]] = {}
        """Why something is not used that the process can do without, by name; empty when it is."""
        self.in_flight: dict[str, Callable[[], int]] = {}
        """What services count: requests, jobs."""
        self.launch = launch or Launch()
        self.is_replaced = False
        """Whether another worker has taken over from this one."""
        self.migrates = migrates
        self.constraints: Constraints = constraints or {}
        self._opened: dict[Provider[Any], Any] = {}
        self._opening: list[Provider[Any]] = []
        self._stack = AsyncExitStack()
        self._stop = asyncio.Event()
        self._reloads = Reloads()
        self._signals = 0
        self._last_signal = LastSignal()
        self._watchdogs: list[threading.Timer] = []

    async def use(self, provider: Provider[T]) -> T:
        """Return what the provider opens; it is opened once, and closed after everything that used it.

        Raises DependencyCycle, and whatever the provider raises. Call it while starting, never from a running service.
        """
        if provider in self._opened:
            return self._opened[provider]
        if provider in self._opening:
            names = [_name(p) for p in [*self._opening[self._opening.index(provider) :], provider]]
            raise DependencyCycle("providers need each other: " + " -> ".join(names))
        await self.demand([kind for kind in used_by(provider) if kind in self.settings.sections])
        self._opening.append(provider)
        try:
            value = await self._stack.enter_async_context(provider(self))
        finally:
            self._opening.pop()
        self._opened[provider] = value
        return value

    async def demand(self, sections: Sequence[type[Section]]) -> None:
        """Check sections of the settings, and fetch their secrets. Raises Misconfigured, StoresUnavailable."""
        if self.settings.is_pending(*sections):
            await asyncio.to_thread(self.settings.demand, *sections)
        else:
            self.settings.demand(*sections)

    async def missing(self) -> dict[str, str]:
        """Return what keeps this process from accepting work: name to reason, empty when it is ready."""
        if self.state != "ready":
            return {"process": self.state}
        found: dict[str, str] = {}
        for name, check in self.checks.items():
            try:
                await check()
            except Unavailable as error:
                found[name] = str(error)
        return found

    def on_reload(self, name: str, callback: Reload) -> None:
        """Run a callback on SIGHUP, once the process is ready, for at most 10 seconds.

        It returns what it did, for the log, or None if nothing changed. Its errors are logged; it must leave what is in
        use as it was.
        """
        self._reloads.add(name, callback)

    def announced(self, url: str) -> AbstractContextManager[bool]:
        """Leave the address for `app health` inside, or give it to the supervisor. Gives False if it cannot."""
        if self.launch.worker:
            self.launch.worker.tell("serving", url)
            return contextlib.nullcontext(True)
        if self.launch.is_private:
            return contextlib.nullcontext(True)
        return announced(self.name, url, self.root)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncGenerator["Process"]:
        """Close, in reverse, everything that was opened inside."""
        async with self._stack:
            yield self

    async def run(self, services: Sequence[Service]) -> int:
        """Open, run until a signal or a failure, drain, close.

        Returns the exit status: 0 after a stop that was asked for, 70 after a service failed, 130 after a second
        signal. What fails while starting is raised, after closing what was open. Raises
        InvalidOrder for services that cannot be put in order.
        """
        ordered = in_order(services)
        body = asyncio.ensure_future(self._body(services, ordered))
        with reporting(self), self._handling_signals(body):
            try:
                await asyncio.wait({body})
            except asyncio.CancelledError:
                body.cancel()
                await asyncio.wait({body})
                raise
        if self._signals > 1:
            return 130
        if body.cancelled():  # asked to stop while starting
            return 0
        return body.result()

    @contextlib.contextmanager
    def _handling_signals(self, body: "asyncio.Future[int]") -> Generator[None]:
        loop = asyncio.get_running_loop()
        reopen_log = signal.getsignal(signal.SIGHUP)

        def signalled(number: int, _: object) -> None:
            # not loop.add_signal_handler: a handler of Python's runs even while something blocks the loop
            if self.launch.worker and self._signals and number != signal.SIGQUIT:
                return  # systemd and the supervisor may both send it
            if self._last_signal.is_same(number):
                return
            self._signals += 1
            self._watch(CLOSE_S if self._signals > 1 else self._stop_s(), 130 if self._signals > 1 else 70)
            loop.call_soon_threadsafe(self._on_signal, signal.Signals(number).name, self._signals, body)

        def hung_up(number: int, frame: object) -> None:
            if not self._signals:  # a shell and the kernel may both send it
                signalled(number, frame)

        def reload(number: int, _: object) -> None:
            if callable(reopen_log):
                reopen_log(number, None)  # at once, also while starting and stopping
            loop.call_soon_threadsafe(self._reloads.request)

        previous = {n: signal.signal(n, signalled) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)}
        # a closed terminal must not leave an orphan
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, hung_up if sys.stdout.isatty() else reload)
        faulthandler.register(signal.SIGUSR2, file=2)  # for good: without it, this signal kills
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for watchdog in self._watchdogs:
                watchdog.cancel()

    def _on_signal(self, name: str, count: int, body: "asyncio.Future[int]") -> None:
        if count > 1:
            logger.warning("{} again: stopping at once", name)
            body.cancel()
        elif self.state == "starting":
            logger.info("{}: stopping before having started", name)
            body.cancel()
        else:
            logger.info("{}: draining", "another worker has taken over" if self.is_replaced else name)
            self._stop.set()

    def _stop_s(self) -> float:
        return self.settings[ProcessSettings].stop_s

    async def _body(self, services: Sequence[Service], ordered: Sequence[Service]) -> int:
        async with self._stack:
            made = {service.name: run for service in services if (run := await service.make(self)) is not None}
            self.launch.sockets.check_all_used()
            self.services = tuple(self.labels.get(name, name) for name in made)
            if self.launch.worker:
                self.services = (self.launch.worker.label, *self.services)
            gc.freeze()  # what is there by now stays; to look through it again and again costs a request 3%
            gc.set_threshold(_GARBAGE)  # few objects are in cycles; to look for them so often costs a request 4%
            self.state = "ready"
            self.launch.notify.ready()
            failed = await self._supervise([service for service in ordered if service.name in made], made)
        if not failed:
            logger.info("stopped")
        return 70 if failed else 0

    async def _supervise(self, services: Sequence[Service], made: Mapping[str, Run]) -> bool:
        """Run the services until they ended; return whether one of them failed."""
        limits = self.settings[ProcessSettings]
        stops = {service.name: asyncio.Event() for service in services}
        tasks = {asyncio.ensure_future(made[name](stop)): name for name, stop in stops.items()}
        stopping = asyncio.ensure_future(self._stop.wait())
        reloading = asyncio.ensure_future(self._reloads.run(self.launch.notify))
        try:
            await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
            ended_early = [name for task, name in tasks.items() if task.done() and not self._stop.is_set()]
            self.state = "stopping"
            self._stop.set()
            reloading.cancel()
            self.launch.notify.stopping(self._stop_s())
            self._watch(self._stop_s(), 70)
            left, limit_s = list(services), limits.drain_delay + limits.grace
            while left:
                needed = {name for service in left for name in service.after}
                last = {task: name for task, name in tasks.items() if name in stops and name not in needed}
                for name in last.values():
                    stops.pop(name).set()
                await asyncio.wait(last, timeout=limit_s)
                await self._cut({task: name for task, name in last.items() if not task.done()})
                left, limit_s = [service for service in left if service.name in stops], CLOSE_S
        finally:
            for task in (stopping, reloading, *tasks):
                task.cancel()
            await asyncio.wait({reloading, *tasks}, timeout=CLOSE_S)
        failed = False
        for task, name in tasks.items():
            if not task.done() or task.cancelled():
                continue
            if error := task.exception():
                failed = True
                logger.opt(exception=error).critical("service {} failed: {}", name, error_text(error))
        if ended_early and not failed:
            logger.critical("service {} ended without being asked to", ", ".join(ended_early))
        return failed or bool(ended_early)

    def _watch(self, seconds: float, status: int) -> None:
        """End the process after a while even when something blocks the event loop; say where it hangs."""

        def end() -> None:
            sys.stderr.write("the event loop is blocked; ending without cleaning up. Where it hangs:\n")
            faulthandler.dump_traceback(sys.stderr)
            os._exit(status)

        watchdog = threading.Timer(seconds, end)
        watchdog.daemon = True
        watchdog.start()
        self._watchdogs.append(watchdog)

    async def _cut(self, left: dict["asyncio.Future[None]", str]) -> None:
        for task, name in left.items():
            logger.error("service {} is not done at the end of its grace: cutting what is in flight", name)
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=CLOSE_S)


def run_to_end(loop: asyncio.AbstractEventLoop, body: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop, to its end; return what it returns.

    A task that raises SystemExit or KeyboardInterrupt ends the whole loop in asyncio. Here it ends the task only: an
    operation may call a library in a task of its own, and whoever waits for that task is told.
    """
    main = loop.create_task(body)
    while True:
        try:
            return loop.run_until_complete(main)
        except (SystemExit, KeyboardInterrupt) as error:
            if main.done():
                raise
            logger.opt(exception=error).error("a task raised {}; going on", error_text(error))


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Wait, but no longer than until asked to stop; return whether that was asked."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


def _name(provider: Provider[Any]) -> str:
    return f"{getattr(provider, '__module__', '')}.{getattr(provider, '__qualname__', repr(provider))}"
