"""Runs the blocking work of a backup command: with progress, and stopped by a signal."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from app.commands.once import run_once
from app.kernel.cli import can_show_progress
from app.kernel.product import NAME
from app.kernel.workers import LastSignal

if TYPE_CHECKING:
    from app.kernel.backup.engine import Advance, Engine, Progress
    from app.kernel.process import Process

T = TypeVar("T")
_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 3.0
"""A command that has not stopped by then says how to stop it at once."""
_INTERRUPTED = 130
_SHOW_CURSOR = "\x1b[?25h"


def with_engine(name: str, work: "Callable[[Engine, Progress], T]") -> T:
    """Run work that needs the target and not the database."""
    return _run(name, lambda p: in_thread(lambda progress: work(engine_for(p), progress)))


def with_process(name: str, work: "Callable[[Process, Progress, str | None], T]") -> T:
    """Run work that needs no database; it is given the connection string of the server if one answers."""

    async def body(p: "Process") -> T:
        where = await _reachable(p)
        return await in_thread(lambda progress: work(p, progress, where))

    return _run(name, body)


def with_server(name: str, work: "Callable[[Engine, Progress, str], T]") -> T:
    """Run work that needs the target and the database; it is given the connection string of the server itself."""
    return with_database(name, lambda p, progress, where: work(engine_for(p), progress, where))


def with_database(name: str, work: "Callable[[Process, Progress, str], T]") -> T:
    """Run work that needs the database; it is given the connection string of the server itself."""

    async def body(p: "Process") -> T:
        from app.kernel.db.server import server

        found = await p.use(server)
        return await in_thread(lambda progress: _answered(lambda: work(p, progress, found.conninfo())))

    return _run(name, body)


def _run(name: str, body: "Callable[[Process], Awaitable[T]]") -> T:
    def work(p: "Process") -> "Awaitable[T]":
        from app.kernel.db.libpq import forget_variables

        forget_variables()  # PGHOSTADDR would lead a restore or a drill to the server that it names
        return body(p)

    return run_once(f"backup {name}", work)


def _answered(work: "Callable[[], T]") -> T:
    """Run work; what goes wrong with the database is one line."""
    import psycopg

    from app.kernel.db.refusals import refusal_of
    from app.kernel.errors import Denied, Unavailable

    try:
        return work()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise Unavailable("the tables of this release do not exist yet", hint=f"{NAME} migrate up") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise Denied(str(error).partition("\n")[0]) from error
    except psycopg.Error as error:
        if (refusal := refusal_of(error)) is None:
            raise
        raise refusal from error


async def _reachable(p: "Process") -> str | None:
    """Return the connection string of the server if it answers now; the embedded one starts, but is not created."""
    from app.kernel.config import PostgresSettings
    from app.kernel.db.server import configured_server, server

    settings = p.settings[PostgresSettings]
    if not settings.host:
        return (await p.use(server)).conninfo() if (p.data / "postgres").is_dir() else None
    found = configured_server(settings, p.name)
    return found.conninfo() if (await found.attempt()).server_version else None


def engine_for(p: "Process") -> "Engine":
    """Return the engine of the settings, which is imported on use."""
    from app.kernel.backup.engine import engine_of

    return engine_of(p.settings, p.data)


async def in_thread(work: "Callable[[Progress], T]") -> T:
    """Run work in a thread. SIGTERM, Ctrl-C and a closed terminal stop it; what it began is undone before this returns.

    A second SIGTERM or Ctrl-C ends the process at once, for work that waits for what hangs. Raises as the work does,
    KeyboardInterrupt if it was stopped.
    """
    stopping = threading.Event()
    with _shown(stopping) as progress:
        task = asyncio.ensure_future(asyncio.to_thread(work, progress))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may end after it is waited for
        with _heeding(stopping):
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                stopping.set()
                await asyncio.wait({task})
                raise
            except Exception as error:
                from app.kernel.backup.engine import Stopped
                from app.kernel.errors import Unavailable

                # what was asked to stop while it waited for a target is not blamed on the target
                if isinstance(error, Stopped) or (stopping.is_set() and isinstance(error, Unavailable)):
                    raise KeyboardInterrupt from None
                raise


@contextmanager
def _heeding(stopping: threading.Event) -> "Generator[None]":
    """Handle stop signals: the first sets the event, a second one ends the process at once."""
    loop, last = asyncio.get_running_loop(), LastSignal()
    hints: list[asyncio.TimerHandle] = []

    def heed(number: int) -> None:
        if last.is_same(number) or (stopping.is_set() and number == signal.SIGHUP):  # a shell and the kernel send it
            return
        if stopping.is_set():
            if can_show_progress():
                sys.stderr.write(_SHOW_CURSOR)
            sys.stderr.write("interrupted at once, without cleaning up\n")
            sys.stderr.flush()
            os._exit(_INTERRUPTED)
        stopping.set()
        text = "stopping; a second signal (Ctrl-C) stops at once\n"
        hints.append(loop.call_later(_PATIENCE_S, lambda: sys.stderr.write(text)))

    former = {each: found for each in _STOP if (found := signal.getsignal(each)) is not signal.SIG_IGN}  # nohup does
    for each in former:
        loop.add_signal_handler(each, heed, each)
    try:
        yield
    finally:
        for hint in hints:
            hint.cancel()
        for each, handler in former.items():
            loop.remove_signal_handler(each)
            signal.signal(each, handler)


@contextmanager
def _shown(stopping: threading.Event) -> "Generator[Progress]":
    """Yield progress that raises Stopped once that is asked for; shown as a bar if stderr is a terminal."""
    from app.kernel.backup.engine import Progress, Stopped

    def checked(advance: "Advance") -> "Advance":
        def step(done: int) -> None:
            if stopping.is_set():
                raise Stopped
            advance(done)

        return step

    if not can_show_progress():
        yield Progress(lambda _, __: checked(lambda _: None))
        return
    from rich import progress as shown
    from rich.console import Console

    columns = (
        shown.TextColumn("{task.description}"), shown.BarColumn(), shown.DownloadColumn(),
        shown.TransferSpeedColumn(), shown.TimeRemainingColumn(),
    )  # fmt: skip
    with shown.Progress(*columns, console=Console(stderr=True), transient=True) as bar:

        def begin(what: str, total: int | None) -> "Advance":
            task = bar.add_task(what, total=total)
            return checked(lambda done: bar.advance(task, done))

        yield Progress(begin)
