"""What a worker's own connections do when the network drops them without a word."""

import asyncio
from dataclasses import replace

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.kernel.queue.conftest import GREET, Bench, Greeting
from tests.support.proxy import proxy_to

LEASE_S = 6.0


async def test_leases_are_renewed_on_a_new_connection(bench: Bench) -> None:
    gate = asyncio.Event()
    begun: list[Greeting] = []

    async def greet(greeting: Greeting) -> None:
        begun.append(greeting)
        await gate.wait()

    async def renewed() -> int:
        ((count,),) = await bench.rows("SELECT count(*) FROM kernel.jobs WHERE leased_until > now() + interval '5.5 s'")
        return count

    where = conninfo_to_dict(bench.conninfo)
    with proxy_to(str(where["host"]), int(where["port"] or 0)) as proxy:
        through = replace(bench, conninfo=make_conninfo(bench.conninfo, host="127.0.0.1", port=proxy.port))
        async with through.consuming(greet, lease=LEASE_S):
            await bench.queue.enqueue(bench.db, GREET, Greeting("you"))
            await bench.until(renewed, 1)
            await bench.until(renewed, 0)
            await bench.until(renewed, 1)  # on the connection that is lost now
            proxy.forget()
            await bench.until(renewed, 0)
            await bench.until(renewed, 1)
            gate.set()
            await bench.until(bench.finished, [("done", 1)])
    assert len(begun) == 1
