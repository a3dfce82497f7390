"""The `run-*` commands: one per process of `app.processes`."""

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from app import ROOT
from app.kernel.cli import whole
from app.kernel.product import NAME
from app.kernel.services import Service
from app.kernel.workers import MOST, VARIABLE, become_supervisor
from app.processes import PROCESSES, Spec, load_settings, new_process
from app.signals import end_at_once

if TYPE_CHECKING:
    from app.kernel.process import Process
    from app.kernel.telemetry.output import Output
    from app.kernel.workers.worker import Worker

Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="from the settings")]
Port = Annotated[
    int | None,
    typer.Option(
        parser=whole(0, 65535),
        metavar="NUMBER",
        help="Port to listen on; 0 takes a free one.",
        show_default="from the settings",
    ),
]
NoMigrate = Annotated[bool, typer.Option("--no-migrate", help="Fail if migrations are pending.")]
Queues = Annotated[list[str] | None, typer.Option("--queue", help="Queue to work on; repeatable.")]
Concurrency = Annotated[
    int | None,
    typer.Option(
        parser=whole(1, 10_000),
        metavar="NUMBER",
        help="Maximum number of concurrent jobs.",
        show_default="from the settings",
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        parser=whole(1, MOST),
        metavar="NUMBER",
        help="Number of processes that share the port; 1 has no supervisor. Use up to one for each core.",
    ),
]


def typer_app(name: str) -> typer.Typer:
    """Return the command of one process."""
    spec = PROCESSES[name]
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    example = f"{NAME} {name}"
    summary = f"{spec.help}\n\n\b\nExamples:\n  {example}\n  {example} --port 9000\n  LOGGER_LEVEL=debug {example}"

    def manage(host: Host = None, port: Port = None, no_migrate: NoMigrate = False) -> None:
        _run(name, spec, _overrides(spec, host, port, no_migrate))

    def serve(host: Host = None, port: Port = None, workers: Workers = 1, no_migrate: NoMigrate = False) -> None:
        _run(name, spec, _overrides(spec, host, port, no_migrate), workers)

    def consume(
        host: Host = None,
        port: Port = None,
        workers: Workers = 1,
        no_migrate: NoMigrate = False,
        queue: Queues = None,
        concurrency: Concurrency = None,
    ) -> None:
        more: dict[str, object] = {"queue.names": queue or None, "queue.concurrency": concurrency}
        _run(name, spec, _overrides(spec, host, port, no_migrate) | _given(more), workers)

    run = {"run-event-consumer": consume, "run-cron-manager": manage, "run-backup-agent": manage}.get(name, serve)
    app.command(name, help=summary)(run)
    return app


async def _show_banner(p: "Process", output: "Output") -> None:
    """Show the banner when everything else is made."""
    from app.commands.banner import banner
    from app.kernel.text import allows_colour

    output.write(await banner(p, colour=allows_colour(output.is_terminal)))


def _given(options: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in options.items() if value is not None}


def _overrides(spec: Spec, host: str | None, port: int | None, no_migrate: bool) -> dict[str, object]:
    return _given(
        {
            f"{spec.listens}.host": host,
            f"{spec.listens}.port": port,
            "postgres.migrate": False if no_migrate else None,
        }
    )


def _run(name: str, spec: Spec, overrides: dict[str, object], workers: int = 1) -> None:
    if workers > 1 and VARIABLE not in os.environ:
        become_supervisor(name, workers, ROOT)
    import uvloop
    from loguru import logger

    from app.kernel.config import LoggerSettings
    from app.kernel.config.renewal import renewed
    from app.kernel.process import run_to_end
    from app.kernel.process.launch import PRIVATE, Launch
    from app.kernel.sockets import Sockets
    from app.kernel.systemd.notify import Notifier
    from app.kernel.telemetry.logs import configure
    from app.kernel.telemetry.redact import remember

    worker = _worker()
    settings = load_settings(overrides)
    remember(settings.secrets())
    output = configure(settings[LoggerSettings], name, worker.number if worker else None)
    for warning in (*settings.misspelt, *settings.warnings):
        logger.warning("{}", warning)
    launch = Launch(
        notify=worker.notify if worker else Notifier.taken_from(os.environ),
        sockets=worker.sockets if worker else Sockets.taken_from(os.environ),
        worker=worker,
        on_terminal=settings[LoggerSettings].format == "console" and output.is_terminal,
        is_private=bool(os.environ.pop(PRIVATE, "")),
    )
    process = new_process(name, settings, launch)
    process.on_reload("log", output.reopened)

    async def renew() -> str | None:
        return await asyncio.to_thread(renewed, settings, lambda: load_settings(overrides))

    process.on_reload("settings", renew)
    services = spec.services
    if launch.on_terminal and name == "run-all-in-one" and (worker is None or worker.number == 1):
        services = (*services, Service("banner", partial(_show_banner, output=output)))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        body = worker.run(process, services) if worker else process.run(services)
        status = run_to_end(runner.get_loop(), body)
        end_at_once(status)
    raise typer.Exit(status)


def _worker() -> "Worker | None":
    if VARIABLE not in os.environ:
        return None
    from app.kernel.workers.worker import Worker

    return Worker.taken_from(os.environ)
