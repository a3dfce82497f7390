"""The services of this deployment: how each is made of the kernel and the modules, and what it needs.

This module imports no infrastructure; each service imports its dependencies when its process starts.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from app.composition import features
from app.kernel.services import Service
from app.modules import modules

if TYPE_CHECKING:
    from pathlib import Path

    from app.kernel.actions.operation import ActionOperation
    from app.kernel.config import QueueSettings
    from app.kernel.module import Module
    from app.kernel.process import Process, Provider
    from app.kernel.services import Run

    Make = Callable[[Process], Coroutine[Any, Any, Run | None]]
    Routes = Provider[list[ActionOperation]]

_BACKUPS_AT_ONCE = 2


def api(*served: "Module", after: tuple[str, ...]) -> tuple[Service, Service]:
    """Return the HTTP API of some modules, with the console if one of them has it, and its operations endpoint."""
    routes, title = _routes(*served), f"{' and '.join(module.name for module in served)} API"
    make = _http(routes, title, has_console=_has_console(served))
    return (
        Service("http", make, (*after, "operations"), partial(_api_needs, *served)),
        Service("operations", _api_operations(routes, title)),
    )


def _routes(*served: "Module") -> "Routes":
    """Return the provider of the actions that some modules serve over HTTP."""

    @asynccontextmanager
    async def provider(p: "Process") -> "AsyncGenerator[list[ActionOperation]]":
        from app.kernel.actions.compose import operations

        found = await operations(p, features(served))
        yield [operation for operation in found if operation.action.path]

    return provider


@asynccontextmanager
async def _everything(p: "Process") -> "AsyncGenerator[list[ActionOperation]]":
    """Provide the actions of all modules, for the console."""
    from app.kernel.actions.compose import operations

    yield await operations(p, features(modules()))


def _templates() -> "dict[str, Path]":
    """Return the folders of the templates with which modules replace those of the console."""
    from pathlib import Path

    return {module.name: Path(import_module(module.package).__path__[0], "console") for module in modules()}


def _http(routes: "Routes", title: str, *, has_console: bool = False) -> "Make":
    """Return the service of an HTTP API, with the operations endpoint unless that is separate, and the console."""

    async def make(p: "Process") -> "Run":
        from app.kernel.config import HttpServerSettings, OperationsSettings
        from app.kernel.http.probes import Probes
        from app.kernel.http.server import http_service

        settings = p.settings[HttpServerSettings]
        with _closed_on_error(p.launch.sockets.listen("http", settings.host, settings.port)) as sock:
            from app.kernel.http.index import OPERATIONS, PROBES, Index
            from app.kernel.http.reference import Documentation
            from app.kernel.http.routes import api

            app = await api(p, await p.use(routes))
            links: dict[str, str] = {}
            if has_console:
                from app.kernel.console.site import console

                app = await console(p, await p.use(_everything), _templates(), app)
                links = {"/console": "the console of operators"}
            is_separate = p.settings[OperationsSettings].expose == "separate"
            if not is_separate:
                app = Documentation(await p.use(routes), title, app)
            app = Index(title, {**links, **(PROBES if is_separate else OPERATIONS)}, app)
            return http_service(p, Probes(p, app, internal=not is_separate), sock, "http")

    return make


def _api_operations(routes: "Routes", title: str) -> "Make":
    """Return the operations endpoint of an API if it is separate: /health, /ready, /metrics, /docs, /openapi.json."""

    async def make(p: "Process") -> "Run | None":
        from app.kernel.config import OperationsSettings

        settings = p.settings[OperationsSettings]
        if settings.expose == "same":
            return None
        from app.kernel.http.index import OPERATIONS, Index
        from app.kernel.http.probes import Probes
        from app.kernel.http.reference import Documentation
        from app.kernel.http.server import http_service

        sock = p.launch.sockets.listen("operations", settings.host, settings.port, settings.section)
        with _closed_on_error(sock):
            app = Index(title, OPERATIONS, Documentation(await p.use(routes), title))
            return http_service(p, Probes(p, app), sock, "operations")

    return make


async def operations(p: "Process") -> "Run":
    """Return the operations endpoint of a process without an API: /health, /ready and /metrics."""
    from app.kernel.config import OperationsSettings
    from app.kernel.http.probes import Probes
    from app.kernel.http.server import http_service

    settings = p.settings[OperationsSettings]
    return http_service(p, Probes(p), p.launch.sockets.listen("operations", settings.host, settings.port), "operations")


async def cron(p: "Process") -> "Run":
    """Return the cron manager of the schedules of all modules."""
    from app.kernel.queue.cron import cron_manager

    return await cron_manager(p, [schedule for module in modules() for schedule in module.scheduled()])


async def consumer(p: "Process") -> "Run":
    """Return the consumer of the jobs and events of all modules, but for backups."""
    from app.kernel.config import QueueSettings

    return await _consumer(p, consumer_needs(is_backup=False), p.settings[QueueSettings])


async def whole_consumer(p: "Process") -> "Run":
    """Return the consumer of the jobs and events of all modules, and of backups."""
    from dataclasses import replace

    from app.kernel.backup import QUEUE
    from app.kernel.config import QueueSettings

    settings = p.settings[QueueSettings]
    return await _consumer(p, features(modules()), replace(settings, names=(*settings.names, QUEUE)))


async def backup_consumer(p: "Process") -> "Run":
    """Return the consumer of the jobs of backups."""
    from dataclasses import replace

    from app.kernel.backup import QUEUE
    from app.kernel.config import QueueSettings

    settings = replace(p.settings[QueueSettings], names=(QUEUE,), concurrency=_BACKUPS_AT_ONCE)
    return await _consumer(p, consumer_needs(is_backup=True), settings)


async def _consumer(p: "Process", kinds: "list[type[Any]]", settings: "QueueSettings") -> "Run":
    from app.kernel.actions.compose import handlers
    from app.kernel.queue.consumer import consumer

    return await consumer(p, await handlers(p, kinds), settings)


async def backup_agent(p: "Process") -> "Run | None":
    """Return the service that stores WAL, if that is configured."""
    from app.kernel.config import BackupSettings

    settings = p.settings[BackupSettings]
    if not settings.is_watched:
        if not settings.target and p.name == "run-backup-agent":
            from loguru import logger

            logger.warning("backup.target is not set: no backup is taken, and no WAL is stored")
        return None
    from app.kernel.actions.compose import make
    from app.kernel.backup.agent import agent
    from app.kernel.db import Database
    from app.kernel.queue.enqueue import Queue
    from app.modules.platform.backups import BACKUP

    db, queue = await make(p, Database), await make(p, Queue)

    async def request_backup() -> None:
        await queue.enqueue(db, BACKUP, unique_key="gap")

    return await agent(p, request_backup)


async def relay(p: "Process") -> "Run | None":
    """Return the relay of events, if NATS is configured."""
    from app.kernel.config import NatsSettings

    if not p.settings[NatsSettings].url.get_secret_value():
        return None
    from app.kernel.queue.transport.nats.relay import relay

    return await relay(p)


async def reporter(p: "Process") -> "Run":
    """Return the service that reports the process to the registry."""
    from app.kernel.process.registry import reporter

    return await reporter(p)


async def sentinel(p: "Process") -> "Run":
    """Return the service that captures errors and outages."""
    from app.kernel.sentinel.service import sentinel

    return await sentinel(p)


async def traces(p: "Process") -> "Run | None":
    """Return the exporter of traces, if an endpoint is configured."""
    from app.kernel.config import TelemetrySettings

    settings = p.settings[TelemetrySettings]
    if not settings.otlp_endpoint:
        return None
    from app.kernel.telemetry.export import span_exporter

    return span_exporter(p, settings)


def _api_needs(*served: "Module") -> "list[type[Any]]":
    from app.kernel.http.routes import authenticators

    found = features(served)
    if not _has_console(served):
        return [*found, *authenticators(found)]
    from app.kernel.console.browser import BrowserSessions

    return [*features(modules()), *authenticators(found), BrowserSessions]


def _has_console(served: "Iterable[Module]") -> bool:
    return any(module.console for module in served)


def whole_consumer_needs() -> "list[type[Any]]":
    """Return all features that have handlers or subscribers."""
    from app.kernel.actions.compose import working

    return working(features(modules()))


def consumer_needs(*, is_backup: bool) -> "list[type[Any]]":
    """Return the features that have handlers or subscribers: those of backups, or all others."""
    from app.kernel.actions.compose import queues, working
    from app.kernel.backup import QUEUE

    return [kind for kind in working(features(modules())) if (QUEUE in queues(kind)) == is_backup]


@contextmanager
def _closed_on_error(sock: Any) -> Generator[Any]:
    try:
        yield sock
    except BaseException:
        sock.close()
        raise
