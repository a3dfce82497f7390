"""What every SQLSTATE means, as a real server raises it."""

from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from app.kernel.db.refusals import refusal_of
from app.kernel.errors import Invalid, Refusal, Unavailable
from tests.conftest import TestDatabase

CODES = sorted(code for code in psycopg.errors._sqlcodes if len(code) == 5)
OUTAGES = {"08", "25006", "25P03", "25P04", "28", "3D", "40", "53", "55006", "55P03", "57", "58"}
INVALID = {"54000", "54001"} | {
    f"22{rest}"
    for rest in "001 003 007 008 009 015 018 019 01B 021 023 025 030 032 P02 P03 P05".split()  # noqa: SIM905
}


def expected(code: str) -> type[Refusal] | None:
    if code in INVALID:
        return Invalid
    return Unavailable if {code, code[:2]} & OUTAGES else None


def raised(connection: psycopg.Connection[Any], code: str) -> psycopg.Error | None:
    try:
        connection.execute(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{code}'; END $$")
    except psycopg.Error as error:
        return error
    return None


def test_every_sqlstate_is_an_outage_a_refusal_of_input_or_a_mistake_of_ours(database: TestDatabase) -> None:
    assert len(CODES) > 200
    found: dict[str, type[Refusal] | None] = {}
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        for code in CODES:
            if (error := raised(connection, code)) is not None:  # warnings are none
                assert error.sqlstate == code
                refusal = refusal_of(error)
                found[code] = next((kind for kind in (Unavailable, Invalid) if isinstance(refusal, kind)), None)
    assert found == {code: expected(code) for code in found}
    assert set(found.values()) == {None, Invalid, Unavailable}


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("INSERT INTO keys VALUES (%s)", ["".join(chr(33 + n * n * n % 5003) for n in range(4000))]),
        ("SELECT %s::text", ["a\0b"]),
        ("SELECT %s::text", ["\ud800"]),
        ("SELECT %s::jsonb", ['"\\u0000"']),
        ("SELECT %s::jsonb", ["[" * 100_000]),
        ("SELECT now() + %s * interval '1 second'", [1e15]),
        ("SELECT %s::int", [2**40]),
        ("SELECT %s::uuid", ["no uuid"]),
        ("SELECT now() AT TIME ZONE %s", ["Mars/Olympus"]),
        ("SELECT 'a' ~ %s", ["("]),
    ],
)
def test_what_a_client_can_send_and_postgresql_cannot_store_is_a_refusal(
    database: TestDatabase, sql: str, parameters: list[object]
) -> None:
    database.run("CREATE TABLE keys (key text PRIMARY KEY)")
    with pytest.raises((psycopg.Error, UnicodeEncodeError)) as refused:
        database.all(sql, *parameters)
    assert isinstance(refusal_of(refused.value), Invalid), refused.value


def test_a_full_queue_of_notifications_is_an_outage() -> None:
    class Full(psycopg.errors.ProgramLimitExceeded):  # the queue has 8 GB: too much to fill
        @property
        def diag(self) -> Any:
            return SimpleNamespace(source_function="PreCommit_Notify")

    refusal = refusal_of(Full("too many notifications in the NOTIFY queue"))
    assert isinstance(refusal, Unavailable)
    assert "pg_notification_queue_usage" in refusal.hint


@pytest.mark.parametrize("sql", ["SELECT 1 / 0", "SELECT nothing", "SELEC", "SELECT * FROM nowhere"])
def test_a_mistake_of_ours_is_no_refusal(database: TestDatabase, sql: str) -> None:
    with pytest.raises(psycopg.Error) as raised_error:
        database.all(sql)
    assert refusal_of(raised_error.value) is None


def test_a_connection_that_cannot_be_made_or_is_lost_is_an_outage(database: TestDatabase) -> None:
    with pytest.raises(psycopg.OperationalError) as nowhere:
        psycopg.connect("host=/nowhere dbname=app")
    with psycopg.connect(database.conninfo, autocommit=True) as lost:
        with pytest.raises(psycopg.OperationalError) as ended:
            lost.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(psycopg.OperationalError) as closed:
            lost.execute("SELECT 1")
    for error in (nowhere.value, ended.value, closed.value):
        assert isinstance(refusal_of(error), Unavailable)
