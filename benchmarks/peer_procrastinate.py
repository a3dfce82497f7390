"""Procrastinate on psycopg.

`python -m benchmarks.peer_procrastinate install | fill COUNT | work COUNT | trickle COUNT PER_S`
"""

import asyncio
import os
import sys
import time

import procrastinate
import uvloop

from benchmarks.tally import Tally, moments, say_ready

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ.get("PEER_DSN", "")))
tally = Tally(0)


@app.task(name="nothing")
async def nothing(at: float) -> None:
    tally(at)


async def install() -> None:
    await app.schema_manager.apply_schema_async()


async def fill(count: int) -> None:
    for _ in range(0, count, 500):
        await nothing.batch_defer_async(*[{"at": 0.0}] * 500)


async def work(count: int) -> None:
    """One worker, with as much concurrency as ours; finished jobs are deleted, which is faster than keeping them."""
    global tally  # noqa: PLW0603
    tally = Tally(count)
    say_ready()
    await app.run_worker_async(concurrency=100, delete_jobs="always")


async def trickle(count: int, per_s: int) -> None:
    for moment in moments(count, per_s):
        await asyncio.sleep(max(0.0, moment - time.monotonic()))
        await nothing.defer_async(at=time.monotonic())


async def main(what: str, *arguments: str) -> None:
    async with app.open_async():
        work_ = {"install": install, "fill": fill, "work": work, "trickle": trickle}[what]
        await work_(*(int(text) for text in arguments))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
