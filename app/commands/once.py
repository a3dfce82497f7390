"""One-off processes, for commands."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from app.kernel.process import Process

T = TypeVar("T")


def run_once(name: str, work: "Callable[[Process], Awaitable[T]]") -> T:
    """Run a one-off command: a Process for as long as the work takes. Returns what the work returns."""
    from app.kernel.telemetry.logs import configure_command
    from app.kernel.telemetry.redact import remember
    from app.processes import load_settings, new_process

    configure_command(name)
    settings = load_settings()
    remember(settings.secrets())

    async def body() -> T:
        async with new_process(name, settings).opened() as p:
            return await work(p)

    with asyncio.Runner() as runner:
        return runner.run(body())
