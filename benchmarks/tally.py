"""What a measured worker counts, printed as JSON when the last job has been handled. Standard library only."""

import json
import time

MARK_EVERY = 1000


class Tally:
    """Counts jobs and notes when they were handled, on the clock that all processes of a machine share."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._handled = 0
        self._first = 0.0
        self._late_s: list[float] = []
        self._marks: list[float] = []

    def __call__(self, sent: float = 0.0) -> None:
        """Note a job; `sent` is when somebody began to enqueue it."""
        self._handled += 1
        if sent:
            self._late_s.append(time.monotonic() - sent)
        elif self._handled % MARK_EVERY == 0:
            self._marks.append(time.monotonic())
        if self._handled == 1:
            self._first = time.monotonic()
        if self._handled == self._expected:
            self.tell(first=self._first, last=time.monotonic(), marks=self._marks, late_s=self._late_s)

    @staticmethod
    def tell(**found: object) -> None:
        """Print what was found."""
        print(json.dumps(found), flush=True)


def say_ready() -> None:
    """Tell the parent that jobs may come."""
    print("ready", flush=True)


def moments(count: int, per_s: float) -> list[float]:
    """Return when to send, evenly, from a moment on."""
    start = time.monotonic() + 0.2
    return [start + number / per_s for number in range(count)]
