"""Holds a PostgreSQL server of its own in a folder until its standard input closes; prints how to reach it as JSON.

Unless a second argument is `flush`, it does not flush what it writes: tests kill servers, not the machine.
"""

import asyncio
import json
import sys
from pathlib import Path

import psycopg

from app.kernel.db.devserver.embedded import embedded_server

FAST = ("ALTER SYSTEM SET fsync = off", "ALTER SYSTEM SET full_page_writes = off", "SELECT pg_reload_conf()")


async def main(folder: Path, *, flushes: bool) -> None:
    async with embedded_server(folder) as server:
        where = {"host": server.socket_dir, "port": server.port, "user": server.user, "dbname": server.database}
        with psycopg.connect(autocommit=True, **where) as connection:
            for statement in () if flushes else FAST:
                connection.execute(statement)
        print(json.dumps({"host": server.socket_dir, "port": server.port, "user": server.user}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), flushes=sys.argv[2:] == ["flush"]))
