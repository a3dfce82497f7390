"""`app config`."""

import pytest

from tests.commands.outcome import printed_json, refused
from tests.support.project import Project

SECRET = "hunter2-hunter2-hunter2-hunter2-hunter2"
SECRETS = {"AUTH_MASTER_SECRET": SECRET, "POSTGRES_PASSWORD": SECRET}


def test_show_gives_every_value_with_its_source_as_it_would_be_written(cli: Project) -> None:
    done = cli.app("config", "show", env={"LOGGER_LEVEL": "debug", "QUEUE_NAMES": "a,b", **SECRETS})
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["key", "value", "source"]
    shown = {line.split()[0]: line.split()[1:] for line in lines}
    assert shown["logger.level"] == ["debug", "LOGGER_LEVEL"]
    assert shown["process.grace"] == ["5s", "settings/test.yaml"]
    assert shown["queue.poll_interval"] == ["0.5s", "settings/default.yaml"]
    assert shown["queue.names"] == ["a,b", "QUEUE_NAMES"]
    assert shown["http_server.debug"] == ["false", "settings/default.yaml"]
    assert shown["postgres.host"] == ["settings/default.yaml"]
    assert shown["auth.master_secret"] == ["********", "AUTH_MASTER_SECRET"]
    assert "hunter2" not in done.stdout + done.stderr
    assert [line for line in lines if line != line.rstrip()] == []


def test_show_as_json_has_the_typed_values_and_no_secret(cli: Project) -> None:
    done = cli.app("config", "show", "--json", env=SECRETS)
    shown = printed_json(done)
    assert shown.keys() == {"environment", "settings"}
    assert shown["environment"] == "test"
    assert all(entry.keys() == {"value", "source"} for entry in shown["settings"].values())
    values = {key: entry["value"] for key, entry in shown["settings"].items()}
    assert values["process.grace"] == 5
    assert values["http_server.debug"] is False
    assert values["queue.names"] == ["default"]
    assert values["auth.master_secret"] == values["postgres.password"] == "********"
    assert "hunter2" not in done.stdout + done.stderr


def test_explain_says_what_a_setting_means_and_where_its_value_comes_from(cli: Project) -> None:
    done = cli.app("config", "explain", "process.grace", env={"PROCESS_GRACE": "90s"})
    assert done.returncode == 0, done.stderr
    assert [line.split(maxsplit=1) for line in done.stdout.splitlines()] == [
        ["key", "process.grace"],
        ["meaning", "for requests and jobs to finish after the drain delay"],
        ["value", "90s"],
        ["source", "PROCESS_GRACE"],
        ["environment", "PROCESS_GRACE"],
        ["environment_file", "PROCESS_GRACE_FILE"],
    ]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_explain_does_not_show_a_secret(cli: Project, options: list[str]) -> None:
    done = cli.app("config", "explain", "auth.master_secret", *options, env=SECRETS)
    assert done.returncode == 0, done.stderr
    assert "********" in done.stdout
    assert "AUTH_MASTER_SECRET" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_explain_as_json_has_a_stable_schema(cli: Project) -> None:
    assert printed_json(cli.app("config", "explain", "http_server.port", "--json")) == {
        "key": "http_server.port",
        "meaning": "port to listen on; 0 for a free one",
        "value": 8080,
        "source": "settings/default.yaml",
        "environment": "HTTP_SERVER_PORT",
        "environment_file": "HTTP_SERVER_PORT_FILE",
    }


def test_explain_says_where_an_invalid_setting_comes_from_and_shows_no_secret(cli: Project) -> None:
    done = cli.app("config", "explain", "auth.master_secret", "--json", env={"AUTH_MASTER_SECRET": "hunter2"})
    found = printed_json(done)
    assert (found["value"], found["source"]) == (None, "AUTH_MASTER_SECRET")
    assert done.stderr.startswith("warning: auth.master_secret (AUTH_MASTER_SECRET): expected at least 32 characters")
    assert "hunter2" not in done.stdout + done.stderr
    assert "(invalid)" in cli.app("config", "explain", "postgres.port", env={"POSTGRES_PORT": "many"}).stdout
    valid = cli.app("config", "explain", "postgres.host", env={"POSTGRES_PORT": "many", "AUTH_MASTER_SECRET": "short"})
    assert (valid.returncode, valid.stderr) == (0, "")


def test_an_unknown_setting_is_refused_with_a_suggestion(cli: Project) -> None:
    line = refused(cli.app("config", "explain", "postgres.hots"), 67)
    assert line == "app: there is no setting postgres.hots; did you mean postgres.host?"


def test_validate_accepts_the_settings_of_the_environment_it_names(cli: Project) -> None:
    done = cli.app("config", "validate")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the settings for APP_ENV=test are valid")
    assert printed_json(cli.app("config", "validate", "--json")) == {
        "environment": "test",
        "process": None,
        "valid": True,
    }
    line = refused(cli.app("config", "validate", "run-cron-manger"), 67)
    assert line == "app: there is no process run-cron-manger; did you mean run-cron-manager?"


def test_validate_loads_the_certificate_of_processes_that_have_one(cli: Project) -> None:
    env = {"HTTP_SERVER_TLS_CERT": "/nowhere.pem", "HTTP_SERVER_TLS_KEY": "/nowhere.key"}
    for args, status in ((("run-cron-manager",), 0), (("run-auth-http",), 78), ((), 78)):
        done = cli.app("config", "validate", *args, env=env)
        assert (done.returncode, "cannot read /nowhere.pem" in done.stderr) == (status, status == 78), args


@pytest.mark.parametrize("args", [["validate"], ["validate", "--json"], ["show"], ["show", "--json"]])
def test_wrong_settings_are_all_reported_and_no_secret_with_them(cli: Project, args: list[str]) -> None:
    wrong = {"AUTH_MASTER_SECRET": "hunter2", "POSTGRES_PORT": "many", "POSTGRES_PASSWORD": SECRET}
    done = cli.app("config", *args, env=wrong)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("app: settings for APP_ENV=test: 2 problems\n")
    assert [line.split()[:2] for line in done.stderr.splitlines()[1:-1]] == [
        ["postgres.port", "POSTGRES_PORT"],
        ["auth.master_secret", "AUTH_MASTER_SECRET"],
    ]
    assert done.stderr.splitlines()[-1] == "hint: app doctor --only settings --only secrets"
    assert "hunter2" not in done.stderr


def test_an_unknown_app_env_is_refused(cli: Project) -> None:
    line = refused(cli.app("config", "show", env={"APP_ENV": "prod"}), 78)
    assert line.endswith("did you mean production?")
