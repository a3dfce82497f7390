"""Services of a process, and their order. Light, because `--help` reads the table of processes."""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import asyncio

    from app.kernel.process import Process

Run = Callable[["asyncio.Event"], Coroutine[Any, Any, None]]
Needs = Callable[[], Iterable[type[Any]]]


class Service(NamedTuple):
    """A part of a process: starts after the services in `after`, and stops before them.

    `make` opens its resources and returns the coroutine function to run, or None when there is nothing to do. The
    function takes the stop event; once it is set, it drains and returns. `needs` are the types that it is made of, and
    the sections of settings whose secrets it reads; those are checked before anything is opened.
    """

    name: str
    make: "Callable[[Process], Awaitable[Run | None]]"
    after: tuple[str, ...] = ()
    needs: Needs = tuple


class InvalidOrder(Exception):
    """The order of services has a cycle or an unknown service; the message names them."""


def in_order(services: Sequence[Service]) -> list[Service]:
    """Return the services in start order. Raises InvalidOrder."""
    from graphlib import CycleError, TopologicalSorter

    named = {service.name: service for service in services}
    for service in services:
        if unknown := [name for name in service.after if name not in named]:
            names = ", ".join(unknown)
            raise InvalidOrder(f"service {service.name} runs after {names}, which the process does not have")
    try:
        order = TopologicalSorter({service.name: service.after for service in services}).static_order()
        return [named[name] for name in order]
    except CycleError as error:
        raise InvalidOrder("services run after each other: " + " -> ".join(reversed(error.args[1]))) from None
