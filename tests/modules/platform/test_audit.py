"""The audit trail as people read it: filters, names, CSV."""

import csv as readers
import io
import json
import random
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app.kernel import csv
from app.kernel.actions.columns import Column
from app.kernel.actions.compose import operations
from app.kernel.audit import EntryFilters
from app.kernel.config import load
from app.kernel.errors import Invalid
from app.kernel.identifiers import uuid7
from app.modules.platform import audit
from app.modules.platform.audit import AuditTrail, EntriesWanted, ListedEntry
from app.processes import new_process, sections
from tests.kernel.queue.conftest import Bench, bench  # noqa: F401 - a fixture
from tests.modules.platform.conftest import Acting
from tests.support.project import ROOT, Project

NOW = datetime.now(UTC)
ANN, BOB = uuid7(), uuid7()
TRACES = ("a" * 32, "b" * 32)


@dataclass
class Trail:
    """The actions on the audit trail, and its table."""

    acts: Acting
    bench: Bench

    async def all(self, **filters: Any) -> list[ListedEntry]:
        found: list[ListedEntry] = []
        cursor = None
        while True:
            page = await self.acts.list(EntriesWanted(**filters, limit=100, cursor=cursor))
            found += page.items
            if (cursor := page.next_cursor) is None:
                return found

    async def csv(self, **filters: Any) -> str:
        exported = await self.acts.export(EntryFilters(**filters))
        assert re.fullmatch(r"audit-[0-9TZ-]+\.csv", exported.name)
        return b"".join([part async for part in exported.content]).decode()

    async def add(self, at: datetime, **columns: Any) -> None:
        """Add an entry, whose id was made by a host whose clock differs."""
        skew = timedelta(minutes=random.Random(at.timestamp()).randint(-59, 59))
        made = int((at + skew).timestamp() * 1000) << 80 | uuid7().int % 2**80
        given = {"id": UUID(int=made), "at": at, "outcome": "done", **columns}
        names, places = ", ".join(given), ", ".join(f"%({name})s" for name in given)
        await self.bench.db.run(f"INSERT INTO kernel.audit ({names}) VALUES ({places})", given)


@pytest.fixture
async def trail(bench: Bench) -> AsyncIterator[Trail]:  # noqa: F811
    settings = load(ROOT, sections(), {"APP_ENV": "test", **bench.test.env})
    async with new_process("test", settings).opened() as p:
        yield Trail(Acting(await operations(p, [AuditTrail])), bench)


async def test_filters_select_what_a_model_selects_and_names_are_shown(trail: Trail) -> None:
    await trail.bench.db.run(
        "INSERT INTO auth.actors (id, type, username, username_key) VALUES (%s, 'user', 'ann', 'ann')", (ANN,)
    )
    chance = random.Random(14)
    for number in range(150):
        await trail.add(
            NOW - timedelta(minutes=10 * number),
            action=chance.choice(["auth.login", "auth.create_role"]),
            outcome=chance.choice(["done", "done", "INVALID_CREDENTIALS", "PERMISSION_DENIED"]),
            actor_id=chance.choice([ANN, BOB, None]),
            target=chance.choice([str(ANN), str(BOB), "default", None]),
            address=chance.choice(["10.0.0.1", "os:ann@host"]),
            user_agent="curl",
            trace_id=chance.choice(TRACES),
            request_id="r",
        )
    everything = await trail.all()
    assert len(everything) == 150
    assert {(e.actor_id, e.actor_name) for e in everything} == {(ANN, "ann"), (BOB, ""), (None, "")}
    named = {(e.target, e.target_name) for e in everything}
    assert named == {(str(ANN), "ann"), (str(BOB), ""), ("default", ""), (None, "")}
    choices: dict[str, list[Any]] = {
        "actor_id": [ANN, BOB],
        "action": ["auth.login", "auth.create_role"],
        "target": [str(ANN), "default"],
        "outcome": ["done", "INVALID_CREDENTIALS", "NO_SUCH"],
        "address": ["10.0.0.1", "os:ann@host"],
        "trace_id": [*TRACES],
        "from_": [NOW - timedelta(hours=8), NOW - timedelta(minutes=30), NOW + timedelta(days=1)],
        "to": [NOW, NOW - timedelta(hours=8), NOW - timedelta(minutes=30), datetime(1, 1, 1, tzinfo=UTC)],
    }
    assert set(choices) == {item.name for item in fields(EntryFilters)}
    for _ in range(80):
        given = {name: chance.choice(choices[name]) for name in chance.sample(sorted(choices), chance.randint(1, 3))}
        equal = {name: value for name, value in given.items() if name not in ("from_", "to")}
        wanted = [
            entry
            for entry in everything
            if all(getattr(entry, name) == value for name, value in equal.items())
            and given.get("from_", entry.at) <= entry.at
            and ("to" not in given or entry.at < given["to"])
        ]
        assert await trail.all(**given) == wanted, given
    with pytest.raises(Invalid):
        await trail.acts.list(EntriesWanted(to=datetime(2026, 1, 1)))  # noqa: DTZ001 - what a client may send


