"""Password hashing with argon2id (RFC 9106) in threads, with bounded concurrency and fairness between addresses."""

import asyncio
import unicodedata
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from typing import TypeVar

from app.kernel.concurrency import Turns
from app.modules.auth.domain.actors import WeakPassword, check_without_words, checked_password

T = TypeVar("T")
_MOST, _MOST_OF_ADDRESS, _LONGEST_WAIT_S = 200, 100, 15.0
# an unknown name is compared with this hash, which has the hasher's parameters, to take the same time
_DUMMY = "$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


class Hashing:
    """Hashes and verifies passwords in threads."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        from argon2 import PasswordHasher

        self.hasher = PasswordHasher()
        self._threads = threads

    async def hash(self, password: str) -> str:
        """Return the encoded hash. Takes about 0.2 s and 64 MiB."""
        return await self._in_thread(self.hasher.hash, password)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Return whether the password is right. Takes the same time without a hash."""
        fits = await self._in_thread(self._matches, password_hash or _DUMMY, password)
        return fits and password_hash is not None

    def _matches(self, password_hash: str, password: str) -> bool:
        from argon2.exceptions import InvalidHashError, VerificationError

        try:
            return self.hasher.verify(password_hash, unicodedata.normalize("NFC", password))
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return False

    async def _in_thread(self, work: Callable[..., T], *args: str) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)


class Passwords:
    """Limits concurrent hashing, and checks the strength of passwords."""

    def __init__(self, concurrency: int, words: Sequence[str] = ()) -> None:
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="argon2")
        self._hashing = Hashing(self._threads)
        self._turns = Turns(concurrency, _MOST, _MOST_OF_ADDRESS, _LONGEST_WAIT_S)
        self._words = sorted((word.casefold() for word in words), key=len, reverse=True)

    @asynccontextmanager
    async def turn(self, address: str = "") -> AsyncGenerator[Hashing]:
        """Wait for a turn to hash. Addresses take turns. Raises RateLimited, Unavailable."""
        async with self._turns.turn(address):
            yield self._hashing

    async def hash(self, password: str, address: str = "") -> str:
        """Return the encoded hash. Waits for a turn. Raises RateLimited, Unavailable."""
        async with self.turn(address) as hashing:
            return await hashing.hash(password)

    def is_outdated(self, password_hash: str) -> bool:
        """Return whether the hash has other parameters than the current ones."""
        return self._hashing.hasher.check_needs_rehash(password_hash)

    def checked(self, password: str, username: str, field: str = "password") -> str:
        """Return the normalised password. Raises WeakPassword, also for the 30,000 most used ones (zxcvbn's list)."""
        normal = checked_password(password, username, field)
        if normal.casefold() in _common():
            raise WeakPassword("the password is among the most used ones", ((field, "is among the most used ones"),))
        check_without_words(normal, self._words, field)
        return normal

    def close(self) -> None:
        """Stop the threads. Safe to repeat."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@cache
def _common() -> frozenset[str]:
    from zxcvbn.frequency_lists import FREQUENCY_LISTS

    return frozenset(FREQUENCY_LISTS["passwords"])
