"""Which WAL waits to be stored, and since when."""

from collections import deque
from datetime import datetime
from typing import NamedTuple

from app.kernel.backup.primary import Now

_MOST = 1000


class _Written(NamedTuple):
    at: datetime
    lsn: int


class Waiting:
    """WAL of transactions that is not stored.

    What only the record of the stored WAL adds does not count, nor what no transaction wrote: a server at rest writes
    some WAL, of which nothing would be lost.
    """

    def __init__(self, stored_at: datetime) -> None:
        """All transactions that were committed before `stored_at` are stored."""
        self._written: deque[_Written] = deque()
        self._known = 0
        """All transactions before this id have been noted, or are our own; 0 if that is not certain."""
        self._stored_at = self._seen_at = stored_at
        self._is_first = True

    @property
    def since(self) -> datetime | None:
        """Since when something waits."""
        return self._written[0].at if self._written else None

    @property
    def stored_at(self) -> datetime:
        """The time until which all transactions that were committed are stored."""
        return self._stored_at if self._written else self._seen_at

    def note(self, now: Now) -> None:
        """Note what the server has written by now."""
        at = self._stored_at if self._is_first else now.at
        self._seen_at, self._is_first = now.at, False
        if now.xmin == now.xmax == self._known:
            return
        self._known = now.xmax if now.xmin == now.xmax else 0
        if self._written and self._written[-1].lsn >= now.written:
            return
        if len(self._written) < _MOST:
            self._written.append(_Written(at, now.written))
        else:
            self._written[-1] = self._written[-1]._replace(lsn=now.written)

    def own(self, transaction: int) -> None:
        """Note the id of our own transaction."""
        if self._known == transaction:
            self._known += 1

    def stored(self, lsn: int) -> None:
        """Note that everything before a position is stored."""
        while self._written and self._written[0].lsn <= lsn:
            self._stored_at = self._written.popleft().at
