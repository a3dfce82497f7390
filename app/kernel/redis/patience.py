"""How long a request or a job has waited for Redis: its commands together wait no longer than one alone may."""

from contextvars import ContextVar

_waited_s: ContextVar[list[float] | None] = ContextVar("seconds waited for Redis", default=None)


def begin() -> None:
    """Begin anew, with a request or a job. Work outside of both has a limit for each command only."""
    _waited_s.set([0.0])


def left_s(limit_s: float) -> float:
    """Return how long the next command may wait."""
    waited = _waited_s.get()
    return limit_s if waited is None else limit_s - waited[0]


def waited(seconds: float) -> None:
    """Count the time of a command."""
    if (so_far := _waited_s.get()) is not None:
        so_far[0] += seconds
