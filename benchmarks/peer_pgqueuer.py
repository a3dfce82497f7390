"""PgQueuer on asyncpg. `python -m benchmarks.peer_pgqueuer install | fill COUNT | work COUNT | trickle COUNT PER_S`"""

import asyncio
import os
import signal
import sys
import time

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.tally import Tally, moments, say_ready

BATCH = int(os.environ.get("PEER_BATCH", "100"))


async def connected() -> AsyncpgDriver:
    host, port, user, name = os.environ["PEER_PARTS"].split()
    return AsyncpgDriver(await asyncpg.connect(host=host, port=int(port), user=user, database=name))


async def install() -> None:
    await Queries(await connected()).install()


async def fill(count: int) -> None:
    queries = Queries(await connected())
    for _ in range(0, count, 1000):
        await queries.enqueue(["nothing"] * 1000, [b"0.0"] * 1000, [0] * 1000)


async def work(count: int) -> None:
    """One worker; batches as large as ours, of the sizes tried the fastest."""
    tally = Tally(count)
    queue = PgQueuer(await connected())

    @queue.entrypoint("nothing")
    async def nothing(job: Job) -> None:
        tally(float(job.payload or b"0"))

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, queue.shutdown.set)
    say_ready()
    await queue.run(batch_size=BATCH)


async def trickle(count: int, per_s: int) -> None:
    queries = Queries(await connected())
    for moment in moments(count, per_s):
        await asyncio.sleep(max(0.0, moment - time.monotonic()))
        await queries.enqueue("nothing", str(time.monotonic()).encode())


async def main(what: str, *arguments: str) -> None:
    work_ = {"install": install, "fill": fill, "work": work, "trickle": trickle}[what]
    await work_(*(int(text) for text in arguments))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
