"""The composition root: the services of each process, and the settings of all.

This module imports no infrastructure.
"""

from collections.abc import Collection, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from app.composition import constraints, providers
from app.kernel.product import NAME
from app.kernel.services import Service
from app.modules import modules
from app.services import (
    api,
    backup_agent,
    backup_consumer,
    consumer,
    consumer_needs,
    cron,
    operations,
    relay,
    reporter,
    sentinel,
    traces,
    whole_consumer,
    whole_consumer_needs,
)

if TYPE_CHECKING:
    from pathlib import Path

    from app.kernel.config import Section, Settings
    from app.kernel.doctor.deployment import Deployment
    from app.kernel.process import Process
    from app.kernel.process.launch import Launch


def _types(*names: str) -> "list[type[Any]]":
    """Return types by their names, such as .kernel.db:Database. They are imported on use."""
    return [
        getattr(import_module(module, __package__), kind) for module, _, kind in (name.partition(":") for name in names)
    ]


_DATABASE = partial(_types, ".kernel.db:Database")
_SENTINEL = partial(_types, ".kernel.config:SentinelSettings", ".kernel.queue.enqueue:Queue")
_NATS = partial(_types, ".kernel.config:NatsSettings", ".kernel.db:Database")
_TELEMETRY = partial(_types, ".kernel.config:TelemetrySettings")
_BACKUPS = partial(_types, ".kernel.config:BackupSettings", ".kernel.db:Database")


class Spec(NamedTuple):
    """A process: its help, its services, the section that --host and --port set, whether a machine runs several."""

    help: str
    services: "tuple[Service, ...]"
    listens: str = "http_server"
    has_instances: bool = False


async def _demand(p: "Process") -> None:
    """Check the settings that the services of a process need, and fetch their secrets, before anything is opened."""
    await p.demand(needed(p.name, p.settings))


_SETTINGS = Service("settings", _demand)
_SUPPORT = (
    Service("reporter", reporter, needs=_DATABASE),
    Service("sentinel", sentinel, needs=_SENTINEL),
    Service("traces", traces, needs=_TELEMETRY),
)
_OPERATIONS = Service("operations", operations)
_AFTER = tuple(service.name for service in _SUPPORT)
_AFTER_ALL = (*_AFTER, _OPERATIONS.name)


def _processes() -> dict[str, Spec]:
    serving = [module for module in modules() if module.process]
    crons = partial(Service, "cron manager", cron, needs=_DATABASE)
    relays = partial(Service, "relay", relay, needs=_NATS)
    agents = partial(Service, "backup agent", backup_agent, needs=_BACKUPS)
    jobs = Service("consumer", consumer, (*_AFTER_ALL, "relay"), partial(consumer_needs, is_backup=False))
    backup_jobs = Service("consumer", backup_consumer, _AFTER_ALL, partial(consumer_needs, is_backup=True))
    all_jobs = Service("consumer", whole_consumer, (*_AFTER, "relay"), whole_consumer_needs)
    return {
        "run-all-in-one": Spec(
            "Run everything in one process.",
            _with_support(
                *api(*serving, after=_AFTER), crons(after=_AFTER), relays(after=_AFTER), all_jobs, agents(after=_AFTER)
            ),
        ),
        **{f"run-{m.name}-http": Spec(m.process, _with_support(*api(m, after=_AFTER))) for m in serving},
        "run-cron-manager": Spec(
            "Turn due schedules into jobs.", _with_support(_OPERATIONS, crons(after=_AFTER_ALL)), "operations"
        ),
        "run-event-consumer": Spec(
            "Run jobs and event subscribers.",
            _with_support(_OPERATIONS, relays(after=_AFTER_ALL), jobs),
            "operations",
            has_instances=True,
        ),
        "run-backup-agent": Spec(
            "Store WAL, and take, restore and prune backups.",
            _with_support(_OPERATIONS, backup_jobs, agents(after=_AFTER_ALL)),
            "operations",
        ),
    }


def _with_support(*services: Service) -> tuple[Service, ...]:
    return (_SETTINGS, *services, *_SUPPORT)


PROCESSES = _processes()


def check_process(name: str) -> None:
    """Raise NotFound unless there is such a process."""
    from app.kernel.errors import NotFound
    from app.kernel.text import suggestion

    if name not in PROCESSES:
        raise NotFound(f"there is no process {name}{suggestion(name, PROCESSES)}", hint=f"{NAME} --help")


def new_process(
    name: str, settings: "Settings", launch: "Launch | None" = None, *, data: "Path | None" = None
) -> "Process":
    """Return a process with the providers of the kernel and of all modules. Opens nothing.

    `data` is the folder of its embedded database, if it is another one than usual.
    """
    from app import DATA, ROOT
    from app.kernel.process import Process

    migrates = name.startswith("run-")
    return Process(
        name,
        settings,
        ROOT,
        providers(),
        launch=launch,
        migrates=migrates,
        data=data or DATA,
        constraints=constraints(),
    )


def needed(name: str, settings: "Settings") -> "list[type[Section]]":
    """Return the sections of the settings whose secrets a process needs when it starts."""
    from app.kernel.actions.compose import demanded

    kinds = [kind for service in PROCESSES[name].services for kind in service.needs()]
    return demanded(kinds, providers(), settings.sections)


def sections() -> "list[type[Section]]":
    """Return the sections of settings of the kernel and of all modules."""
    from app.kernel.config import KERNEL_SECTIONS

    return [*KERNEL_SECTIONS, *(section for module in modules() if (section := module.section()) is not None)]


def load_settings(
    overrides: "Mapping[str, object] | None" = None, *, only: "Collection[type[Section]]" = ()
) -> "Settings":
    """Return the effective settings, of all sections or `only` some. Raises Misconfigured with all problems."""
    from app import ROOT
    from app.kernel.config import load

    return load(ROOT, sections(), overrides=overrides, only=only)


def deployment() -> "Deployment":
    """Return what `doctor` examines, whatever is wrong with the settings. Connects to nothing."""
    import os

    from app import DATA, ROOT
    from app.kernel.config import Misconfigured, Settings, load_valid
    from app.kernel.doctor.deployment import Deployment

    known, names = sections(), [module.name for module in modules()]
    try:
        settings, error = load_valid(ROOT, known)
    except Misconfigured as unreadable:
        settings, error = Settings("local"), unreadable
    return Deployment(settings, error, known, ROOT, DATA, names, os.environ)
