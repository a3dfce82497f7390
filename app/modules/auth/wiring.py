"""Builds the use cases of auth from resources. Imports what a provider needs when it is opened, not before."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.kernel.db.postgres import database
from app.kernel.process import Process
from app.modules.auth.portal import Portal
from app.modules.auth.postgres import PostgresActors, PostgresSessions, PostgresSigningKeys
from app.modules.auth.settings import AuthSettings

if TYPE_CHECKING:
    from app.modules.auth.domain import Passwords, Tokens
    from app.modules.auth.usecases.authenticate import Authenticate
    from app.modules.auth.usecases.create_superuser import CreateSuperuser
    from app.modules.auth.usecases.get_me import GetMe
    from app.modules.auth.usecases.login import Login
    from app.modules.auth.usecases.logout import Logout


@dataclass(frozen=True, slots=True)
class Auth:
    """The use cases of the auth API."""

    login: "Login"
    logout: "Logout"
    get_me: "GetMe"


@dataclass(frozen=True, slots=True)
class AuthPortal:
    """Auth, for other modules."""

    authenticate: "Authenticate"


@asynccontextmanager
async def tokens(p: Process) -> AsyncGenerator["Tokens"]:
    """Provide the tokens of this deployment, with a first signing key if there was none."""
    from app.modules.auth.keys import open_keyring
    from app.modules.auth.tokens import JwtTokens

    settings = p.settings[AuthSettings]
    keyring = await open_keyring(
        await p.use(database), PostgresSigningKeys(), settings.master_secret.get_secret_value()
    )
    yield JwtTokens(keyring, settings)


@asynccontextmanager
async def passwords(p: Process) -> AsyncGenerator["Passwords"]:
    """Provide password hashing."""
    from app.modules.auth.passwords import Argon2Passwords

    hashing = Argon2Passwords(p.settings[AuthSettings].password_hash_concurrency)
    try:
        yield hashing
    finally:
        hashing.close()


@asynccontextmanager
async def portal(p: Process) -> AsyncGenerator[Portal]:
    """Provide the portal."""
    from app.modules.auth.usecases.authenticate import Authenticate

    yield AuthPortal(Authenticate(await p.use(database), PostgresSessions(), await p.use(tokens)))


@asynccontextmanager
async def auth(p: Process) -> AsyncGenerator[Auth]:
    """Provide the use cases of the API."""
    from app.modules.auth.usecases.get_me import GetMe
    from app.modules.auth.usecases.login import Login
    from app.modules.auth.usecases.logout import Logout

    settings = p.settings[AuthSettings]
    db, issued, sessions = await p.use(database), await p.use(tokens), PostgresSessions()
    hashing = await p.use(passwords)
    yield Auth(
        login=Login(db, PostgresActors(), sessions, hashing, issued, settings.session_idle, settings.session_lifetime),
        logout=Logout(db, sessions, issued),
        get_me=GetMe(),
    )


@asynccontextmanager
async def create_superuser(p: Process) -> AsyncGenerator["CreateSuperuser"]:
    """Provide the use case of `auth create-superuser`."""
    from app.modules.auth.usecases.create_superuser import CreateSuperuser

    yield CreateSuperuser(await p.use(database), PostgresActors(), await p.use(passwords))
