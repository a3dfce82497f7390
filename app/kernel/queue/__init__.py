"""Jobs, events, schedules: what modules declare, and its bounds. Importing it loads neither driver nor scheduler."""

import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar

from app.kernel.errors import Conflict
from app.kernel.queue.crontab import Crontab
from app.kernel.text import misnamed

P = TypeVar("P")
Operation = Callable[..., Awaitable[Any]]
Mode = Literal["at_least_once", "tx"]
"""How an operation is run.

`at_least_once`: it is given the payload; when its worker dies it runs again. `tx`: it is given a transaction and the
payload, and what it writes commits together with the completion of the job: exactly once.
"""


LONGEST_DELAY_S: Final = 3650 * 86400.0
"""How far from now, in the future or in the past, a job may be due."""
_LONGEST_RETRY_S: Final = 30 * 86400.0

_WHOLE: Final = ("max_attempts", "concurrency", "priority", "every_s")
_RANGES: Final[dict[str, tuple[float, float]]] = {
    "max_attempts": (1, 1000),
    "timeout_s": (0.001, 7 * 86400),
    "concurrency": (1, 1_000_000),
    "priority": (-1000, 1000),
    "delay_s": (0, LONGEST_DELAY_S),
    "every_s": (1, 366 * 86400),
}


def out_of_range(option: str, value: object) -> str:
    """Return what is wrong with the value of an option; an empty text when it is within its range."""
    least, most = _RANGES[option]
    whole = option in _WHOLE
    if isinstance(value, int if whole else int | float) and not isinstance(value, bool) and least <= value <= most:
        return ""
    return f"{option} must be {'a whole number, ' if whole else ''}{least:.15g} to {most:.15g}"


class RetryAfter(Exception):
    """Raised by an operation: try this job again, not before so many seconds.

    `delay_s` is what that means: 0 for less, at most 30 days, and None, the usual delay, for what is no number.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        super().__init__(reason or f"asked to be tried again in {seconds} s")
        self.seconds = seconds

    @property
    def delay_s(self) -> float | None:
        """For how long the job rests."""
        given: Any = self.seconds  # whatever it is
        if isinstance(given, int) or (isinstance(given, float) and math.isfinite(given)):
            return float(min(max(given, 0), _LONGEST_RETRY_S))
        return None


class NeverRetry(Exception):
    """Raised by an operation: this job can never succeed; it becomes a dead letter at once."""


class InvalidDeclaration(ValueError):
    """A module declares what cannot work; the message names it. The process does not start."""


@dataclass(frozen=True)
class Task(Generic[P]):
    """A kind of job: what actions enqueue, with its payload, a dataclass, or None when there is nothing to say.

    A job is attempted `max_attempts` times, each for at most `timeout_s` seconds. `concurrency` limits how many jobs of
    the same concurrency key run at once, in the whole deployment. Raises InvalidDeclaration.
    """

    name: str
    payload: type[P] | None = None
    queue: str = "default"
    max_attempts: int = 10
    timeout_s: float = 300
    concurrency: int = 1

    def __post_init__(self) -> None:
        names, numbers = ("name", "queue"), ("max_attempts", "timeout_s", "concurrency")
        _check(f"task {self.name}", self, names, numbers)


class Event(Protocol):
    """A frozen dataclass of something that has happened; its name is past tense, such as `auth.actor_disabled`.

    When its fields change, a class says `event_version: ClassVar[int]` (1 unless said) and has a static method
    `upgrade(version, fields) -> fields` that makes what an older version stored into what this one reads.
    """

    event_type: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Handler:
    """Jobs of this task are run by this operation."""

    task: Task[Any]
    operation: Operation
    mode: Mode = "at_least_once"


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Each event of this class is given to this operation, as a job of the subscriber's own name.

    With `in_order`, one event at a time, in the order of their publishing. Raises InvalidDeclaration.
    """

    name: str
    event: type[Event]
    operation: Operation
    mode: Mode = "at_least_once"
    queue: str = "default"
    max_attempts: int = 10
    timeout_s: float = 300
    in_order: bool = False

    def __post_init__(self) -> None:
        about = f"subscriber {self.name}"
        _check(about, self, ("name", "queue"), ("max_attempts", "timeout_s"))
        _check(about, self.event, ("event_type",), ())


@dataclass(frozen=True, slots=True)
class Schedule:
    """A job of this task is enqueued at every tick: a cron expression in a time zone, or every so many seconds.

    `misfire` says what becomes of ticks that passed while no cron manager ran: none of them, one job for all of them,
    or one each. `overlap` says what becomes of a tick while the job of an earlier one is not finished: it runs beside
    it, is skipped, or waits. Raises InvalidDeclaration, also for an expression or a time zone that is wrong.
    """

    task: Task[Any]
    cron: str = ""
    every_s: int = 0
    timezone: str = "UTC"
    misfire: Literal["skip", "one", "all"] = "one"
    overlap: Literal["allow", "skip", "wait"] = "allow"
    name: str = field(default="")

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.task.name)
        about = f"schedule {self.name}"
        if bool(self.cron.strip()) == bool(self.every_s):
            raise InvalidDeclaration(f"{about}: give either cron or every_s")
        if self.task.payload is not None:
            raise InvalidDeclaration(f"{about}: its task must not need a payload")
        for option, choices in (("misfire", ("skip", "one", "all")), ("overlap", ("allow", "skip", "wait"))):
            if getattr(self, option) not in choices:
                raise InvalidDeclaration(f"{about}: {option} must be one of {', '.join(choices)}")
        if self.every_s:
            _check(about, self, ("name",), ("every_s",))
            return
        _check(about, self, ("name",), ())
        try:
            Crontab(self.cron, self.timezone)
        except ValueError as error:
            raise InvalidDeclaration(f"{about}: {self.cron!r} in {self.timezone}: {error}") from None

    @property
    def spec(self) -> str:
        """The rhythm in words: when it changes, ticks are computed anew."""
        return f"{self.cron} {self.timezone}" if self.cron else f"every {self.every_s} s"


def _check(about: str, declared: object, names: Iterable[str], numbers: Iterable[str]) -> None:
    found = [misnamed(option, getattr(declared, option)) for option in names]
    found += [out_of_range(option, getattr(declared, option)) for option in numbers]
    if said := "; ".join(filter(None, found)):
        raise InvalidDeclaration(f"{about}: {said}")


class JobExists(Conflict):
    """There is a job of this unique key already."""

    code = "JOB_EXISTS"
    title = "There is a job of this unique key already"
