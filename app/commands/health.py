"""`app health`, for container health checks."""

import http.client
import json
from typing import Annotated, Any, cast

import typer

from app.kernel.cli import Json, print_json, whole
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
        bool, typer.Option("--ready", help="Check readiness (/ready) instead of liveness (/health).")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, 65535),
            metavar="NUMBER",
            help="Port of the process.",
            show_default="http_server.port, then operations.port",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the health of the process on this machine. Exit status: 0 (ok), 1 (not ready) or 69 (no answer).

    \b
    Examples:
      app health
      app health --ready --port 9000
    """
    settings = load_settings(uses_secrets=False)
    api, workers = settings[HttpServerSettings], settings[OperationsSettings]
    places = dict.fromkeys((_reachable(s.host), port or s.port) for s in (api, workers))
    path = "/ready" if ready else "/health"
    for host, candidate in places:
        if (found := _ask(host, candidate, path)) is None:
            continue
        status, answer = found
        if as_json:
            print_json({"port": candidate, "status_code": status, **answer})
        else:
            missing = ", ".join(f"{name}: {reason}" for name, reason in answer.get("missing", {}).items())
            typer.echo(f"port {candidate}: {answer.get('status', status)}" + (f" ({missing})" if missing else ""))
        raise typer.Exit(0 if status == 200 else 1)
    asked = [f"{host}, port {candidate}" for host, candidate in places]
    raise Unavailable(f"nothing answers {path} on {' or '.join(asked)}")


def _ask(host: str, port: int, path: str) -> tuple[int, dict[str, Any]] | None:
    """Return the status and the body of a response; None without a valid response."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return (response.status, cast("dict[str, Any]", answer)) if isinstance(answer, dict) else None


def _reachable(host: str) -> str:
    """Return the address to connect to for a listening address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
