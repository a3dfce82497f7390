"""What logs, traces, metrics and captured errors cost, against bare Starlette on the same Hypercorn.

`python -m benchmarks.telemetry [rounds [requests]]`
"""

import asyncio
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

import httpx
import uvloop

from benchmarks.measure import PYTHON, Broken, Table, cpu_s, free_port, postgres, project, scratch, stop
from tests.kernel.telemetry.collector import collecting
from tests.support.project import ROOT

CONNECTIONS = 8
BARE, ONE_PERCENT, ALL = "bare", "traces at 1%", "every request traced"
DEAD, SLOW, BLOCKED = "collector dead", "collector slow", "log pipe blocked"
BURST = 10_000


@dataclass
class Server:
    popen: subprocess.Popen[bytes]
    port: int
    per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)

    def round(self, requests: int, path: str = "/hello", status: int = 200) -> None:
        before_s, started = cpu_s(self.popen.pid), time.perf_counter()
        took = uvloop.run(load(self.port, requests, path, status))
        self.per_s.append(requests / (time.perf_counter() - started))
        self.cpu_us.append((cpu_s(self.popen.pid) - before_s) / requests * 1e6)
        self.p99_ms.append(sorted(took)[int(len(took) * 0.99)] * 1000)


async def load(port: int, requests: int, path: str, status: int) -> list[float]:
    """Send requests over kept connections, one at a time on each; return what each took."""
    left, took = iter(range(requests)), list[float]()
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = 0
        for _ in left:
            if sent == 900:  # Hypercorn ends a connection after a thousand
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                sent = 0
            sent += 1
            started = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            took.append(time.perf_counter() - started)
            if int(head[9:12]) != status:
                raise Broken(f"unexpected: {head.decode()}")
        writer.close()

    async with asyncio.timeout(300):
        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return took


def dropped(port: int, signal: str) -> float:
    said = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return float(re.findall(rf'^telemetry_dropped_total{{signal="{signal}"}} (\S+)$', said, re.MULTILINE)[0])


def main() -> None:
    given = [int(text) for text in sys.argv[1:]]
    rounds, requests = given + [9, 3000][len(given) :]
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        database = stack.enter_context(postgres(folder / "pg"))
        of = stack.enter_context(project(folder, database))
        collector, slow = stack.enter_context(collecting()), stack.enter_context(collecting())
        slow.delay_s = 30
        read, write = os.pipe()
        stack.callback(os.close, read)
        stack.callback(os.close, write)

        def start(kind: str, **env: str) -> Server:
            port = free_port()
            environment = of.environment({"LOGGER_OUTPUT": str(folder / f"{port}.log"), "LOGGER_LEVEL": "info", **env})
            command = [PYTHON, "-m", "benchmarks.served", kind, str(port)]
            popen = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=write)
            stack.callback(stop, popen)
            for _ in range(400):
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/hello").status_code == 200:
                        return Server(popen, port)
                except httpx.HTTPError:
                    time.sleep(0.05)
            raise Broken(f"{kind} did not start")

        traced = {"TELEMETRY_OTLP_ENDPOINT": collector.url}
        servers = {
            BARE: start("bare"),
            ONE_PERCENT: start("stacked", **traced, TELEMETRY_TRACE_RATIO="0.01"),
            ALL: start("stacked", **traced, TELEMETRY_TRACE_RATIO="1"),
            DEAD: start("stacked", TELEMETRY_OTLP_ENDPOINT="http://127.0.0.1:1", TELEMETRY_TRACE_RATIO="1"),
            SLOW: start("stacked", TELEMETRY_OTLP_ENDPOINT=slow.url, TELEMETRY_TRACE_RATIO="1"),
            BLOCKED: start("stacked", **traced, TELEMETRY_TRACE_RATIO="0.01", LOGGER_OUTPUT="stdout"),
        }
        for number in range(rounds + 1):
            for name in servers if number % 2 else reversed(servers):
                servers[name].round(requests)
            if number == 0:  # to warm up
                for server in servers.values():
                    server.per_s.clear(), server.cpu_us.clear(), server.p99_ms.clear()
        table = Table("Telemetry")
        for name, server in servers.items():
            table.add(f"{name}: CPU a request", median(server.cpu_us), " us")
            table.add(f"{name}: requests a second", median(server.per_s), "")
        bare = servers[BARE]
        for name, least in ((ONE_PERCENT, 0.7), (ALL, 0.6)):
            pairs = list(zip(servers[name].per_s, bare.per_s, strict=True))
            table.add(
                f"requests a second, {name} / bare", median(ours / theirs for ours, theirs in pairs), "", least=least
            )
            cpu = zip(bare.cpu_us, servers[name].cpu_us, strict=True)
            table.add(f"CPU, bare / {name}", median(theirs / ours for theirs, ours in cpu), "", least=least)
        for name, normal, signal in ((DEAD, ALL, "traces"), (SLOW, ALL, "traces"), (BLOCKED, ONE_PERCENT, "logs")):
            p99 = zip(servers[name].p99_ms, servers[normal].p99_ms, strict=True)
            table.add(f"p99, {name} / working", median(a / b for a, b in p99), "x", most=1.1)
            table.add(f"{signal} dropped and counted, {name}", dropped(servers[name].port, signal), "", least=1)
        burst(table, servers[ONE_PERCENT])
        table.show()


def burst(table: Table, server: Server) -> None:
    """Good requests beside others that fail, and beside as many that do not."""

    async def beside(path: str, status: int) -> float:
        others = asyncio.ensure_future(load(server.port, BURST, path, status))
        took: list[float] = []
        while not others.done():
            took += await load(server.port, 400, "/hello", 200)
        await others
        return sorted(took)[int(len(took) * 0.99)] * 1000

    calm, failing = list[float](), list[float]()
    for _ in range(5):
        calm.append(uvloop.run(beside("/hello", 200)))
        failing.append(uvloop.run(beside("/fail", 500)))
    table.add(f"p99 beside {BURST} good requests", median(calm), " ms")
    table.add(f"p99 beside {BURST} failing ones", median(failing), " ms")
    ratios = [bad / good for bad, good in zip(failing, calm, strict=True)]
    table.add("p99, beside failing / beside good", median(ratios), "x", most=1.1)


if __name__ == "__main__":
    main()
