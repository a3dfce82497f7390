"""The composition root: which services make up which process. The whole deployment on one screen.

Reading this table loads nothing; each service imports what it needs when its process starts.
"""

import importlib
import importlib.util
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from app.modules import MODULES

if TYPE_CHECKING:
    from app.kernel.config import Section, Settings
    from app.kernel.process import Process, Service

    ServiceFactory = Callable[[Process], Coroutine[Any, Any, Service | None]]


def http(*modules: str) -> "ServiceFactory":
    """The HTTP API of some modules."""

    async def service(p: "Process") -> "Service":
        from app.kernel.config import HttpServerSettings
        from app.kernel.http.operations import Operations
        from app.kernel.http.server import bind, http_service

        settings = p.settings[HttpServerSettings]
        with _closed_on_error(bind(settings.host, settings.port)) as sock:
            from app.kernel.audit import Audit, DenialLog
            from app.kernel.db.postgres import database
            from app.kernel.http.openapi import Documentation
            from app.kernel.http.routes import router
            from app.modules.auth import wiring

            p.permissions = permissions()
            routes = [route for module in adapters("http", modules) for route in await module.routes(p)]
            portal = await p.use(wiring.portal)
            denied = DenialLog(await p.use(database), Audit())
            api = router(routes, portal.authenticate, denied, settings)
            documented = Documentation(api, routes, f"{' and '.join(modules)} API")
            return http_service(p, Operations(p, documented), sock)

    return service


async def operations(p: "Process") -> "Service":
    """/health, /ready and /metrics of a process without an API."""
    from app.kernel.config import OperationsSettings
    from app.kernel.http.operations import Operations
    from app.kernel.http.server import bind, http_service

    settings = p.settings[OperationsSettings]
    return http_service(p, Operations(p), bind(settings.host, settings.port), outlives=True)


async def cron(p: "Process") -> "Service":
    """The cron manager over the schedules of all modules."""
    from app.kernel.queue.cron import cron_manager

    return await cron_manager(p, [schedule for module in adapters("jobs", MODULES) for schedule in module.SCHEDULES])


async def consumer(p: "Process") -> "Service":
    """The event consumer over the handlers and subscribers of all modules."""
    from app.kernel.queue.consumer import consumer

    return await consumer(p, [handler for module in adapters("jobs", MODULES) for handler in await module.handlers(p)])


async def reporter(p: "Process") -> "Service":
    """Reports the process to the registry."""
    from app.kernel.reporter import reporter

    return await reporter(p)


async def sentinel(p: "Process") -> "Service":
    """Captures errors and outages."""
    from app.kernel.sentinel.service import sentinel

    return await sentinel(p)


async def traces(p: "Process") -> "Service | None":
    """Exports traces, if there is somewhere to send them."""
    from app.kernel.config import TelemetrySettings

    settings = p.settings[TelemetrySettings]
    if not settings.otlp_endpoint:
        return None
    from app.kernel.telemetry.export import span_exporter

    return span_exporter(p, settings)


@dataclass(frozen=True, slots=True)
class Spec:
    """A process: what it is for, its services in the order of starting, and whose settings --host and --port set."""

    help: str
    services: "tuple[ServiceFactory, ...]"
    listens: str = "http_server"


PROCESSES = {
    "run-all-in-one": Spec(
        "Run everything in one process.", (http(*MODULES), cron, consumer, reporter, sentinel, traces)
    ),
    "run-auth-http": Spec("Serve the auth API.", (http("auth"), reporter, sentinel, traces)),
    "run-platform-http": Spec("Serve the platform API.", (http("platform"), reporter, sentinel, traces)),
    "run-cron-manager": Spec(
        "Turn due schedules into jobs.", (operations, cron, reporter, sentinel, traces), "operations"
    ),
    "run-event-consumer": Spec(
        "Run jobs and event subscribers.", (operations, consumer, reporter, sentinel, traces), "operations"
    ),
}


def adapters(kind: str, modules: tuple[str, ...]) -> Iterator[ModuleType]:
    """Import one adapter of each module that has it."""
    for module in modules:
        name = f"app.modules.{module}.{kind}"
        if importlib.util.find_spec(name) is not None:
            yield importlib.import_module(name)


def permissions() -> dict[str, str]:
    """Return what can be granted: every permission that a module declares, with what it allows."""
    return {name: text for module in adapters("portal", MODULES) for name, text in module.PERMISSIONS.items()}


def sections() -> "list[type[Section]]":
    """Return every section of settings: the kernel's, then the modules'."""
    from app.kernel.config import KERNEL_SECTIONS

    return [*KERNEL_SECTIONS, *(module.SECTION for module in adapters("settings", MODULES))]


def load_settings(overrides: dict[str, object] | None = None, *, uses_secrets: bool = True) -> "Settings":
    """Return the effective settings, for what uses secrets or does not. Raises Misconfigured with every problem."""
    from app import ROOT
    from app.kernel.config import load

    return load(ROOT, sections(), overrides=overrides, uses_secrets=uses_secrets)


@contextmanager
def _closed_on_error(sock: Any) -> Generator[Any]:
    try:
        yield sock
    except BaseException:
        sock.close()
        raise
