"""`app health`: for container health checks."""

import http.client
import json
from typing import Annotated

import typer

from app.commands.console import Json, print_json
from app.kernel.config import HttpServerSettings, OperationsSettings
from app.kernel.errors import Unavailable
from app.processes import load_settings

_TIMEOUT_S = 3


def typer_app(name: str) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command(name)(health)
    return app


def health(
    ready: Annotated[
        bool, typer.Option("--ready", help="Ask whether it can accept work, not only whether it lives.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="Where to ask.", show_default="the API's port of the settings, then the workers'")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask the process on this machine whether it lives; the exit status is 0, 1 (not ready) or 69 (no answer).

    \b
    Examples:
      app health
      app health --ready --port 9000
    """
    settings = load_settings()
    ports = [port] if port else [settings[HttpServerSettings].port, settings[OperationsSettings].port]
    path = "/ready" if ready else "/health"
    for candidate in ports:
        connection = http.client.HTTPConnection("127.0.0.1", candidate, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, ValueError, http.client.HTTPException):
            continue
        finally:
            connection.close()
        if as_json:
            print_json({"port": candidate, "status_code": response.status, **answer})
        else:
            missing = ", ".join(f"{name}: {reason}" for name, reason in answer.get("missing", {}).items())
            typer.echo(
                f"port {candidate}: {answer.get('status', response.status)}" + (f" ({missing})" if missing else "")
            )
        raise typer.Exit(0 if response.status == 200 else 1)
    raise Unavailable(f"nothing answers {path} on 127.0.0.1, port {' or '.join(map(str, ports))}")
