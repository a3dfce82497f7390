"""What is recorded of a run, whatever ended it."""

import pytest

from app.kernel.backup.runs import recorded
from app.kernel.telemetry import redact
from tests.conftest import TestDatabase


def test_what_ended_a_run_is_recorded_without_secrets_and_whatever_its_characters(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redact, "_known", ["the key of backups"])
    said = "caf\udce9\0: the key of backups, postgresql://app:hidden@db/app, password=hidden"

    def drill() -> None:
        with recorded(database.conninfo, "drill", "builtin") as outcome:
            outcome.details = {"checks": [{"name": "login", "problems": (said,)}]}
            raise OSError(said)

    with pytest.raises(OSError, match="caf"):
        drill()
    [(state, problem, details)] = database.all("SELECT state, problem, details FROM kernel.backup_runs")
    assert (state, problem) == ("failed", "caf?: ***, postgresql://***@db/app, password=***")
    assert details == {"checks": [{"name": "login", "problems": [problem]}]}
