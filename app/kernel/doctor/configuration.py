"""Checks of the settings: all problems at once, secrets, files with secrets, proxies."""

import os
import shlex
import stat
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

from loguru import logger

from app.kernel.addresses import networks
from app.kernel.config import HttpServerSettings, LoggerSettings, Misconfigured, Problem, schema
from app.kernel.config.settings import Setting
from app.kernel.doctor import Check, Finding, NotChecked, fail, in_thread, warn
from app.kernel.doctor.certificates import expiry
from app.kernel.doctor.deployment import Deployment
from app.kernel.product import NAME

_SECRET_MODE = 0o600
_OPEN_TO_OTHERS = stat.S_IRWXO | stat.S_IWGRP
# mounted by container runtimes, readable for all users of the container
_MOUNTED = ("/run/secrets/", "/var/run/secrets/")
_LEAST_PREFIX = {4: 8, 6: 16}


async def settings(d: Deployment) -> AsyncIterator[Finding]:
    """Report all problems of the settings but those of secrets."""
    if d.error is not None and not d.error.problems:
        yield fail(str(d.error), d.error.hint)
    for problem in d.error.problems if d.error else ():
        if problem.key not in _secret_keys(d):
            yield fail(str(problem), _correction(d, problem))


async def environment(d: Deployment) -> AsyncIterator[Finding]:
    """Report variables that are nearly the name of a setting, and have no effect."""
    for problem in d.settings.misspelt:
        yield warn(f"{problem.key}: {problem.message}", f"unset {problem.key}  # or correct its name")


async def secrets(d: Deployment) -> AsyncIterator[Finding]:
    """Report secrets that are missing, published or easy to guess, and a Vault that is not verified."""
    found = [*(d.error.problems if d.error else ()), *(d.fetching.problems if d.fetching else ())]
    for problem in dict.fromkeys(found):
        if problem.key in _secret_keys(d):
            yield fail(str(problem), _correction(d, problem))
    if d.fetching is not None and not d.fetching.problems:
        yield fail(str(d.fetching), f"{NAME} config validate")
    if not d.is_published and d.environ.get("VAULT_SKIP_VERIFY", "").lower() in ("1", "t", "true"):
        yield warn("whoever answers as Vault gets the token and chooses the secrets", "unset VAULT_SKIP_VERIFY")


def _secret_keys(d: Deployment) -> set[str]:
    return {setting.key for kind in d.sections for setting in schema(kind) if setting.is_secret}


def _correction(d: Deployment, problem: Problem) -> str:
    known = {setting.key: setting for kind in d.sections for setting in schema(kind)}
    setting = known.get(problem.key)
    if problem.hint:  # of a store of secrets, whose secret is not ours to make
        return f"{NAME} config explain {problem.key}  # {problem.hint}"
    if setting is not None and problem.source == f"{setting.variable}_FILE":
        path = shlex.quote(d.environ[problem.source])
        if setting.is_key and Path(d.environ[problem.source]).is_file():
            return f"(umask 077; mv {path} {path}.former; openssl rand -base64 32 > {path})"
        return f"ls -l {path}  # then correct {problem.source}"
    if setting is not None and setting.is_key:
        return f'export {setting.variable}="$(openssl rand -base64 32)"'
    is_shipped = problem.source == "settings/default.yaml"
    if problem.source in d.environ or setting is None or (problem.source.endswith(".yaml") and not is_shipped):
        return _at_its_source(d, problem, setting)
    return f"export {setting.variable}=VALUE"


def _at_its_source(d: Deployment, problem: Problem, setting: Setting | None) -> str:
    if setting is None:
        return f"grep -n {problem.key.rpartition('.')[2]} {shlex.quote(problem.source)}  # then correct it"
    if problem.source in d.environ and not setting.is_secret:
        return f"unset {problem.source}  # or correct it"
    return f"{NAME} config explain {problem.key}  # then correct {problem.source}"


