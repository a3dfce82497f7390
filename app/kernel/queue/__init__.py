"""What modules declare in their `jobs.py`. Importing it loads neither driver nor scheduler."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Task:
    """A job of this name is run by this operation."""

    name: str
    operation: Callable[..., Awaitable[Any]]
    max_attempts: int = 5


@dataclass(frozen=True, slots=True)
class Schedule:
    """A job of this name is enqueued at every tick: a cron expression in UTC, or every so many seconds.

    `misfire` says what becomes of ticks that passed while no cron manager ran: one job for all of them, or one each.
    """

    name: str
    cron: str = ""
    every_s: int = 0
    misfire: Literal["one", "all"] = "one"

    def __post_init__(self) -> None:
        if bool(self.cron) == bool(self.every_s):
            raise ValueError(f"schedule {self.name}: give either cron or every_s")
