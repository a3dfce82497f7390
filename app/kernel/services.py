"""Services: what a process runs, and in which order. Light: the table of processes is read by `--help`."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import asyncio

    from app.kernel.process import Process

Run = Callable[["asyncio.Event"], Coroutine[Any, Any, None]]


class Service(NamedTuple):
    """Something that runs as long as the process does: it starts after some others, and stops before them.

    `make` opens what it needs and returns what runs, or None when there is nothing to do. What runs is given the event
    that asks it to drain and return.
    """

    name: str
    make: "Callable[[Process], Awaitable[Run | None]]"
    after: tuple[str, ...] = ()


class InvalidOrder(Exception):
    """Services run after each other, or after one that the process does not have; the message names them."""


def in_order(services: Sequence[Service]) -> list[Service]:
    """Return the services, each behind those that it runs after. Raises InvalidOrder."""
    from graphlib import CycleError, TopologicalSorter

    named = {service.name: service for service in services}
    for service in services:
        if unknown := [name for name in service.after if name not in named]:
            raise InvalidOrder(f"service {service.name} runs after {', '.join(unknown)}, which the process has not")
    try:
        order = TopologicalSorter({service.name: service.after for service in services}).static_order()
        return [named[name] for name in order]
    except CycleError as error:
        raise InvalidOrder("services run after each other: " + " -> ".join(reversed(error.args[1]))) from None
