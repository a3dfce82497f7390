"""Holds a PostgreSQL server of its own in a folder until its standard input closes; prints how to reach it as JSON."""

import asyncio
import json
import sys
from pathlib import Path

from app.kernel.db.devserver.embedded import embedded_server


async def main(folder: Path) -> None:
    async with embedded_server(folder) as server:
        print(json.dumps({"host": server.socket_dir, "port": server.port, "user": server.user}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