async def test_csv_has_every_row_of_the_filter_on_every_way(
    trail: Trail, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = '=cmd|"/c calc"!A1'
    for number in range(45):
        await trail.add(
            NOW - timedelta(minutes=number),
            action="auth.login",
            target=evil if number % 2 else "é, \n;",
            address="10.0.0.1",
            user_agent="@SUM(1)" if number % 3 else "curl",
            details=json.dumps({"name": "a;=1"}),
            outcome="done" if number else "INVALID_CREDENTIALS",
        )
    monkeypatch.setattr(audit, "_AT_ONCE", 10)
    text = await trail.csv(outcome="done")
    heading, *rows = readers.reader(io.StringIO(text, newline=""))
    assert heading == [column.heading for column in ListedEntry.columns]
    entries = await trail.all(outcome="done")
    at, target = heading.index("at"), heading.index("target")
    assert [datetime.fromisoformat(row[at]) for row in rows] == [entry.at for entry in entries]
    assert [row[target] for row in rows] == [f"'{evil}" if e.target == evil else e.target for e in entries]
    printed = project.app("audit", "list", "--outcome", "done", "--csv")
    assert printed.returncode == 0, printed.stderr
    assert list(readers.reader(io.StringIO(printed.stdout))) == list(readers.reader(io.StringIO(text)))
    shown = project.app("audit", "list", "--outcome", "INVALID_CREDENTIALS")
    assert "10.0.0.1" in shown.stdout
    assert project.app("audit", "list", "--csv", "--json").returncode == 2
    page = project.app("audit", "list", "--csv", "--limit", "7")
    assert (len(list(readers.reader(io.StringIO(page.stdout)))), "--cursor" in page.stderr) == (8, True)
    monkeypatch.setattr(csv, "MOST_ROWS", 44)
    assert len(await trail.csv(outcome="done")) == len(text)
    with pytest.raises(Invalid, match="more than 44 entries match"):
        await trail.csv()


@dataclass
class Cell:
    """A row with one value."""

    value: Any


def test_no_cell_begins_with_what_a_spreadsheet_takes_for_a_formula() -> None:
    chance, signs = random.Random(3), "=+-@\t\r\n;,|\"' a1＝＋－＠"  # noqa: RUF001 - full-width signs count, too
    column = (Column("value"),)
    for _ in range(20_000):
        given = "".join(chance.choices(signs, k=chance.randint(1, 8)))
        written = csv.lines(column, [Cell(given)])
        ((cell,),) = readers.reader(io.StringIO(written, newline=""))
        for separator in ",;|\t":
            for part in re.split(r"[\r\n]", cell):
                for found in part.split(separator):
                    assert not re.match(r"\s*[=+\-@＝＋－＠]", found), (given, cell)  # noqa: RUF001
        assert cell.replace("'", "") == given.replace("'", "")
    plain = {None: "", 0: "0", -5: "-5", True: "true", "abc": "abc", "a-b": "a-b", NOW: NOW.isoformat()[:-6] + "Z"}
    for value, expected in plain.items():
        assert csv.lines(column, [Cell(value)]) == f'"{expected}"\r\n'
    assert csv.lines(column, [Cell(["=1", "x"])]) == '"\'=1 x"\r\n'
