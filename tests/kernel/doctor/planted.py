"""A deployment with a fault, examined by all checks; and printed remedies, applied as a person would."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from app.composition import checks
from app.kernel.config import Misconfigured, Settings, load_valid
from app.kernel.doctor import Finding, Result
from app.kernel.doctor.deployment import Deployment
from app.kernel.doctor.run import run_checks
from app.modules import MODULES
from app.processes import sections
from tests.support.project import ROOT

SHIM = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m app "$@"\n'


@dataclass
class Planted:
    """A deployment: its environment, its folder of settings and migrations, its data."""

    data: Path
    env: dict[str, str] = field(default_factory=dict)
    root: Path = ROOT
    results: list[Result] = field(default_factory=list)

    async def examine(self, *only: str, repair: bool = False) -> dict[str, tuple[str, str]]:
        """Return the findings of all checks, or of some: name to level and problem of the first."""
        env = {"APP_ENV": "test", "HTTP_SERVER_PORT": "0", "OPERATIONS_PORT": "0", **self.env}
        try:
            settings, error = load_valid(self.root, sections(), env)
        except Misconfigured as unreadable:
            settings, error = Settings("local"), unreadable
        deployment = Deployment(settings, error, sections(), self.root, self.data, MODULES, env)
        chosen = [check for check in checks() if not only or check.name in only]
        try:
            self.results = await run_checks(deployment, chosen)
            for finding in self.findings if repair else ():
                if finding.repair:
                    await finding.repair()
            return {r.check.name: (r.findings[0].level, r.findings[0].problem) for r in self.results if r.findings}
        finally:
            await deployment.close()

    @property
    def findings(self) -> list[Finding]:
        return [finding for result in self.results for finding in result.findings]

    @property
    def skipped(self) -> set[str]:
        return {result.check.name for result in self.results if result.status == "skip"}

    async def repair(self, *only: str) -> None:
        """Do what --fix does; every finding must be one that it repairs."""
        await self.examine(*only, repair=True)
        assert self.findings
        assert all(finding.repair for finding in self.findings)

    def apply(self, fix: str) -> None:
        """Run a printed remedy in a shell; what it exports and unsets lasts."""
        bin_dir = self.data / "bin"
        bin_dir.mkdir(parents=True, exist_ok=True)
        (bin_dir / "app").write_text(SHIM)
        (bin_dir / "app").chmod(0o755)
        env = {"APP_ENV": "test", **self.env, "PATH": f"{bin_dir}:{os.environ['PATH']}:/usr/lib/postgresql/15/bin"}
        done = subprocess.run(
            ["sh", "-ec", f"{fix}\nprintf '\\0'; env -0"], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        after = dict(line.split("=", 1) for line in done.stdout.split("\0")[1:] if "=" in line)
        self.env = {name: value for name, value in after.items() if name not in ("PATH", "PWD", "_", "SHLVL", "OLDPWD")}
