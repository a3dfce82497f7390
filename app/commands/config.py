"""`app config`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from app.kernel.cli import Json, group, print_json
from app.kernel.config import environment_name
from app.kernel.errors import NotFound
from app.kernel.product import NAME
from app.kernel.text import suggestion
from app.processes import load_settings, sections

if TYPE_CHECKING:
    from collections.abc import Iterable

    from app.kernel.config import Problem

_app = group("Show, explain and validate settings.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


def _warn(problems: "Iterable[Problem]") -> None:
    sys.stderr.writelines(f"warning: {problem}\n" for problem in problems)


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
def explain(key: Annotated[str, typer.Argument(help="Setting, such as postgres.host.")], as_json: Json = False) -> None:
    """Explain a setting: its meaning, value, source and environment variable.

    \b
    Examples:
      app config explain postgres.host
    """
    values = {v.key: v for v in load_settings().values()}
    value = values.get(key)
    if value is None:
        raise NotFound(f"there is no setting {key}{suggestion(key, values) or f'; see {NAME} config show'}")
    variable = environment_name(key)
    facts: dict[str, object] = {
        "key": key,
        "meaning": value.description,
        "value": value.value,
        "source": value.source,
        "environment": variable,
        "environment_file": f"{variable}_FILE",
    }
    if as_json:
        print_json(facts)
    else:
        from app.kernel.cli.tables import print_table

        print_table(("", ""), (facts | {"value": value.text}).items())


@_app.command()
def validate(as_json: Json = False) -> None:
    """Check the settings of the current APP_ENV and report all problems at once. Fetches secrets from their stores.

    A missing secret is a warning, because only some processes use it; those refuse to start without it.

    \b
    Examples:
      app config validate
      APP_ENV=production app config validate
    """
    settings = load_settings()
    settings.fetch_all()
    _warn((*settings.misspelt, *settings.warnings, *settings.withheld.values()))
    if as_json:
        print_json({"environment": settings.environment, "valid": True, "missing": sorted(settings.withheld)})
    else:
        typer.echo(f"the settings for APP_ENV={settings.environment} are valid ({len(sections())} sections)")
