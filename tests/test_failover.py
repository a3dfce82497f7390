"""The primary is killed under load, and a synchronous standby takes over: processes find it, and nothing is lost."""

from pathlib import Path

from tests.conftest import postgres_binaries
from tests.support.debian import with_standby
from tests.support.failover import Pair, fail_over_under_load
from tests.support.project import Project

BACK_S = 5.0


async def test_after_the_kill_of_the_primary_nothing_acknowledged_is_lost_and_nothing_needs_a_restart(
    cli: Project, tmp_path: Path
) -> None:
    with with_standby(postgres_binaries()) as servers:
        pair = Pair(list(servers))
        pair.synchronise()
        outcome = await fail_over_under_load(pair, cli, tmp_path)
        old = pair.servers[1]
        cli.env |= pair.env
        down = cli.app("doctor", "--only", "replication")
        old.start()
        split = cli.app("doctor", "--only", "replication")
    print(f"promoted after {outcome.outage_s} s; first success after {outcome.back_s} s; answers {outcome.answers}")
    assert outcome.dead == []
    assert outcome.verdict.holds, outcome.verdict.table()
    assert outcome.answers.keys() <= {201, 503}
    assert outcome.answers[201] > 50
    assert outcome.answers[503] > 0
    assert max(outcome.back_s[0].values()) < outcome.outage_s[0] + BACK_S
    assert (down.returncode, f"PostgreSQL at 127.0.0.1:{old.port}: " in down.stdout) == (0, True), down.stdout
    assert (split.returncode, "accept writes: each lacks" in split.stdout) == (1, True), split.stdout
