"""`app backup`."""

import typer

from app.kernel.cli import group

_app = group("Take, check and restore backups of the database.")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    """Return the group. Each file adds its commands."""
    from app.commands.backup import (
        archive_wal,
        create,
        drill,
        exporting,
        listing,
        prune,
        record,
        restore,
        status,
        verify,
    )

    for file in (archive_wal, create, listing, prune, restore, status, verify, drill, record, exporting):
        file.add(_app)
    return _app
