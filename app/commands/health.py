"""`app health`, for container health checks."""

import http.client
import json
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple, cast
from urllib.parse import urlsplit

import typer

from app import ROOT
from app.kernel.cli import Json, print_json, single, whole
from app.kernel.config import HttpServerSettings, OperationsSettings
from app.kernel.errors import Unavailable
from app.kernel.running import connect, reachable, running
from app.processes import load_settings

_TIMEOUT_S = 3
_LONGEST = 1 << 20


class _Listener(NamedTuple):
    """A listener to ask, and the process that is known to have it."""

    url: str
    process: str = ""

    @property
    def port(self) -> int | None:
        """The port of the listener."""
        return urlsplit(self.url).port


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
            show_default="of the running processes, then http_server.port, then operations.port",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the health of the processes on this machine or in this container, wherever they listen.

    Exit status: 0 (all ok), 1 (one is not ready) or 69 (one does not answer, or there is none).

    \b
    Examples:
      app health
      app health --ready --port 9000
    """
    path = "/ready" if ready else "/health"
    found = [] if port else [_Listener(url, name) for name, url in running(ROOT, of_all=True)]
    asked = [(listener, _ask(listener, path)) for listener in found] or [_configured(port, path)]
    answers = [(listener, *answer) for listener, answer in asked if answer is not None]
    if as_json:
        print_json({"items": [_item(*each) for each in answers]})
    else:
        for each in answers:
            typer.echo(_line(*each))
    if silent := [f"{listener.process} on port {listener.port}" for listener, answer in asked if answer is None]:
        raise Unavailable(f"no answer to {path} from {', '.join(silent)}")
    raise typer.Exit(0 if all(status == 200 for _, status, _ in answers) else 1)


def _configured(port: int | None, path: str) -> tuple[_Listener, tuple[int, dict[str, Any]]]:
    """Return the first answer from where the settings say that a process listens. Raises Unavailable."""
    settings = load_settings(only=(HttpServerSettings, OperationsSettings))
    api, workers = settings[HttpServerSettings], settings[OperationsSettings]
    places = dict.fromkeys((s.host, port or s.port) for s in (api, workers))
    for host, candidate in places:
        listener = _Listener(f"http://{f'[{host}]' if ':' in host else host}:{candidate}")
        if (answer := _ask(listener, path)) is not None:
            return listener, answer
    asked = [f"{reachable(host)}, port {candidate}" for host, candidate in dict.fromkeys(places)]
    raise Unavailable(f"nothing answers {path} on {' or '.join(asked)}")


def _item(listener: _Listener, status: int, answer: dict[str, Any]) -> dict[str, Any]:
    known = {"process": listener.process} if listener.process else {}
    return {"port": listener.port, "status_code": status, **known, **answer}


def _line(listener: _Listener, status: int, answer: dict[str, Any]) -> str:
    missing = ", ".join(f"{name}: {reason}" for name, reason in _missing(answer))
    where = f"{listener.process} on port {listener.port}" if listener.process else f"port {listener.port}"
    text = f"{where}: {answer.get('status', status)}" + (f" ({missing})" if missing else "")
    return "".join(c if c.isprintable() else "?" for c in text)  # anybody may have answered


def _missing(answer: dict[str, Any]) -> Iterable[tuple[str, object]]:
    found = answer.get("missing")
    return cast("dict[str, object]", found).items() if isinstance(found, dict) else ()


def _ask(listener: _Listener, path: str) -> tuple[int, dict[str, Any]] | None:
    """Return the status and the body of a response; None without a valid response."""
    connection = connect(listener.url, _TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        answer = json.loads(response.read(_LONGEST))
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return (response.status, cast("dict[str, Any]", answer)) if isinstance(answer, dict) else None


typer_app = single(health)
