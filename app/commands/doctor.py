"""`app doctor`."""

import asyncio
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.composition import checks
from app.kernel.cli import Json, NoInput, can_ask, confirm, print_json, single, starting
from app.kernel.errors import NotFound
from app.kernel.product import NAME
from app.kernel.text import suggestion
from app.processes import deployment

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.kernel.doctor import Check, Finding, Result
    from app.kernel.doctor.deployment import Deployment


def doctor(
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help="Run only this check, or those of this group; repeatable.",
            autocompletion=starting(lambda: dict.fromkeys(name for check in checks() for name in check[:2])),
        ),
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Do what is safe to do, after asking.")] = False,
    list_names: Annotated[bool, typer.Option("--list", help="List the checks without running them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation of --fix.")] = False,
    no_input: NoInput = False,
    as_json: Json = False,
) -> None:
    """Check settings, machine, database, schema and work, and say what to do.

    It starts and migrates nothing. Exit status: 0 (ok, or only warnings) or 1 (something fails).

    \b
    Examples:
      app doctor
      app doctor --only migrations --only partitions
      app doctor --only backup
      app doctor --fix
      app doctor --json
    """
    from app.kernel.telemetry.logs import configure_command
    from app.kernel.telemetry.redact import remember

    configure_command("doctor")
    chosen = _chosen(only or [])
    if list_names:
        _show_names(chosen, as_json)
        return
    examined = deployment()
    if examined.error is not None:  # it is why other checks are skipped, which is no success
        chosen = [check for check in checks() if check in chosen or check.name == "settings"]
    remember(examined.settings.secrets())
    runner = asyncio.Runner()
    approve = partial(_approve, yes=yes, may_ask=not no_input and not as_json) if fix else None
    results = runner.run(_run(examined, chosen, approve))
    if as_json:
        from app.kernel.doctor.show import as_dict

        print_json(as_dict(examined, results))
    else:
        from app.kernel.doctor.show import print_results

        print_results(examined, results)
    sys.stdout.flush()
    status = 1 if any(result.status == "fail" for result in results) else 0
    if any(result.is_late for result in results):
        os._exit(status)  # a thread that hangs, such as in the resolver, would keep the process
    runner.close()
    raise typer.Exit(status)


def _approve(found: "list[Finding]", *, yes: bool, may_ask: bool) -> None:
    """Print the repairs, and ask. Raises BadParameter without a terminal, Refusal without confirmation."""
    from app.kernel.telemetry.redact import redacted

    for finding in found:
        sys.stderr.write(f"{redacted(finding.problem)}\n  fix: {finding.fix}\n")
    if yes:
        return
    if not may_ask or not can_ask():
        raise typer.BadParameter("no terminal to ask on; confirm with --yes", param_hint="--yes")
    confirm(f"Do {'this' if len(found) == 1 else f'these {len(found)}'}?")


async def _run(
    examined: "Deployment", chosen: "list[Check]", approve: "Callable[[list[Finding]], None] | None"
) -> "list[Result]":
    from app.kernel.doctor.run import run_checks

    try:
        results = await run_checks(examined, chosen)
        repairable = [f for result in results for f in result.findings if f.repair is not None]
        if approve is None or not repairable:
            return results
        approve(repairable)
        await _repair(repairable)
        await examined.close()
        return await run_checks(deployment(), chosen)
    finally:
        await examined.close()


async def _repair(found: "list[Finding]") -> None:
    """Repair, one after the other; a repair that fails is reported, and the others are done."""
    from app.kernel.telemetry.redact import redacted
    from app.kernel.text import error_text

    for finding in found:
        assert finding.repair is not None
        try:
            async with asyncio.timeout(120):
                await finding.repair()
        except Exception as error:  # noqa: BLE001 - of any repair
            sys.stderr.write(f"not fixed: {redacted(error_text(error))}\n")
        else:
            sys.stderr.write(f"fixed: {redacted(finding.problem)}\n")


def _chosen(names: list[str]) -> "list[Check]":
    """Return the named checks, those of named groups, or all. Raises NotFound for an unknown name."""
    found = checks()
    known, groups = {check.name for check in found}, {check.group for check in found}
    for name in names:
        if name not in known | groups:
            raise NotFound(f"there is no check {name}{suggestion(name, known | groups)}", hint=f"{NAME} doctor --list")
    return [check for check in found if not names or check.name in names or check.group in {*names} - known]


def _show_names(chosen: "list[Check]", as_json: bool) -> None:
    if as_json:
        print_json({"items": [{"name": c.name, "group": c.group, "summary": c.summary} for c in chosen]})
    else:
        from app.kernel.cli.tables import print_table

        rows: list[tuple[Any, ...]] = [(c.name, c.group, c.summary) for c in chosen]
        print_table(("check", "group", "what it checks"), rows)


typer_app = single(doctor)
