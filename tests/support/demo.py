"""A browser, and the demo to look at. Of Playwright only its driver is used: the browser is Debian's Chromium."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.project import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = shutil.which("chromium") or ""
USER = "demo"
_HISTORY_S = 180


@dataclass
class Demo:
    """A running `app demo`."""

    url: str
    password: str
    variables: dict[str, str] = field(default_factory=dict)
    """Variables of the environment with which commands and processes use its database."""


@contextmanager
def demo(python: str, env: dict[str, str], folder: Path, *options: str) -> Iterator[Demo]:
    """Run `app demo` until its history is written; stop it afterwards."""
    command = [python, "-m", "app", "demo", "--port", "0", "--data", str(folder), *options]
    with (folder.parent / "demo.out").open("w+") as out:
        process = subprocess.Popen(command, cwd=ROOT, env={**env, "APP_ENV": "local"}, stdout=out, stderr=out)
        try:
            yield _said(process, Path(out.name))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _said(process: "subprocess.Popen[bytes]", output: Path) -> Demo:
    deadline = time.monotonic() + _HISTORY_S
    while "An hour of history" not in (text := output.read_text()):
        assert process.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    lines = dict(line.strip().split(maxsplit=1) for line in text.splitlines() if len(line.split()) > 1)
    words = text.split()
    password = words[words.index("/") + 1]
    variables = dict(word.split("=", 1) for word in lines["Commands"].split() if "=" in word)
    return Demo(lines["Console"].removesuffix("/console"), password, variables)


@contextmanager
def browser() -> "Iterator[Browser]":
    """Run a browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield running
        finally:
            running.close()


def sign_in(page: "Page", url: str, username: str, password: str) -> None:
    """Sign in with a password."""
    page.goto(f"{url}/console")
    page.get_by_label("Username").fill(username)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Continue").click()


def context(running: "Browser", width: int, scheme: str, **more: object) -> "BrowserContext":
    """Return a window of a width, light or dark."""
    height = 900 if width > 600 else 844
    return running.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)  # type: ignore[arg-type]


def navigation(page: "Page") -> list[str]:
    """Return the addresses of all pages in the navigation."""
    return [str(link.get_attribute("href")) for link in page.locator("nav.side a").all()]


def executable() -> str:
    """Return the Python of this environment."""
    return sys.executable
