"""Passwords with argon2id (RFC 9106), off the event loop, only so many at once."""

import asyncio
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from app.kernel.errors import Unavailable
from app.modules.auth.domain.actors import WeakPassword, check_without_words, checked_password

T = TypeVar("T")
_WAITING_MOST = 200
# what an unknown name is compared with, so that it takes as long: a hash with the hasher's parameters, of nothing
_DUMMY = "$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


class Argon2Passwords:
    """Hashes and verifies on threads of its own; what waits is bounded too."""

    def __init__(self, concurrency: int, words: Sequence[str] = ()) -> None:
        self._hasher = PasswordHasher()
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="argon2")
        self._waiting = 0
        self._words = sorted((word.casefold() for word in words), key=len, reverse=True)

    async def hash(self, password: str) -> str:
        """Return the encoded hash. Takes about 0.2 s and 64 MiB. Raises Unavailable when too many wait."""
        return await self._in_thread(self._hasher.hash, password)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Return whether the password fits. Raises Unavailable when too many wait."""
        fits = await self._in_thread(self._matches, password_hash or _DUMMY, password)
        return fits and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        return self._hasher.check_needs_rehash(password_hash)

    def checked(self, password: str, username: str, field: str = "password") -> str:
        """Return the password as it is hashed. Raises WeakPassword, also for the 30,000 most used (zxcvbn's list)."""
        normal = checked_password(password, username, field)
        if normal.casefold() in _common():
            raise WeakPassword("the password is among the most used ones", ((field, "is among the most used ones"),))
        check_without_words(normal, self._words, field)
        return normal

    def _matches(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, unicodedata.normalize("NFC", password))
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return False

    async def _in_thread(self, work: Callable[..., T], *args: str) -> T:
        if self._waiting >= _WAITING_MOST:
            raise Unavailable("too many sign-ins at once", retry_after_s=5)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Let the threads end. Safe to repeat."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@cache
def _common() -> frozenset[str]:
    from zxcvbn.frequency_lists import FREQUENCY_LISTS

    return frozenset(FREQUENCY_LISTS["passwords"])
