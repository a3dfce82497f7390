"""Settings: what is refused, and how it is named."""

from collections.abc import Callable, Mapping

import pytest

from tests.kernel.config_folder import Folder


def remove_key(folder: Folder) -> None:
    text = (folder.path / "default.yaml").read_text()
    folder.write("default.yaml", text.replace("  pool_size: 10\n", ""))


def change(name: str, text: str) -> Callable[[Folder], None]:
    return lambda folder: folder.append(name, text)


WRONG: dict[str, tuple[Callable[[Folder], None], Mapping[str, str], tuple[str, str, str]]] = {
    "number": (
        change("test.yaml", "postgres:\n  port: many"),
        {},
        ("postgres.port", "settings/test.yaml", "expected a valid integer, unable to parse string as an integer"),
    ),
    "truth for a number": (
        change("test.yaml", "postgres:\n  port: true"),
        {},
        ("postgres.port", "settings/test.yaml", "expected a valid integer"),
    ),
    "number for text": (
        change("test.yaml", "postgres:\n  user: 5"),
        {},
        ("postgres.user", "settings/test.yaml", "expected a valid string, got 5"),
    ),
    "range": (lambda _: None, {"HTTP_SERVER_PORT": "65536"}, ("http_server.port", "HTTP_SERVER_PORT", "65535")),
    "choice": (
        lambda _: None,
        {"POSTGRES_SSL": "yes"},
        ("postgres.ssl", "POSTGRES_SSL", "expected 'disable', 'require' or 'verify-full', got 'yes'"),
    ),
    "truth": (lambda _: None, {"HTTP_SERVER_DEBUG": "maybe"}, ("http_server.debug", "HTTP_SERVER_DEBUG", "boolean")),
    "empty": (lambda _: None, {"POSTGRES_USER": ""}, ("postgres.user", "POSTGRES_USER", "a non-empty value")),
    "no names": (lambda _: None, {"QUEUE_NAMES": " ,"}, ("queue.names", "QUEUE_NAMES", "a non-empty value")),
    "duration": (
        lambda _: None,
        {"PROCESS_GRACE": "soon"},
        ("process.grace", "PROCESS_GRACE", "expected a duration such as 500ms, 30s, 5m, 12h or 7d, got 'soon'"),
    ),
    "typo": (
        change("test.yaml", "postgres:\n  pool_sice: 5"),
        {},
        ("postgres.pool_sice", "settings/test.yaml", "unknown key; did you mean postgres.pool_size?"),
    ),
    "case": (
        change("test.yaml", "postgres:\n  Host: x"),
        {},
        ("postgres.Host", "settings/test.yaml", "unknown key; did you mean postgres.host?"),
    ),
    "section": (
        change("test.yaml", "postgers:\n  host: x"),
        {},
        ("postgers.host", "settings/test.yaml", "unknown key; did you mean postgres.host?"),
    ),
    "no mapping": (
        change("test.yaml", "postgres: x"),
        {},
        ("postgres", "settings/test.yaml", "expected a section with keys below it"),
    ),
    "missing": (remove_key, {}, ("postgres.pool_size", "nowhere", "missing; set POSTGRES_POOL_SIZE")),
    "short secret": (
        lambda _: None,
        {"AUTH_MASTER_SECRET": "short"},
        ("auth.master_secret", "AUTH_MASTER_SECRET", "expected at least 32 characters"),
    ),
    "empty secret": (
        lambda _: None,
        {"AUTH_MASTER_SECRET": ""},
        ("auth.master_secret", "AUTH_MASTER_SECRET", "expected at least 32 characters"),
    ),
    "file": (
        lambda _: None,
        {"LOGGER_LEVEL_FILE": "/nowhere/level"},
        ("logger.level", "LOGGER_LEVEL_FILE", "cannot read /nowhere/level (No such file or directory)"),
    ),
    "folder for a file": (
        lambda _: None,
        {"LOGGER_LEVEL_FILE": "/"},
        ("logger.level", "LOGGER_LEVEL_FILE", "cannot read / (Is a directory)"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_its_source_and_what_is_expected(folder: Folder, case: str) -> None:
    spoil, environ, (key, source, message) = WRONG[case]
    spoil(folder)
    [found] = folder.problems(environ)
    assert found[:2] == (key, source)
    assert message in found[2]


def test_a_value_file_that_is_not_utf_8_is_refused(folder: Folder) -> None:
    (folder.root / "latin").write_bytes(b"caf\xe9")
    environ = {"POSTGRES_PASSWORD_FILE": str(folder.root / "latin")}
    [(key, source, message)] = folder.problems(environ)
    assert (key, source) == ("postgres.password", "POSTGRES_PASSWORD_FILE")
    assert message.endswith("(it is not UTF-8 text)")


def test_every_problem_is_in_one_report(folder: Folder) -> None:
    folder.append("test.yaml", "postgres:\n  port: many\n  hots: x\nlogger: loud\nnonsense:\n  a: 1\n  b: 2")
    environ = {"PROCESS_GRACE": "soon", "AUTH_MASTER_SECRET": "short", "QUEUE_CONCURRENCY_FILE": "/nowhere"}
    refusal = folder.refusal(environ)
    keys = {problem.key for problem in refusal.problems}
    assert keys == {
        "postgres.port",
        "postgres.hots",
        "logger",
        "nonsense.a",
        "nonsense.b",
        "process.grace",
        "auth.master_secret",
        "queue.concurrency",
    }
    assert str(refusal).startswith("settings for APP_ENV=test: 8 problems\n")
    lines = str(refusal).splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [[p.key, p.source] for p in refusal.problems]


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "unclosed": ('postgres:\n  password: "hunter2\n', "not YAML at line 3"),
    "alias": ("postgres:\n  password: *hunter2\n", "not YAML at line 2, column 13; quote"),
    "tag": ("postgres:\n  password: !hunter2 x\n", "not YAML at line 2, column 13; quote"),
    "colon": ("postgres:\n  password: hunter2: x\n", "not YAML at line 2"),
    "twice": ("postgres:\n  password: hunter2\n  password: hunter2-new\n", "duplicate key at line 3"),
    "text": ("hunter2\n", "expected sections with keys below them"),
    "list": ("- hunter2\n", "expected sections with keys below them"),
    "bytes": (b"postgres:\n  password: hunter2\xff\n", "is not UTF-8 text"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_the_place_and_without_what_stands_there(folder: Folder, case: str) -> None:
    content, message = BROKEN[case]
    folder.write(".secrets.yaml", content)
    refusal = folder.refusal()
    [problem] = refusal.problems
    assert problem.source == "settings/.secrets.yaml"
    assert message in problem.message
    assert "hunter2" not in str(refusal)


def test_every_broken_or_missing_file_is_in_one_report(folder: Folder) -> None:
    (folder.path / "default.yaml").unlink()
    folder.write("test.yaml", "a: [")
    (folder.path / ".secrets.yaml").symlink_to(folder.root / "not-mounted")
    found = {source: message for _, source, message in folder.problems()}
    assert found["settings/default.yaml"] == found["settings/.secrets.yaml"]
    assert found["settings/default.yaml"] == "cannot be read: No such file or directory"
    assert found["settings/test.yaml"].startswith("not YAML at line")
