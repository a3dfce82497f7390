"""A password of the database that is changed while processes serve."""

import signal
from pathlib import Path

from tests.conftest import log_in, postgres_binaries
from tests.kernel.workers.test_workers import ENV, bearer, said
from tests.support.debian import debian_server
from tests.support.load import Load
from tests.support.project import Project, eventually

NEW = "n3w-passw0rd-0f-the-r0le"


def test_a_changed_password_is_used_for_new_connections_and_fails_no_request(cli: Project, tmp_path: Path) -> None:
    with debian_server(postgres_binaries()) as server:
        file = tmp_path / "password"
        file.write_text(server.password)
        cli.env |= server.env | {"POSTGRES_PASSWORD_FILE": str(file)}
        del cli.env["POSTGRES_PASSWORD"]

        def connections() -> set[int]:
            return {pid for (pid,) in server.all("SELECT pid FROM pg_stat_activity WHERE usename = 'app'")}

        one = cli.start("run-auth-http", env=ENV)
        client = log_in(cli, one)
        two = cli.start("run-auth-http", "--workers", "2", env=ENV)
        eventually(lambda: said(two, "2 workers are ready"))
        loads = [Load(process.url(), bearer(client)) for process in (one, two)]
        kept: list[set[int]] = []

        def change() -> None:
            before = connections()
            server.run(f"ALTER ROLE app PASSWORD '{NEW}'")
            file.write_text(f"{NEW}\n")
            one.signal(signal.SIGHUP)
            eventually(lambda: said(one, "reloaded settings: postgres.password changed and in use"))
            kept.append(before & connections())
            two.signal(signal.SIGHUP)
            eventually(lambda: said(two, "reloaded 2 workers"))

        loads[0].during(lambda: loads[1].during(change, 1, 1), 1, 1)
        assert [load.failed for load in loads] == [[], []]
        assert kept[0]
        server.all("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
        again = Load(one.url(), bearer(client)).during(lambda: eventually(connections), 1, 1)
        assert again.failed == []
        assert [process.stop() for process in (one, two)] == [0, 0]
