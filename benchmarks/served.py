"""The same small application, bare and inside the whole stack, for `telemetry.py` and `http.py`."""

import asyncio
import json
import os
import sys

import uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from app.kernel.config import LoggerSettings, TelemetrySettings
from app.kernel.http.asgi import Receive, Scope, Send
from app.kernel.http.probes import Probes
from app.kernel.http.server import http_service
from app.kernel.process import Process
from app.kernel.services import Run, Service
from app.kernel.sockets import bind
from app.kernel.telemetry import logs
from app.kernel.telemetry.export import span_exporter
from app.processes import load_settings, new_process


async def hello(_: Request) -> JSONResponse:
    return JSONResponse({"hello": "world"})


async def me(_: Request) -> JSONResponse:
    return JSONResponse(ME)


async def fail(_: Request) -> JSONResponse:
    raise RuntimeError("on purpose")


ME = json.loads(os.environ.get("BENCH_ME", "null"))  # what the bare route answers
APP = Starlette(routes=[Route("/hello", hello), Route("/fail", fail), Route("/auth/v1/me", me)])


async def bare(port: int) -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = config.errorlog = None
    config.include_server_header, config.read_timeout, config.keep_alive_timeout = False, 120, 75  # as ours is
    await serve(APP, config)  # type: ignore[arg-type]


async def routed(scope: Scope, receive: Receive, send: Send) -> None:
    """What the router of ours notes for logs, metrics and traces; errors pass Starlette's own handling."""
    scope.setdefault("state", {})["route"] = scope["path"]
    logs.context(operation="bench.hello")
    if scope["path"] == "/fail":
        raise RuntimeError("on purpose")
    await APP(scope, receive, send)


async def stacked(port: int) -> None:
    settings = load_settings()
    logs.configure(settings[LoggerSettings], "bench")
    process = new_process("run-bench", settings)

    async def http(p: Process) -> Run:
        return http_service(p, Probes(p, routed), bind("127.0.0.1", port), "http")

    async def traces(p: Process) -> Run | None:
        telemetry = p.settings[TelemetrySettings]
        return span_exporter(p, telemetry) if telemetry.otlp_endpoint else None

    async def sentinel(p: Process) -> Run:
        from app.kernel.sentinel.service import sentinel

        return await sentinel(p)

    await process.run([Service("http", http), Service("traces", traces), Service("sentinel", sentinel)])


def main() -> None:
    kind, port = sys.argv[1], int(sys.argv[2])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bare(port) if kind == "bare" else stacked(port))


if __name__ == "__main__":
    main()
