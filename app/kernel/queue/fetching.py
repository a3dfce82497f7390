"""When to fetch from a queue, and from where."""

import math
import time

from app.kernel.queue.leases import ANY_RANK, Fetched

_FULL_FETCH_EVERY_S = 0.1
_SLOW_FETCH_S = 0.005


class QueueState:
    """What the worker knows of one queue.

    While there is much to do it fetches from the last rank on, so that a snapshot that is held by somebody, which keeps
    the rows of finished jobs from being cleaned away, does not slow it down; and from the start, for what was added
    before that, now and then. So it does while fetching from the start is slow; otherwise from the start, always.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.may_have_more = True
        self._from = ANY_RANK
        self._full_at = 0.0
        self._full_owed = False
        self._full_took_s = 0.0
        self._turns = False
        self._limited = False

    def due(self, now: float) -> bool:
        """Return whether to fetch."""
        return self.wait_s(now) <= 0

    def next_rank(self, now: float) -> int:
        """Return the rank to fetch from."""
        self.may_have_more = False  # unless we hear otherwise while the fetch is under way
        self._full_owed = now < self._full_at
        return self._from if self._full_owed else ANY_RANK

    def fetched(self, found: Fetched, from_rank: int, wanted: int, started: float) -> None:
        """Note what a fetch returned."""
        now = time.monotonic()
        filled = len(found.jobs) == wanted
        if from_rank == ANY_RANK:
            before_s, self._full_took_s = self._full_took_s, now - started
            slow_s = min(before_s, self._full_took_s)  # one alone may have waited for something else
            at_least_s = _FULL_FETCH_EVERY_S if filled else 0.0
            self._full_at = now + max(at_least_s, 10 * slow_s if slow_s > _SLOW_FETCH_S else 0.0)
        self._turns = self._turns or found.turns
        self._limited = found.limited
        if filled or found.turns or (found.jobs and self._turns):
            self.may_have_more = True
        if found.jobs:
            self._from = found.jobs[-1].rank

    def some_ended(self) -> None:
        """Note that jobs of this worker have ended."""
        self.may_have_more = self.may_have_more or self._limited

    def wait_s(self, now: float) -> float:
        """Return how long to wait before the next fetch when nothing wakes us."""
        if self.may_have_more:
            return 0.0
        return max(0.0, self._full_at - now) if self._full_owed else math.inf
