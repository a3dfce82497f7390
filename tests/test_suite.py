"""The suite itself."""

import subprocess
import sys

from tests.support.project import ROOT

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
