"""`app health`, for container health checks."""

from collections.abc import Iterable
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

import typer

from app import ROOT
from app.kernel.cli import Json, print_json, single, whole
from app.kernel.config import HttpServerSettings, OperationsSettings
from app.kernel.errors import Unavailable
from app.kernel.product import NAME
from app.kernel.running import Running, ask, reachable, running, url_of
from app.processes import load_settings

_TIMEOUT_S = 3
_LOOK = f"{NAME} doctor --only ports --only processes"


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
    found = [] if port else running(ROOT)
    asked = [(process, ask(process.url, path, _TIMEOUT_S)) for process in found] or [_configured(port, path)]
    answers = [(process, *answer) for process, answer in asked if answer is not None]
    if as_json:
        print_json({"items": [_item(*each) for each in answers]})
    else:
        for each in answers:
            typer.echo(_line(*each))
    if silent := [_where(process) for process, answer in asked if answer is None]:
        raise Unavailable(f"no answer to {path} from {', '.join(silent)}", hint=_LOOK)
    raise typer.Exit(0 if all(status == 200 for _, status, _ in answers) else 1)


def _configured(port: int | None, path: str) -> tuple[Running, tuple[int, dict[str, Any]]]:
    """Return the first answer from where the settings say that a process listens, without its name.

    Raises Unavailable.
    """
    settings = load_settings(only=(HttpServerSettings, OperationsSettings))
    api, workers = settings[HttpServerSettings], settings[OperationsSettings]
    places = dict.fromkeys((s.host, port or s.port) for s in (api, workers))
    for host, candidate in places:
        process = Running("", url_of(host, candidate))
        if (answer := ask(process.url, path, _TIMEOUT_S)) is not None:
            return process, answer
    asked = [f"{reachable(host)}, port {candidate}" for host, candidate in places]
    raise Unavailable(f"nothing answers {path} on {' or '.join(asked)}", hint=_LOOK)


def _item(process: Running, status: int, answer: dict[str, Any]) -> dict[str, Any]:
    known = {"process": process.name} if process.name else {}
    return {"port": urlsplit(process.url).port, "status_code": status, **known, **answer}


def _line(process: Running, status: int, answer: dict[str, Any]) -> str:
    missing = ", ".join(f"{name}: {reason}" for name, reason in _missing(answer))
    text = f"{_where(process)}: {answer.get('status', status)}" + (f" ({missing})" if missing else "")
    return "".join(c if c.isprintable() else "?" for c in text)  # anybody may have answered


def _missing(answer: dict[str, Any]) -> Iterable[tuple[str, object]]:
    found = answer.get("missing")
    return cast("dict[str, object]", found).items() if isinstance(found, dict) else ()


def _where(process: Running) -> str:
    return f"{process.name} on port {urlsplit(process.url).port}".removeprefix(" on ")


typer_app = single(health)
