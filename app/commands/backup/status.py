"""`app backup status`."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, LiteralString

import typer

from app.commands.backup.listing import Listed, listed
from app.commands.backup.running import engine_for, in_thread
from app.commands.once import run_once
from app.kernel.cli import Json, print_json
from app.kernel.product import NAME
from app.kernel.text import exact, lasting, plural, size_text

if TYPE_CHECKING:
    from app.kernel.backup.engine import Wal
    from app.kernel.backup.watching import BackupRun, BackupState, StoredWal
    from app.kernel.process import Process

_SCHEDULES: LiteralString = """
    SELECT name, next_fire_at, paused_at IS NOT NULL FROM kernel.schedules
    WHERE name LIKE 'platform.backup%%' ORDER BY next_fire_at
"""


@dataclass(frozen=True, slots=True)
class _Target:
    """What the target has. `problem` says why that could not be found out."""

    label: str = ""
    problem: str = ""
    cluster: str = ""
    backups: tuple[Listed, ...] = ()
    others: tuple[Listed, ...] = ()
    """Of other clusters."""
    used_bytes: int | None = None
    wal: "Wal | None" = None
    missing: tuple[str, ...] = ()
    """What the database has recorded, and is not there."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    """What the database has recorded. `problem` says why that could not be found out."""

    problem: str = ""
    attention: tuple[str, ...] = ()
    state: "BackupState | None" = None
    schedules: tuple[tuple[str, datetime, bool], ...] = ()


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(status)


def status(as_json: Json = False) -> None:
    """Show the newest backup, how far WAL is stored, the last drill, what comes next, and what needs attention.

    Works without the database, and without the target, and says which is missing. Exit status: 0 or 1.

    \b
    Examples:
      app backup status
      app backup status --json
    """
    target, recorded = run_once("backup status", _look)
    found = _summary(target, recorded)
    if as_json:
        print_json(found)
    else:
        _print(found)
    sys.stdout.flush()
    raise typer.Exit(1 if found["attention"] else 0)


async def _look(p: "Process") -> tuple[_Target, _Recorded]:
    recorded = await _in_database()
    return await in_thread(lambda _: _on_target(p, recorded.state)), recorded


def _on_target(p: "Process", state: "BackupState | None") -> _Target:
    """Return what the target has of this cluster; if that is not known, of the one with the newest backup."""
    from app.kernel.backup.engine import unstored
    from app.kernel.config import Misconfigured
    from app.kernel.errors import Refusal

    try:
        engine = engine_for(p)
        found = listed(engine)
        whole = [each.cluster for each in found if each.state == "whole"]
        cluster = state.cluster if state else whole[-1] if whole else ""
        own = tuple(each for each in found if each.cluster in ("", cluster))
        others = tuple(each for each in found if each not in own)
        wal = engine.wal(cluster) if whole else None
        ids = {each.id for each in found}
        lost = [text for text, _ in unstored(engine, ids, state.good("backup"), state.wal)] if state else []
        return _Target(engine.label, "", cluster, own, others, engine.used_bytes(), wal, tuple(lost))
    except (Refusal, Misconfigured) as error:
        return _Target(problem=" ".join(str(error).split()))


async def _in_database() -> _Recorded:
    from app.kernel.backup.watching import look, problems
    from app.kernel.config import BackupSettings
    from app.kernel.doctor import NotChecked
    from app.processes import deployment

    examined = deployment()
    try:
        await examined.fetch()
        state = await look(examined.all)
        schedules = await examined.all(_SCHEDULES)
    except NotChecked as error:
        return _Recorded(problem=str(error))
    finally:
        await examined.close()
    settings, is_published = examined[BackupSettings], examined.is_published
    found = [each.text for each in problems(state, settings, is_published=is_published)]
    if not is_published and not schedules and state.is_expected(settings):
        found.append(f"no schedule takes backups: start {NAME} run-cron-manager")
    return _Recorded("", tuple(found), state, tuple((row[0], row[1], row[2]) for row in schedules))


def _summary(target: _Target, recorded: _Recorded) -> dict[str, Any]:
    """Return what --json prints."""
    from app.kernel.backup.engine import newest

    whole, state = [each for each in target.backups if each.state == "whole"], recorded.state
    attention = [
        *([f"the target could not be asked: {target.problem}"] if target.problem else []),
        *([f"the database could not be asked: {recorded.problem}"] if recorded.problem else []),
        *recorded.attention,
        *target.missing,
        *(f"{each.id} is damaged: {each.problem}" for each in target.backups if each.state == "damaged"),
        *([_none(target)] if not target.problem and not whole else []),
    ]
    run = state.good("backup") if state else None
    return {
        "at": datetime.now(UTC),
        "target": target.label or None,
        "cluster": target.cluster or None,
        "target_problem": target.problem or None,
        "database_problem": recorded.problem or None,
        "attention": list(dict.fromkeys(attention)),
        "newest": _newest(newest(whole)) if whole else _of_run(run) if run else None,
        "backups": len(whole),
        "backups_of_other_clusters": len(target.others),
        "used_bytes": target.used_bytes,
        "wal": _wal(target.wal, state.wal if state else None),
        "drill": _drill(state.good("drill")) if state and state.good("drill") else None,
        "schedules": [{"name": name, "next_at": at, "is_paused": paused} for name, at, paused in recorded.schedules],
    }


def _none(target: _Target) -> str:
    of = " of this cluster" if target.others else ""
    return f"there is no whole backup{of} on the target"


def _newest(backup: Listed) -> dict[str, Any]:
    return {name: getattr(backup, name) for name in ("id", "finished_at", "age_s", "size_bytes", "stored_bytes")}


def _of_run(run: "BackupRun") -> dict[str, Any]:
    age = max(0, int((datetime.now(UTC) - run.finished_at).total_seconds())) if run.finished_at else None
    return {"id": run.backup_id, "finished_at": run.finished_at, "age_s": age, "size_bytes": run.size_bytes,
            "stored_bytes": run.stored_bytes}  # fmt: skip


def _wal(on_target: "Wal | None", recorded: "StoredWal | None") -> dict[str, Any] | None:
    found = recorded or on_target
    if found is None:
        return None
    return {
        "timeline": found.timeline,
        "lsn": found.lsn,
        "stored_at": found.stored_at,
        "lag_s": round(recorded.lag_s) if recorded else None,
    }


def _drill(run: "BackupRun | None") -> dict[str, Any] | None:
    return run and {"finished_at": run.finished_at, "backup": run.backup_id, "rto_s": run.rto_s, "rpo_s": run.rpo_s}


def _print(found: Mapping[str, Any]) -> None:
    from app.kernel.cli.tables import print_table

    newest, wal, drill = found["newest"], found["wal"], found["drill"]
    rows: list[tuple[str, object]] = [("needs attention", each) for each in found["attention"]]
    rows.append(("target", found["target"] or "unknown"))
    if newest:
        about = f"{newest['id']}, {lasting(newest['age_s'])} ago, {size_text(newest['size_bytes'])}"
        rows.append(("newest backup", f"{about}, stored as {size_text(newest['stored_bytes'])}"))
    else:
        rows.append(("newest backup", _absent("none", found, "target_problem", "database_problem")))
    if others := found["backups_of_other_clusters"]:
        rows.append(("cluster", f"{found['cluster']}; {plural(others, 'backup')} of other clusters"))
    if found["used_bytes"] is not None:
        rows.append(("stored", f"{plural(found['backups'], 'backup')}, {size_text(found['used_bytes'])} with WAL"))
    if wal:
        lag = "" if wal["lag_s"] is None else f", {wal['lag_s']} s behind"
        position = f"{wal['lsn']} of timeline {wal['timeline']}, " if wal["timeline"] else ""  # a provider has none
        rows.append(("WAL", f"up to {position}{exact(wal['stored_at'])}{lag}"))
    else:
        rows.append(("WAL", _absent("not stored", found, "target_problem", "database_problem")))
    if drill:
        took = f"recovery took {lasting(drill['rto_s'])}, window of loss {lasting(drill['rpo_s'])}"
        rows.append(("last drill", f"{exact(drill['finished_at'])}: {took}"))
    else:
        rows.append(("last drill", _absent("none", found, "database_problem")))
    rows += [(each["name"], "paused" if each["is_paused"] else exact(each["next_at"])) for each in found["schedules"]]
    print_table(("", ""), rows)


def _absent(text: str, found: Mapping[str, Any], *problems: str) -> str:
    """Return the text for what is not there, unless all that could tell are unavailable."""
    return "unknown" if all(found[problem] for problem in problems) else text
