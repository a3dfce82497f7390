"""Declarations of tasks, events, subscribers and schedules. This module imports neither driver nor scheduler."""

import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar

from app.kernel.errors import Conflict
from app.kernel.product import NAME
from app.kernel.queue.crontab import Crontab
from app.kernel.text import misnamed

P = TypeVar("P")
Operation = Callable[..., Awaitable[Any]]
Mode = Literal["at_least_once", "tx"]
"""How an operation runs.

`at_least_once`: it takes the payload, and runs again if its worker dies. `tx`: it takes a transaction and the payload.
Its writes commit together with the completion of the job: exactly once.
"""


LONGEST_DELAY_S: Final = 3650 * 86400.0
"""Maximum distance of the due time of a job from now."""
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
    """Return the problem of an option's value; an empty text if it is in range."""
    least, most = _RANGES[option]
    whole = option in _WHOLE
    if isinstance(value, int if whole else int | float) and not isinstance(value, bool) and least <= value <= most:
        return ""
    return f"{option} must be {'a whole number, ' if whole else ''}{least:.15g} to {most:.15g}"


class RetryAfter(Exception):
    """Raised by an operation: retry this job after a delay.

    `delay_s` is the delay, from 0 to 30 days; None, the usual delay, if `seconds` is not a number.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        super().__init__(reason or f"requested a retry in {seconds} s")
        self.seconds = seconds

    @property
    def delay_s(self) -> float | None:
        """The delay in seconds."""
        given: Any = self.seconds  # may have another type
        if isinstance(given, int) or (isinstance(given, float) and math.isfinite(given)):
            return float(min(max(given, 0), _LONGEST_RETRY_S))
        return None


class NeverRetry(Exception):
    """Raised by an operation: do not retry this job, which becomes a dead letter."""


class InvalidDeclaration(ValueError):
    """A declaration of a module is invalid. The process does not start."""


@dataclass(frozen=True)
class Task(Generic[P]):
    """A kind of job. The payload is a dataclass, or None.

    A job has up to `max_attempts` attempts of up to `timeout_s` seconds. `concurrency` is the maximum number of
    concurrent jobs of a concurrency key in the whole deployment. Raises InvalidDeclaration.
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
    """A frozen dataclass. The name of an event is in the past tense, such as `auth.actor_disabled`.

    A class whose fields have changed has `event_version: ClassVar[int]` (default 1) and a static method
    `upgrade(version, fields) -> fields`, which converts the fields of an older version.
    """

    event_type: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Handler:
    """The operation that runs the jobs of a task."""

    task: Task[Any]
    operation: Operation
    mode: Mode = "at_least_once"


@dataclass(frozen=True, slots=True)
class Subscriber:
    """The operation that receives the events of a class, as jobs with the name of the subscriber.

    With `in_order`, events run one at a time in the order of publishing. Raises InvalidDeclaration.
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
    """Enqueues a job of a task at every tick: of a cron expression in a time zone, or of an interval in seconds.

    `misfire` decides on ticks missed while no cron manager ran, or during a pause that has expired: `skip` enqueues no
    job, `one` a single job, `all` one job each. `overlap` decides on a tick while an earlier job is unfinished: `allow`
    runs both, `skip` skips the tick, `wait` runs the job afterwards. `priority` is that of the jobs. Raises
    InvalidDeclaration.
    """

    task: Task[Any]
    cron: str = ""
    every_s: int = 0
    timezone: str = "UTC"
    misfire: Literal["skip", "one", "all"] = "one"
    overlap: Literal["allow", "skip", "wait"] = "allow"
    name: str = field(default="")
    priority: int = 0

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
            _check(about, self, ("name",), ("every_s", "priority"))
            return
        _check(about, self, ("name",), ("priority",))
        try:
            Crontab(self.cron, self.timezone)
        except ValueError as error:
            raise InvalidDeclaration(f"{about}: {self.cron!r} in {self.timezone}: {error}") from None

    @property
    def spec(self) -> str:
        """The interval as text. If it changes, ticks are recomputed."""
        return f"{self.cron} {self.timezone}" if self.cron else f"every {self.every_s} s"


def _check(about: str, declared: object, names: Iterable[str], numbers: Iterable[str]) -> None:
    found = [misnamed(option, getattr(declared, option)) for option in names]
    found += [out_of_range(option, getattr(declared, option)) for option in numbers]
    if said := "; ".join(filter(None, found)):
        raise InvalidDeclaration(f"{about}: {said}")


class JobExists(Conflict):
    """There is a job of this unique key already."""

    code = "JOB_EXISTS"
    hint = f"{NAME} jobs list"
    title = "There is a job of this unique key already"
