"""Runs the blocking work of a backup command: with progress, and stopped by a signal."""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from app.commands.once import run_once
from app.kernel.cli import can_show_progress
from app.kernel.product import NAME

if TYPE_CHECKING:
    from app.kernel.backup.engine import Advance, Engine, Progress
    from app.kernel.process import Process

T = TypeVar("T")
_STOP = (signal.SIGTERM, signal.SIGHUP)


def with_engine(name: str, work: "Callable[[Engine, Progress], T]") -> T:
    """Run work that needs the target and not the database."""
    return _run(name, lambda p: _in_thread(lambda progress: work(engine_for(p), progress)))


def with_process(name: str, work: "Callable[[Process, Progress, str | None], T]") -> T:
    """Run work that needs no database; it is given the connection string of the server if one answers."""

    async def body(p: "Process") -> T:
        where = await _reachable(p)
        return await _in_thread(lambda progress: work(p, progress, where))

    return _run(name, body)


def with_server(name: str, work: "Callable[[Engine, Progress, str], T]") -> T:
    """Run work that needs the target and the database; it is given the connection string of the server itself."""
    return with_database(name, lambda p, progress, where: work(engine_for(p), progress, where))


def with_database(name: str, work: "Callable[[Process, Progress, str], T]") -> T:
    """Run work that needs the database; it is given the connection string of the server itself."""

    async def body(p: "Process") -> T:
        from app.kernel.db.server import server

        found = await p.use(server)
        return await _in_thread(lambda progress: _answered(lambda: work(p, progress, found.conninfo())))

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


async def _in_thread(work: "Callable[[Progress], T]") -> T:
    """Run work in a thread. SIGTERM, Ctrl-C and a closed terminal stop it; what it began is undone before this returns.

    Raises as the work does, KeyboardInterrupt if it was stopped.
    """
    stopping = threading.Event()
    loop = asyncio.get_running_loop()
    with _shown(stopping) as progress:
        task = asyncio.ensure_future(asyncio.to_thread(work, progress))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may end after it is waited for
        heeded = [each for each in _STOP if signal.getsignal(each) is not signal.SIG_IGN]  # nohup ignores SIGHUP
        for each in heeded:
            loop.add_signal_handler(each, stopping.set)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            stopping.set()
            await asyncio.wait({task})
            raise
        except Exception as error:
            from app.kernel.backup.engine import Stopped

            if isinstance(error, Stopped):
                raise KeyboardInterrupt from None
            raise
        finally:
            for each in heeded:
                loop.remove_signal_handler(each)


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
