"""`app errors`: what went wrong."""

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from app.commands.console import (
    Cursor,
    Json,
    Most,
    group,
    print_json,
    print_page,
    print_table,
    run_once,
    seconds,
    shown,
)

if TYPE_CHECKING:
    from app.kernel.pages import Page
    from app.kernel.process import Process
    from app.kernel.sentinel import StoredError
    from app.modules.platform.usecases.get_error import ErrorDetails
    from app.modules.platform.usecases.try_recipients import Tried

ErrorId = Annotated[UUID, typer.Argument(help="The id of the group.", show_default=False)]
OfState = Annotated[str | None, typer.Option("--state", help="open, resolved, muted or regressed.")]
OfKind = Annotated[str | None, typer.Option("--kind", help="request, job, schedule, service or outage.")]
For = Annotated[
    float,
    typer.Option(
        "--for", parser=seconds(least_s=1, most_days=365), metavar="DURATION", help="For how long, such as 7d."
    ),
]

_LONGEST = 80

_app = group("See, resolve and mute captured errors.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


@_app.command("list")
def list_errors(
    state: OfState = None, kind: OfKind = None, limit: Most = 20, cursor: Cursor = None, as_json: Json = False
) -> None:
    """List the groups of errors that were captured; those that appeared last come first.

    \b
    Examples:
      app errors list
      app errors list --state open --kind job --json
    """

    async def work(p: "Process") -> "Page[StoredError]":
        from pydantic import TypeAdapter, ValidationError

        from app.modules.platform import wiring
        from app.modules.platform.usecases.list_errors import ErrorsWanted

        try:
            wanted = TypeAdapter(ErrorsWanted).validate_python({"state": state, "kind": kind, "cursor": cursor})
        except ValidationError as error:
            raise typer.BadParameter(error.errors()[0]["msg"]) from None
        errors = await p.use(wiring.errors)
        return await errors.list(ErrorsWanted(wanted.state, wanted.kind, limit, cursor))

    def row(error: "StoredError") -> tuple[object, ...]:
        title = error.title if len(error.title) <= _LONGEST else error.title[: _LONGEST - 1] + "\u2026"
        return error.id, error.state, error.kind, error.count, shown(error.last_seen_at), title.replace("\n", " ")

    print_page(run_once("errors list", work), ("id", "state", "kind", "count", "last seen", "what"), row, as_json)


@_app.command()
def show(error_id: ErrorId, as_json: Json = False) -> None:
    """Show a group of errors: how often, since when, where, and what was going on the last times.

    \b
    Examples:
      app errors show 0190a1b2-c3d4-7e5f-8607-18293a4b5c6d
    """

    async def work(p: "Process") -> "ErrorDetails":
        from app.modules.platform import wiring
        from app.modules.platform.usecases.get_error import ErrorRef

        return await (await p.use(wiring.errors)).get(ErrorRef(error_id))

    found = run_once("errors show", work)
    if as_json:
        print_json(found)
        return
    error = found.error
    about: list[tuple[str, object]] = [
        ("what", error.title),
        ("where", error.culprit),
        ("kind", error.kind),
        ("state", f"{error.state} until {shown(error.muted_until)}" if error.muted_until else error.state),
        ("count", error.count),
        ("first seen", f"{shown(error.first_seen_at)} in {error.first_release}"),
        ("last seen", f"{shown(error.last_seen_at)} in {error.last_release}"),
        ("told", shown(error.notified_at)),
        ("processes", ", ".join(error.processes)),
    ]
    print_table(("", ""), about)
    for sample in found.samples:
        typer.echo(f"\n--- {sample.get('at', '')}")
        rest = {key: value for key, value in sample.items() if key not in ("at", "lines", "stack")}
        print_table(("", ""), list(rest.items()))
        print_table(("",), [(line,) for line in [*sample.get("lines", []), *str(sample.get("stack", "")).splitlines()]])


@_app.command()
def resolve(error_id: ErrorId, as_json: Json = False) -> None:
    """Close a group of errors. It opens again, as regressed, when there is one more.

    \b
    Examples:
      app errors resolve 0190a1b2-c3d4-7e5f-8607-18293a4b5c6d
    """

    async def work(p: "Process") -> None:
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.usecases.get_error import ErrorRef

        await (await p.use(wiring.errors)).resolve(Caller(), ErrorRef(error_id))

    run_once("errors resolve", work)
    if as_json:
        print_json({"id": error_id, "state": "resolved"})
    else:
        typer.echo(f"{error_id} is resolved")


@_app.command()
def mute(error_id: ErrorId, seconds_: For = 86400.0, as_json: Json = False) -> None:
    """Tell nobody of a group of errors for a while, a day unless said otherwise. It is counted all the same.

    \b
    Examples:
      app errors mute 0190a1b2-c3d4-7e5f-8607-18293a4b5c6d --for 7d
    """

    async def work(p: "Process") -> None:
        from app.kernel.operations import Caller
        from app.modules.platform import wiring
        from app.modules.platform.usecases.mute_error import ErrorToMute

        await (await p.use(wiring.errors)).mute(Caller(), ErrorToMute(error_id, seconds_))

    run_once("errors mute", work)
    if as_json:
        print_json({"id": error_id, "state": "muted"})
    else:
        typer.echo(f"{error_id} is muted")


@_app.command("notify-test")
def notify_test(as_json: Json = False) -> None:
    """Send a message to everybody who is told of errors (sentinel.notify_urls), and say how that went.

    \b
    Examples:
      app errors notify-test
    """

    async def work(p: "Process") -> "list[Tried]":
        from app.kernel.config import Misconfigured
        from app.kernel.errors import NotFound
        from app.modules.platform import wiring

        try:
            return await (await p.use(wiring.try_recipients))()
        except NotFound as error:
            raise Misconfigured(str(error)) from None

    tried = run_once("errors notify-test", work)
    if as_json:
        print_json({"items": tried})
    else:
        print_table(("recipient", "result"), [(one.recipient, one.problem or "accepted") for one in tried])
    if any(one.problem for one in tried):
        raise typer.Exit(1)
