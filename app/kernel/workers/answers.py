"""What the supervisor answers for all workers: what is missing, and their metrics."""

import asyncio
from collections.abc import Mapping, Set
from typing import Any

from app.kernel.workers.families import Family, summed
from app.kernel.workers.member import Member

_RESTARTS = "worker_restarts"


class Answers:
    """Asks the workers, at the same time and within a limit. The metrics of ended workers are kept."""

    def __init__(self, count: int, current: Mapping[int, Member], everyone: Set[Member]) -> None:
        """`current` are the workers in their places; among all there may also be replaced ones and new ones."""
        self._count = count
        self._current = current
        self._everyone = everyone
        self._gathering: dict[str, asyncio.Task[Any]] = {}
        self._ended = [_restarts(reason, 0) for reason in ("ended", "hung")]

    async def answer(self, what: str) -> Any:
        """Return the answer to the question of a worker. Workers that ask at the same time get the same answer."""
        task = self._gathering.get(what)
        if task is None or task.done():
            gathered = self._metrics() if what == "metrics" else self._missing()
            task = self._gathering[what] = asyncio.get_running_loop().create_task(gathered)
        return await asyncio.shield(task)

    def ended(self, member: Member) -> None:
        """Keep the metrics of a worker that has ended."""
        self._ended = summed([self._ended, member.metrics])

    def restarted(self, member: Member) -> None:
        """Count a worker that ended, or hung and was killed, and is replaced."""
        self._ended = summed([self._ended, [_restarts("hung" if member.is_killed else "ended", 1)]])

    async def _missing(self) -> dict[str, str]:
        """Return what is missing, by worker and name; empty when all workers are ready."""
        numbers = range(1, self._count + 1)
        found = await asyncio.gather(*(_missing_of(self._current.get(number)) for number in numbers))
        return {
            f"worker {number}" + ("" if name == "process" else f" {name}"): reason
            for number, missing in zip(numbers, found, strict=True)
            for name, reason in missing.items()
        }

    async def _metrics(self) -> tuple[dict[str, list[Family]], list[Family]]:
        """Return the metrics of the workers in their places, and the sums of all others."""
        asked = list(self._everyone)
        answered = dict(zip(asked, await asyncio.gather(*(member.measure() for member in asked)), strict=True))
        workers: dict[str, list[Family]] = {}
        for number in range(1, self._count + 1):
            member = self._current.get(number)
            is_up, last = False, list[Family]()
            if member is not None and member in self._everyone:
                is_up = answered.get(member, False)
                last = member.metrics if is_up else summed([member.metrics])
            up: Family = ("worker_up", "gauge", "Whether the worker answers", [("worker_up", {}, float(is_up), None)])
            workers[str(number)] = [*last, up]
        others = [member.metrics for member in self._everyone if self._current.get(member.number) is not member]
        return workers, summed([self._ended, *others])


async def _missing_of(member: Member | None) -> dict[str, str]:
    return {"process": "starting"} if member is None else await member.missing()


def _restarts(reason: str, count: int) -> Family:
    sample = (f"{_RESTARTS}_total", {"reason": reason}, float(count), None)
    return (_RESTARTS, "counter", "Workers that ended or hung and were replaced", [sample])
