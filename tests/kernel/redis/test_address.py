"""The forms of redis.url, and what is said of others."""

from contextlib import nullcontext

import pytest

from app.kernel.config import Misconfigured, RedisSettings, load
from app.kernel.config.stores import Stores
from app.kernel.redis.address import Address, address
from app.processes import sections
from tests.support.project import ROOT, Project

SECRET = "n0t-to-be-seen"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://cache", Address("single", False, (("cache", 6379),))),
        ("redis://cache:7000/3", Address("single", False, (("cache", 7000),), db=3)),
        ("rediss://me:p%40ss%2F:@one/", Address("single", True, (("one", 6379),), user="me", password="p@ss/:")),
        ("redis://:pass@[::1]:7000", Address("single", False, (("::1", 7000),), password="pass")),
        (
            "redis+sentinel://app:pass@one,two:27000/main",
            Address("sentinel", False, (("one", 26379), ("two", 27000)), service="main", user="app", password="pass"),
        ),
        ("rediss+sentinel://one/main/2", Address("sentinel", True, (("one", 26379),), db=2, service="main")),
        ("redis+cluster://one,two:7000", Address("cluster", False, (("one", 6379), ("two", 7000)))),
    ],
)  # fmt: skip
def test_a_url_says_where_redis_is_and_how_to_sign_in(url: str, expected: Address) -> None:
    assert address(url) == expected
    assert "pass" not in f"{expected} {expected!r}"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://{}@cache", "expected redis://HOST:PORT/DB"),
        ("cache:6379", "expected redis://HOST:PORT/DB"),
        ("redis://", "expected hosts"),
        ("redis://:{}@one two", "expected hosts"),
        ("redis://cache:99999", "expected hosts"),
        ("redis://{}@cache", "expected a colon"),
        ("redis://:{}@one,two", "expected one host"),
        ("redis://:{}@cache/0?ssl=true", "expected no options"),
        ("redis://:{}@cache/name", "expected the number of a database"),
        ("redis+sentinel://:{}@cache", "expected the name of the service"),
        ("redis+cluster://:{}@cache/1", "expected no database"),
    ],
)
def test_another_url_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        address(url.format(SECRET))
    assert SECRET not in str(refused.value)


def test_a_bad_url_is_an_error_of_the_configuration_and_a_good_one_is_not_shown(cli: Project) -> None:
    bad = cli.app("run-cron-manager", env={"REDIS_URL": f"redis://:{SECRET}@one,two"})
    assert bad.returncode == 78
    assert (
        "redis.url (REDIS_URL): expected one host; several are for redis+sentinel:// and redis+cluster://" in bad.stderr
    )
    shown = cli.app("config", "show", "--json", env={"REDIS_URL": f"redis://:{SECRET}@one"})
    assert shown.returncode == 0
    assert SECRET not in bad.stderr + shown.stdout


def test_a_url_in_a_store_is_checked_when_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(ROOT, sections(), {"APP_ENV": "test", "REDIS_URL": "secret://vault/secret/app#redis"})
    for text, problem in (("redis://cache", ""), ("http://cache", r"redis\.url .*: expected redis://")):
        monkeypatch.setattr(Stores, "fetch", lambda *_, text=text: text)
        with pytest.raises(Misconfigured, match=problem) if problem else nullcontext():
            assert settings[RedisSettings].url.get_secret_value() == text
        settings = load(ROOT, sections(), {"APP_ENV": "test", "REDIS_URL": "secret://vault/secret/app#redis"})