def _secret_files(d: Deployment) -> Iterator[Path]:
    """Yield the files that have secrets, as far as the settings name them."""
    yield d.root / "settings/.secrets.yaml"
    yield d.root / ".env"
    if HttpServerSettings in d.settings.sections and d[HttpServerSettings].tls_key:
        yield Path(d[HttpServerSettings].tls_key)
    for kind in d.sections:
        for setting in schema(kind):
            if setting.is_secret and (name := d.environ.get(f"{setting.variable}_FILE")):
                yield Path(name)


async def permissions(d: Deployment) -> AsyncIterator[Finding]:
    """Report files with secrets, and log files, that other users may read or write."""
    files = [(path, "has secrets", _SECRET_MODE) for path in _secret_files(d)]
    if LoggerSettings in d.settings.sections and (output := d[LoggerSettings].output) != "stdout":
        files.append((Path(output), "is the log", 0o640))
    for path, what, mode in files:
        if finding := await in_thread(partial(_file, path, what, mode)):
            yield finding


def _file(path: Path, what: str, mode: int) -> Finding | None:
    if str(path).startswith(_MOUNTED):
        return None
    try:
        found = path.stat()
    except FileNotFoundError:
        return None  # a missing file of a secret is a problem of the settings
    except OSError as error:
        return fail(f"{path} {what} and cannot be read: {error.strerror}", f"ls -ld {shlex.quote(str(path))}")
    fix = f"chmod {mode:o} {shlex.quote(str(path))}"
    if not found.st_mode & _OPEN_TO_OTHERS or not stat.S_ISREG(found.st_mode):
        return None

    async def repair() -> None:
        await in_thread(lambda: path.chmod(stat.S_IMODE(path.stat().st_mode) & mode))

    mine = os.geteuid() in (0, found.st_uid)
    can = "write" if found.st_mode & (stat.S_IWOTH | stat.S_IWGRP) else "read"
    level = fail if can == "write" else warn
    problem = f"{path} {what}, and other users can {can} it (mode {stat.S_IMODE(found.st_mode):o})"
    return level(problem, fix, repair if mine else None)


async def tls(d: Deployment) -> AsyncIterator[Finding]:
    """Report a certificate of our own server that cannot be used, or ends soon."""
    from app.kernel.http.tls import tls as load

    server = d[HttpServerSettings]
    if not server.tls_cert and not server.tls_key:
        raise NotChecked("http_server.tls_cert is empty: a proxy in front has the certificate")
    look = f"openssl x509 -noout -subject -enddate -in {shlex.quote(server.tls_cert or 'FILE')}"
    logger.disable(load.__module__)  # it warns of the end, too
    try:
        await in_thread(partial(load, server))
    except Misconfigured as error:
        yield fail(str(error), error.hint)
    else:
        content = await in_thread(Path(server.tls_cert).read_bytes)
        if finding := expiry(f"the certificate in {server.tls_cert}", content, look):
            yield finding


async def proxies(d: Deployment) -> AsyncIterator[Finding]:
    """Report proxies that are trusted too widely: their clients choose the address that they seem to have."""
    for network in networks(d[HttpServerSettings].trusted_proxies):
        if network.prefixlen < _LEAST_PREFIX[network.version]:
            yield fail(
                f"http_server.trusted_proxies has {network}: everybody there can pretend to be any client, and evades"
                " the limits of attempts",
                "export HTTP_SERVER_TRUSTED_PROXIES=ADDRESS_OF_THE_PROXY",
            )


CHECKS = (
    Check("settings", "settings", "All settings are valid.", settings),
    Check("environment", "settings", "No variable is a misspelt setting.", environment),
    Check("secrets", "settings", "Secrets are set, and hard to guess.", secrets),
    Check("permissions", "settings", "Only their owner reads files with secrets.", permissions),
    Check("tls", "settings", "The certificate of our own TLS is valid for a while.", tls),
    Check("proxies", "settings", "Only proxies are trusted as proxies.", proxies),
)
