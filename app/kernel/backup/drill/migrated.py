"""Check of the schema: its migrations are known to this release and unchanged, and the pending ones can be applied."""

from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from app.kernel.backup.drill import Found
from app.kernel.db.migrations.migrator import Migrator
from app.kernel.db.migrations.steps import MigrationFailed
from app.kernel.db.server import Server


def migrations(where: str, files: Path, expected: str) -> Found:
    """Compare what was applied with the files of this release, then apply what is pending, to the copy.

    `expected` is the newest migration at the time of the backup. Changes the database.
    """
    parameters = {"application_name": "drill", **{key: str(value) for key, value in conninfo_to_dict(where).items()}}
    migrator = Migrator(Server("the restored server", parameters), files)
    found = migrator.status()
    applied = [status for status in found if status.state != "pending"]
    if not applied:
        return Found(problems=("no migration has been applied: the database is not one of this application",))
    problems = [f"{s.id} was applied in another form" for s in found if s.state == "edited"]
    problems += [f"{s.id} is unknown to this release" for s in found if s.state == "unknown"]
    if expected and expected not in {status.id for status in applied}:
        problems.append(f"{expected} had been applied when the backup was taken, and is missing")
    if problems:
        return Found(problems=tuple(problems))
    try:
        made = migrator.up(lambda _: None)
    except MigrationFailed as error:
        return Found(problems=(f"a pending migration cannot be applied: {error}",))
    return Found(f"{len(applied)} are applied" + (f", and {len(made)} pending ones could be" if made else ""))
