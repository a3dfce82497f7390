"""`app config`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from app import ROOT
from app.kernel.cli import Json, group, print_json, starting
from app.kernel.config import HttpServerSettings, load_valid, schema
from app.kernel.config.settings import NOWHERE
from app.kernel.errors import NotFound
from app.kernel.product import NAME
from app.kernel.text import suggestion
from app.processes import PROCESSES, check_process, load_settings, needed, sections

if TYPE_CHECKING:
    from collections.abc import Iterable

    from app.kernel.config import Problem

_app = group("Show, explain and validate settings.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


def _warn(problems: "Iterable[Problem]") -> None:
    sys.stderr.writelines(f"warning: {problem}\n" for problem in problems)


def _keys() -> list[str]:
    return [setting.key for kind in sections() for setting in schema(kind)]


@_app.command()
def show(as_json: Json = False) -> None:
    """Show all settings and their sources. Secrets are redacted.

    \b
    Examples:
      app config show
      APP_ENV=production app config show --json
    """
    settings = load_settings()
    _warn(settings.misspelt)
    if as_json:
        values = {v.key: {"value": v.value, "source": v.source} for v in settings.values()}
        print_json({"environment": settings.environment, "settings": values})
    else:
        from app.kernel.cli.tables import print_table

        print_table(("key", "value", "source"), [(v.key, v.text, v.source) for v in settings.values()])


@_app.command()
def explain(
    key: Annotated[str, typer.Argument(help="Setting, such as postgres.host.", autocompletion=starting(_keys))],
    as_json: Json = False,
) -> None:
    """Explain a setting: its meaning, value, source and environment variable, also when it is invalid.

    \b
    Examples:
      app config explain postgres.host
    """
    known = {setting.key: setting for kind in sections() for setting in schema(kind)}
    if key not in known:
        raise NotFound(f"there is no setting {key}{suggestion(key, known)}", hint=f"{NAME} config show")
    settings, error = load_valid(ROOT, sections())
    _warn(problem for problem in (error.problems if error else ()) if problem.key == key)
    value = next((value for value in settings.values() if value.key == key), None)  # None: its section is invalid
    setting = known[key]
    facts: dict[str, object] = {
        "key": key,
        "meaning": setting.description,
        "value": value.value if value else None,
        "source": settings.sources.get(key, NOWHERE),
        "environment": setting.variable,
        "environment_file": f"{setting.variable}_FILE",
    }
    if as_json:
        print_json(facts)
    else:
        from app.kernel.cli.tables import print_table

        print_table(("", ""), (facts | {"value": value.text if value else "(invalid)"}).items())


@_app.command()
def validate(
    process: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROCESS]",
            help="Process, such as run-cron-manager.",
            show_default="all",
            autocompletion=starting(lambda: PROCESSES),
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the settings that a process needs to start, or those of all processes. Reports all problems at once.

    Fetches secrets from their stores; connects to nothing else. Exit status: 78 when a setting, a secret or a
    certificate is missing or invalid, 69 when a store does not answer.

    \b
    Examples:
      app config validate
      app config validate run-cron-manager
      APP_ENV=production app config validate run-auth-http
    """
    if process is not None:
        check_process(process)
    settings = load_settings()
    _warn((*settings.misspelt, *settings.warnings))
    settings.demand(*(needed(process, settings) if process else settings.sections))
    if process is None or PROCESSES[process].listens == HttpServerSettings.section:
        from app.kernel.http.tls import tls

        tls(settings[HttpServerSettings])
    if as_json:
        print_json({"environment": settings.environment, "process": process, "valid": True})
        return
    whose = process or f"all processes ({len(sections())} sections)"
    typer.echo(f"the settings for APP_ENV={settings.environment} are valid for {whose}")
