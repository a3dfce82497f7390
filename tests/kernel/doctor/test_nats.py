"""The connection to NATS and its check, on real servers."""

import asyncio
from pathlib import Path

import pytest

from app.kernel.addresses import nats_servers
from app.kernel.config import Misconfigured, NatsSettings, load, load_valid
from app.kernel.doctor import Finding, NotChecked, broker
from app.kernel.doctor.deployment import Deployment
from app.kernel.errors import Unavailable
from app.kernel.queue.transport.nats.stream import Stream, Subscription, consumer_name, differing
from app.kernel.telemetry.redact import redacted
from app.processes import sections
from tests.kernel.queue.conftest import connected
from tests.support.certificates import Authority
from tests.support.nats import nats_server
from tests.support.project import ROOT


def deployment(**env: str) -> Deployment:
    environ = {"APP_ENV": "test", **env}
    settings, error = load_valid(ROOT, sections(), environ)
    return Deployment(settings, error, sections(), ROOT, ROOT, [], environ)


async def problems(**env: str) -> list[str]:
    found: list[Finding] = [finding async for finding in broker.nats(deployment(**env))]
    return [finding.problem for finding in found]


def settings(**env: str) -> NatsSettings:
    return load(ROOT, sections(), {"APP_ENV": "test", **env})[NatsSettings]


def test_addresses_are_refused_without_the_passwords_in_them() -> None:
    assert nats_servers("nats://a:4222, tls://u:p@b") == ["nats://a:4222", "tls://u:p@b"]
    for wrong in (
        "http://a",
        "a:4222",
        "nats://",
        "nats://u:secret@a:port",
        "nats://a:65536",
        "nats://a,b",
        "nats://secret#x@a",
        "nats://secret?x@a",
        "nats://u:1/secret@a",
        "nats://secret/x@a",
    ):
        with pytest.raises(Misconfigured, match=r"nats\.url \(NATS_URL\): expected addresses such as") as caught:
            settings(NATS_URL=wrong)
        assert "secret" not in str(caught.value)


def test_names_of_consumers_differ_as_those_of_subscribers_do_and_are_valid() -> None:
    names = ["a.b", "a-b", "a_b", "a%2Eb", "a b", "a*", "a>", "a/b", "a\\b", "é" * 128, "è" * 128]
    made = [consumer_name(name) for name in names]
    assert len(set(made)) == len(names)
    assert not any(set(name) & set(" .*>/\\") or len(name) > 255 for name in made)


async def test_without_an_address_nothing_is_checked() -> None:
    with pytest.raises(NotChecked):
        await problems()


async def test_the_check_names_what_is_wrong_with_the_server_or_the_stream(tmp_path: Path) -> None:
    authorization = 'authorization: {users: [{user: "app", password: "right horse"}]}\n'
    with nats_server(tmp_path / "one", authorization) as server:
        with_password = f"nats://app:right%20horse@127.0.0.1:{server.port}"
        (refused,) = await problems(NATS_URL=f"nats://app:wrong@127.0.0.1:{server.port}")
        assert "Authorization Violation" in refused
        assert "wrong" not in refused
        assert await problems(NATS_URL=with_password) == ["there is no stream app-events yet"]
        assert await problems(NATS_URL=with_password, NATS_REPLICAS="3") == [
            "nats.replicas is 3, but the server is in no cluster, so it refuses the stream"
        ]
        async with connected(settings(NATS_URL=with_password)) as connection:
            stream = Stream(connection, settings(NATS_URL=with_password), 30)
            await stream.ensure([Subscription("a.b", "test.moved", False), Subscription("in order", "..", True)])
            assert await problems(NATS_URL=with_password) == []
            await stream.ensure([Subscription("a.b", "test.turned", False)])
            found = await stream.consumer("a.b")
            assert found is not None
            assert found["config"]["filter_subject"] == "app-events.test.turned"
            assert differing(found["config"], stream.wanted_consumer(Subscription("a.b", "test.turned", False))) == []
            await stream.forget(["in order"])
            assert await stream.consumers() == [consumer_name("in order")]
            assert await problems(NATS_URL=with_password, NATS_MAX_BYTES="1048576") == [
                "the stream app-events differs from the settings in max_bytes"
            ]
            await connection.client.publish(stream.subject(".."), b"{}")
            await connection.check()
            assert await problems(NATS_URL=with_password) == [
                "1 events are still in NATS: keep nats.url until consumers have handled them"
            ]
            server.stop()
            with pytest.raises(Unavailable):
                await connection.check()
            (gone,) = await problems(NATS_URL=with_password)
            assert gone == f"NATS at 127.0.0.1:{server.port} is unreachable: Connection refused"
            server.start()
            generation = connection.generation
            async with asyncio.timeout(10):
                while connection.generation == generation:
                    await asyncio.sleep(0.05)
            await connection.check()


async def test_tls_is_verified_against_the_authority_of_the_settings(tmp_path: Path) -> None:
    authority = Authority.made_in(tmp_path / "ca")
    cert, key = authority.sign("localhost")
    config = f'tls: {{cert_file: "{cert}", key_file: "{key}"}}\n'
    with nats_server(tmp_path / "tls", config) as server:
        url = f"tls://localhost:{server.port}"
        assert await problems(NATS_URL=url, NATS_TLS_CA=str(authority.file)) == ["there is no stream app-events yet"]
        (refused,) = await problems(NATS_URL=url)
        assert "certificate verify failed" in refused
        (missing,) = await problems(NATS_URL=url, NATS_TLS_CA=str(tmp_path / "none"))
        assert missing == f"the file {tmp_path / 'none'} of nats.tls_ca cannot be used: No such file or directory"
        (missing,) = await problems(NATS_URL=url, NATS_CREDENTIALS=str(tmp_path / "none"))
        assert redacted(missing) == missing
        assert missing.endswith("of nats.credentials cannot be read: No such file or directory")


async def test_nobody_signs_in_to_a_tls_address_without_tls(tmp_path: Path) -> None:
    with nats_server(tmp_path / "plain", "debug: true\ntrace: true\n") as server:
        url = f"tls://app:secret@127.0.0.1:{server.port}"
        (refused,) = await problems(NATS_URL=url)
        assert "does not offer TLS" in refused
        seen = (tmp_path / "plain" / "nats.log").read_text()
        assert "Client connection created" in seen
        assert "CONNECT" not in seen


async def test_jetstream_that_is_off_is_one_problem(tmp_path: Path) -> None:
    with nats_server(tmp_path / "off") as server:
        server.stop()
        server.config.write_text(f'host: "127.0.0.1"\nport: {server.port}\n')
        server.start()
        (off,) = await problems(NATS_URL=server.url)
        assert off.startswith("JetStream is not enabled")
