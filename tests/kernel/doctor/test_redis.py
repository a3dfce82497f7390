"""What doctor finds out about Redis."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.doctor.planted import Planted
from tests.support.valkey import Valkey, free_port, servers

PASSWORD = "n0t-to-be-seen"


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with servers() as found:
        options = ["--requirepass", PASSWORD, "--maxmemory", "32mb", "--maxmemory-policy", "allkeys-lru"]
        found.append(Valkey(tmp_path / "valkey", options, password=PASSWORD))
        yield found[0]


async def test_what_is_wrong_with_redis_is_found_and_gone_after_the_remedy(valkey: Valkey, tmp_path: Path) -> None:
    planted = Planted(tmp_path, {"REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:{valkey.port}"})
    assert await planted.examine("redis") == {}
    assert planted.results[0].status == "ok"
    for setting, wrong, right, said in (
        ("maxmemory", "0", "32mb", "no limit of memory"),
        ("maxmemory-policy", "noeviction", "allkeys-lru", "refuses writes"),
    ):
        valkey.ask("CONFIG", "SET", setting, wrong)
        assert said in (await planted.examine("redis"))["redis"][1]
        assert f"config set {setting} " in planted.findings[0].fix
        assert PASSWORD not in str(planted.findings)
        valkey.ask("CONFIG", "SET", setting, right)
    assert await planted.examine("redis") == {}
    valkey.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    valkey.ask("CONFIG", "SET", "maxmemory", "1")
    assert "used memory" in (await planted.examine("redis"))["redis"][1]
    assert "config set maxmemory-policy allkeys-lru" in planted.findings[0].fix
    valkey.ask("CONFIG", "SET", "maxmemory", "32mb")
    planted.env["REDIS_URL"] = f"redis+sentinel://:{PASSWORD}@127.0.0.1:{valkey.port}/main"  # which is no Sentinel
    assert (await planted.examine("redis"))["redis"][1].endswith("is not used: No master found for 'main'")
    assert f"-p {valkey.port} sentinel masters" in planted.findings[0].fix
    planted.env["REDIS_URL"] = f"redis://:another@127.0.0.1:{valkey.port}"
    assert "is not used: invalid username-password pair" in (await planted.examine("redis"))["redis"][1]
    planted.env["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}"
    level, problem = (await planted.examine("redis"))["redis"]
    assert (level, "Connect call failed" in problem) == ("warn", True)
    planted.env["REDIS_URL"] = ""
    assert await planted.examine("redis") == {}
    assert planted.skipped == {"redis"}
