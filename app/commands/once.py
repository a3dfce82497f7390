"""The commands of modules."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from app.modules import modules

if TYPE_CHECKING:
    from app.kernel.process import Process

T = TypeVar("T")


def typer_app(name: str) -> typer.Typer:
    """Return a group: the commands that features of its module declare, and those in its `cli.py`."""
    from app.kernel.actions.commands import add_commands
    from app.kernel.cli import group

    [module] = [module for module in modules() if name in module.groups()]
    found = module.load("cli:typer_app")(name) if name in module.commands else group(module.groups()[name])
    add_commands(found, name, module.feature_classes(name), run_once)
    return found


def run_once(name: str, work: "Callable[[Process], Awaitable[T]]") -> T:
    """Run work in a process that ends with it. Returns its result."""
    from loguru import logger

    from app.kernel.telemetry.logs import configure_command
    from app.kernel.telemetry.redact import remember
    from app.processes import load_settings, new_process

    configure_command(name)
    settings = load_settings()
    remember(settings.secrets())
    for warning in settings.misspelt:
        logger.warning("{}", warning)

    async def body() -> T:
        async with new_process(name, settings).opened() as p:
            return await work(p)

    with asyncio.Runner() as runner:
        return runner.run(body())
