"""`app capacity`: what a load needs, by constants that were measured."""

import json
import re

import pytest

from app.kernel import sizing
from app.kernel.config import KeepSettings, PostgresSettings, QueueSettings, load
from app.kernel.sizing import Constants, Load, Retained, cpu_s, plan
from app.processes import sections
from tests.support.project import ROOT, Project

DAY_S = 86400.0
ONES = Constants(*(1.0 for _ in range(14)))


@pytest.fixture(scope="module")
def settings() -> dict:
    found = load(ROOT, sections(), {"APP_ENV": "test"})
    return {"postgres": found[PostgresSettings], "queue": found[QueueSettings], "keep": found[KeepSettings]}


def needs(settings: dict, load: Load, days: float | None = None, most: int = 100) -> dict[str, sizing.Need]:
    kept = Retained.of(settings["keep"], days)
    return {need.what: need for need in plan(load, kept, settings["postgres"], settings["queue"], most)}


def test_every_constant_was_measured() -> None:
    for name in set(Constants.__slots__) - {"request_postgres_s"}:  # requests are answered from memory
        assert getattr(sizing.MEASURED, name) > 0, f"python -m benchmarks.capacity prints {name}"


def test_cpu_is_that_of_each_unit_and_a_subscriber_is_a_job_more() -> None:
    assert cpu_s(Load(2, 3, 5, 0, 0, 0, 0), ONES) == (2, 3, 2 + 3 + 5)
    assert cpu_s(Load(2, 3, 5, 4, 0, 0, 0), ONES) == (2, 3 + 20, 2 + 3 + 20 + 5)


def test_nothing_needs_two_of_each_and_more_load_needs_no_less_of_anything(settings: dict) -> None:
    least = needs(settings, Load(0, 0, 0, 0, 0, 0, 0))
    assert [least[name].value for name in ("API workers", "consumer workers", "cron managers")] == [2, 2, 2]
    assert least["storage in all"].value == least["WAL"].value == 0
    before = least
    for times in (1, 10, 100, 1000):
        more = needs(settings, Load(10 * times, 10 * times, 10 * times, 2, 1000 * times, times, 0.1))
        assert all(more[name].value >= before[name].value for name in before)
        before = more
    assert not before["connections"].fits
    assert least["connections"].fits


def test_long_jobs_need_consumers_for_their_number_at_once(settings: dict) -> None:
    assert needs(settings, Load(0, 100, 0, 0, 0, 0, 10))["consumer workers"].value == 1000 / 20


def test_storage_is_rate_times_retention_times_bytes(settings: dict) -> None:
    found = needs(settings, Load(0, 10, 0, 0, 0, 0, 0), days=3)
    assert found["storage: finished jobs"].value == 10 * 3 * DAY_S * sizing.MEASURED.job_bytes / 1e9


def test_the_command_shows_it_and_says_what_does_not_fit(cli: Project) -> None:
    done = cli.app("capacity", "--requests", "1000", "--sessions", "1000000", "--max-connections", "500")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^API workers +\d", done.stdout, re.MULTILINE)
    done = cli.app("capacity", "--requests", "100000", "--json")
    assert done.returncode == 1
    assert "PgBouncer" in done.stderr
    assert {item["what"] for item in json.loads(done.stdout)["items"]} >= {"API workers", "connections", "WAL"}


def test_the_guide_has_the_figures_that_the_command_computes_with() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    for name, unit in (
        ("request_s", 1e6),
        ("job_s", 1e6),
        ("job_postgres_s", 1e6),
        ("job_bytes", 1),
        ("event_bytes", 1),
    ):
        assert f"| `{name}` | {getattr(sizing.MEASURED, name) * unit:.0f} " in text, name
