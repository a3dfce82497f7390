"""The suite itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.forks import fork
from tests.support.project import ROOT, Project, eventually

HANDLERS = """
import signal
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGQUIT) == signal.SIG_DFL)
"""


def test_children_handle_signals_as_usual() -> None:
    said = subprocess.run([sys.executable, "-c", HANDLERS], capture_output=True, text=True, check=True).stdout
    assert said == "True True\n"


def test_children_handle_signals_as_usual_when_the_suite_runs_in_the_background_of_a_script() -> None:
    inner = [sys.executable, "-m", "pytest", "-qp", "no:cacheprovider", __file__, "-k", "as_usual and not background"]
    script = ["sh", "-c", 'trap "" INT QUIT; exec "$@"', "sh"]
    done = subprocess.run([*script, *inner], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def _fds(pid: int) -> list[str]:
    return sorted(fd.name for fd in Path(f"/proc/{pid}/fd").iterdir())


def _inherited(pid: int) -> dict[str, object]:
    """Return what a process has from the one that started it."""
    status = _status(pid)
    kept = {name: status[name] for name in ("Umask", "Threads", "SigBlk", "SigIgn", "SigCgt")}
    return {**kept, "cwd": Path(f"/proc/{pid}/cwd").readlink(), "fds": _fds(pid), "group": os.getpgid(pid)}


def test_a_forked_process_is_like_a_started_one_and_leaves_nothing_behind(cli: Project) -> None:
    reading, full = os.pipe()
    os.set_blocking(full, False)
    while True:  # until a process that writes has to wait
        try:
            os.write(full, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(full, True)
    env = cli.environment()
    with Path(os.devnull).open() as nothing:
        forked = fork(["--help"], env, [nothing.fileno(), full, full])
        started = subprocess.Popen(
            [sys.executable, "-m", "app", "--help"], cwd=ROOT, env=env, stdin=nothing, stdout=full, stderr=full
        )
    try:
        waits = int(_status(forked.pid)["PPid"])
        server = int(_status(waits)["PPid"])

        def both() -> bool:
            found = [_inherited(process.pid) for process in (forked, started)]
            assert found[0] == found[1]
            calls = [Path(f"/proc/{process.pid}/syscall").read_text().split() for process in (forked, started)]
            return [call[1:2] for call in calls] == [["0x1"]] * 2  # both wait in a call on stdout

        eventually(both)
        before = _fds(server)
        with Path(os.devnull).open("r+") as nothing:
            assert fork(["--version"], env, [nothing.fileno()] * 3).wait(20) == 0
        assert _fds(server) == before
        assert forked.poll() is None
    finally:
        for process in (forked, started):
            process.send_signal(signal.SIGTERM)
        assert [process.wait(20) for process in (forked, started)] == [-signal.SIGTERM] * 2
        os.close(reading)
        os.close(full)
    eventually(lambda: not Path(f"/proc/{waits}").exists())
    assert not Path(f"/proc/{forked.pid}").exists()
