"""`app demo`: everything in one process, on a database of its own, under a fake load with failures."""

import asyncio
import contextlib
import fcntl
import os
import secrets
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app import DATA
from app.commands.run import Host, Port
from app.kernel.cli import single
from app.kernel.config.alone import ALONE
from app.kernel.errors import Conflict, Denied
from app.kernel.product import NAME, VERSION
from app.kernel.services import Service
from app.modules import add, modules

if TYPE_CHECKING:
    from app.kernel.db.server import Parameters
    from app.kernel.process import Process
    from app.kernel.services import Run

USER = "demo"
_PROCESS = "run-all-in-one"
_OWN: dict[str, object] = {
    **ALONE,
    "postgres.host": "",
    "queue.names": ["default", "imports", "partners", "payments", "pictures", "reports", "search"],
}
Folder = Annotated[Path, typer.Option("--data", help="Folder of its database and its log.", show_default="demo")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete the data of the last demo first.")]


def demo(host: Host = None, port: Port = None, data: Folder = DATA / "demo", fresh: Fresh = False) -> None:
    """Run everything under a fake load with failures, to look at. Only with APP_ENV=local.

    It has a database of its own, which the next demo continues with, and never uses the configured one.

    \b
    Examples:
      app demo
      app demo --fresh --port 9000
    """
    from app.kernel.config import current_environment

    environment = current_environment(os.environ)
    if environment != "local":
        raise Denied(f"{NAME} demo makes data up, so it only runs with APP_ENV=local, not {environment}")
    add("demo")
    listening = {f"http_server.{key}": value for key, value in (("host", host), ("port", port)) if value is not None}
    with _alone(data):
        if fresh:
            asyncio.run(_delete(data))
        status = _run(data, {**_OWN, **listening, "logger.output": str(data / "log")})
    raise typer.Exit(status)


typer_app = single(demo)


@contextlib.contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keep a second demo from using the folder. Raises Conflict."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another {NAME} demo uses {folder}; stop it with Ctrl-C") from None
        yield


async def _delete(folder: Path) -> None:
    """Delete the data of the last demo."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    from app.kernel.db.devserver.embedded import embedded_server

    async with embedded_server(folder / "postgres") as server:
        where: dict[str, Any] = {"host": server.socket_dir, "port": server.port, "user": server.user}
        async with await psycopg.AsyncConnection.connect(**where, dbname="postgres", autocommit=True) as connection:
            await connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(server.database)))


def _run(folder: Path, overrides: dict[str, object]) -> int:
    import uvloop

    from app.kernel.config import LoggerSettings
    from app.kernel.process import run_to_end
    from app.kernel.telemetry.logs import configure
    from app.processes import PROCESSES, load_settings, new_process

    settings = load_settings(overrides)
    configure(settings[LoggerSettings], NAME)
    process = new_process(_PROCESS, settings, data=folder)
    services = PROCESSES[_PROCESS].services
    load = Service("demo", _load, tuple(service.name for service in services if service.name != "settings"))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return run_to_end(runner.get_loop(), process.run((*services, load)))


async def _load(p: "Process") -> "Run":
    """Return the service that writes the history, if there is none, and makes the load."""
    from pydantic_core import to_jsonable_python

    from app.kernel.actions.compose import make, operations
    from app.kernel.actions.operation import Call
    from app.kernel.callers import Caller, Origin, operator
    from app.kernel.db import Database
    from app.kernel.db.server import server
    from app.kernel.decoding import Decoder
    from app.kernel.http.client import http_client
    from app.modules.demo import history
    from app.modules.demo.load import Load
    from app.modules.demo.shop import Shop

    kinds = [kind for module in modules() for kind in module.feature_classes()]
    found = {operation.id: operation for operation in await operations(p, kinds)}
    caller = operator()

    async def act(action_id: str, /, **given: object) -> Any:
        operation = found[action_id]
        kind = operation.signature.input
        return await operation(
            Call(caller), None if kind is None else Decoder[Any](kind).json(to_jsonable_python(given))
        )

    db, shop, client = await make(p, Database), await make(p, Shop), await p.use(http_client)
    password = secrets.token_urlsafe(12)
    known = await act("auth.find_superuser", username=USER)
    if known is None:
        known = await act("auth.create_superuser", username=USER, password=password)
    else:
        await act("auth.reset_password", username=USER, password=password)
    caller = Caller(known.id, is_superuser=True, origin=Origin("127.0.0.1"))
    is_new, key = not (await act("auth.list_roles")).items, await history.client_key(act)
    where = (await p.use(server)).parameters

    async def run(stop: asyncio.Event) -> None:
        _say(p, where, password)
        if is_new:
            await history.write(db, act, shop)
        sys.stdout.write("  An hour of history is there.\n\n" if is_new else "")
        sys.stdout.flush()
        await Load(db, shop, client, _url(p)).run(stop, key)

    return run


def _url(p: "Process") -> str:
    return p.labels["http"].rpartition(" ")[2]


def _say(p: "Process", where: "Parameters", password: str) -> None:
    variables = {"HOST": where["host"], "USER": where["user"], "DB": where["dbname"]}
    lines = {
        "Console": f"{_url(p)}/console",
        "Sign in": f"{USER} / {password}",
        "Reference": f"{_url(p)}/docs",
        "Commands": f"export {' '.join(f'POSTGRES_{name}={value}' for name, value in variables.items())}",
        "Data": f"{p.data}, nothing else",
        "Stop": f"Ctrl-C; {NAME} demo goes on from here, {NAME} demo --fresh begins anew",
    }
    text = "".join(f"  {title:<11} {value}\n" for title, value in lines.items())
    sys.stdout.write(f"\n  {NAME} {VERSION} demo\n\n{text}\n")
    sys.stdout.flush()
