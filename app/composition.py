"""What all modules contribute to each process: features, providers, tasks, constraints and checks."""

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from app.modules import modules

if TYPE_CHECKING:
    from app.kernel.actions.usecases import UseCase
    from app.kernel.doctor import Attention, Check
    from app.kernel.errors import Constraints
    from app.kernel.module import Module
    from app.kernel.process import Process, Provider
    from app.kernel.queue.jobs import DeclaredTask


def features(served: "Iterable[Module]") -> "list[type[Any]]":
    """Return the features of some modules, which it imports."""
    return [kind for module in served for kind in module.feature_classes()]


def providers() -> "dict[type[Any], Provider[Any]]":
    """Return the providers of the kernel and of all modules."""
    from app.kernel.actions.compose import value
    from app.kernel.actions.usecases import UseCases
    from app.kernel.doctor import Attention
    from app.kernel.module import Catalogue
    from app.kernel.providers import PROVIDERS
    from app.kernel.queue.jobs import DeclaredTasks

    found = {kind: p for found in (PROVIDERS, *(m.provided() for m in modules())) for kind, p in found.items()}
    permissions = {name: text for module in modules() for name, text in module.permissions.items()}
    found[Catalogue] = lambda _: value(Catalogue(permissions))
    found[UseCases] = lambda _: value(UseCases(tuple(_actions())))
    found[Attention] = _attention
    found[DeclaredTasks] = lambda _: value(DeclaredTasks(_tasks(), frozenset(_schedule_names())))
    return found


@asynccontextmanager
async def _attention(p: "Process") -> "AsyncGenerator[Attention]":
    """Provide what needs attention, by the quick checks of the kernel and of all modules."""
    from app.kernel.actions.compose import make
    from app.kernel.db import Database
    from app.kernel.doctor.attention import QuickChecks

    yield QuickChecks(await make(p, Database), p, [module.name for module in modules()], checks)


def constraints() -> "Constraints":
    """Return the refusals of violated constraints, by constraint. They are imported on use."""
    return {name: partial(module.load, kind) for module in modules() for name, kind in module.constraints.items()}


def _actions() -> "Iterator[UseCase]":
    """Yield the actions of all features, which it imports."""
    from app.kernel.actions.usecases import use_cases

    for module in modules():
        for kind in module.feature_classes():
            yield from use_cases(module.name, kind)


def _tasks() -> "dict[str, DeclaredTask]":
    """Return the tasks and subscribers of all features, which it imports."""
    from app.kernel.actions import Work, declared
    from app.kernel.queue import Subscriber
    from app.kernel.queue.jobs import DeclaredTask

    found: dict[str, DeclaredTask] = {}
    for work in (work for kind in features(modules()) for _, work, _ in declared(kind)):
        if isinstance(work, Work) and work.task is not None:
            task = work.task
            found[work.id] = DeclaredTask(task.payload, False, task.max_attempts, task.timeout_s, task.concurrency)
        elif isinstance(work, Work) and work.event is not None:
            like = Subscriber(work.id, work.event, _no_operation, **work.options)
            found[work.id] = DeclaredTask(like.event, True, like.max_attempts, like.timeout_s, 1)
    return found


async def _no_operation() -> None: ...


def _schedule_names() -> "Iterator[str]":
    return (schedule.name for module in modules() for schedule in module.scheduled())


def checks() -> "list[Check]":
    """Return the checks of the kernel and of all modules, in the order in which `doctor` shows them."""
    from app.kernel.doctor.checks import CHECKS

    return [*CHECKS, *(check for module in modules() for check in module.checked())]
