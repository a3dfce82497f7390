"""Builds the use cases of auth from resources. Imports what a provider needs when it is opened, not before."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.kernel.actions.compose import make
from app.kernel.audit import Audit
from app.kernel.db.postgres import database
from app.kernel.process import Process
from app.kernel.queue.postgres import PostgresQueue
from app.modules.auth.keyring import Keyring
from app.modules.auth.passwords import Passwords
from app.modules.auth.portal import Portal
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.api_keys import PostgresApiKeys
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.settings import AuthSettings
from app.modules.auth.tokens import Tokens

if TYPE_CHECKING:
    from app.modules.auth.usecases.authenticate import Authenticate
    from app.modules.auth.usecases.change_password import ChangePassword
    from app.modules.auth.usecases.confirm_totp import ConfirmTotp
    from app.modules.auth.usecases.create_superuser import CreateSuperuser
    from app.modules.auth.usecases.get_jwks import GetJwks
    from app.modules.auth.usecases.get_me import GetMe
    from app.modules.auth.usecases.login import Login
    from app.modules.auth.usecases.logout import Logout
    from app.modules.auth.usecases.oauth_introspect import OAuthIntrospect
    from app.modules.auth.usecases.oauth_metadata import OAuthMetadata
    from app.modules.auth.usecases.oauth_revoke import OAuthRevoke
    from app.modules.auth.usecases.oauth_token import OAuthToken
    from app.modules.auth.usecases.refresh import Refresh
    from app.modules.auth.usecases.remove_totp import RemoveTotp
    from app.modules.auth.usecases.reset_password import ResetPassword
    from app.modules.auth.usecases.reset_second_factor import ResetSecondFactor
    from app.modules.auth.usecases.rotate_keys import RotateKeys
    from app.modules.auth.usecases.start_totp import StartTotp
    from app.modules.auth.usecases.unlock import Unlock
    from app.modules.auth.usecases.verify import Verify

AUDIT, QUEUE = Audit(), PostgresQueue()
ACTORS, SESSIONS, LIMITS = PostgresActors(), PostgresSessions(), Limits()
API_KEYS = PostgresApiKeys()


@dataclass(frozen=True, slots=True)
class SignIn:
    """The use cases of signing in and out."""

    login: "Login"
    refresh: "Refresh"
    logout: "Logout"
    get_me: "GetMe"
    change_password: "ChangePassword"
    get_jwks: "GetJwks"
    verify: "Verify"
    start_totp: "StartTotp"
    confirm_totp: "ConfirmTotp"
    remove_totp: "RemoveTotp"


@dataclass(frozen=True, slots=True)
class OAuth:
    """The use cases of OAuth 2."""

    token: "OAuthToken"
    introspect: "OAuthIntrospect"
    revoke: "OAuthRevoke"
    metadata: "OAuthMetadata"


@dataclass(frozen=True, slots=True)
class Recovery:
    """The use cases of operators at a terminal."""

    create_superuser: "CreateSuperuser"
    reset_password: "ResetPassword"
    unlock: "Unlock"


@dataclass(frozen=True, slots=True)
class AuthPortal:
    """Auth, for other modules."""

    authenticate: "Authenticate"


@asynccontextmanager
async def portal(p: Process) -> AsyncGenerator[Portal]:
    """Provide the portal."""
    from app.modules.auth.usecases.authenticate import Authenticate

    yield AuthPortal(Authenticate(await p.use(database), SESSIONS, API_KEYS, await make(p, Tokens)))


@asynccontextmanager
async def sign_in(p: Process) -> AsyncGenerator[SignIn]:
    """Provide the use cases of signing in and out."""
    from app.modules.auth.postgres.second_factors import SecondFactors
    from app.modules.auth.sealing import derive
    from app.modules.auth.second_factor import StoredSecondFactor
    from app.modules.auth.usecases.change_password import ChangePassword
    from app.modules.auth.usecases.confirm_totp import ConfirmTotp
    from app.modules.auth.usecases.get_jwks import GetJwks
    from app.modules.auth.usecases.get_me import GetMe
    from app.modules.auth.usecases.login import Login
    from app.modules.auth.usecases.logout import Logout
    from app.modules.auth.usecases.reauthenticate import Reauthenticate
    from app.modules.auth.usecases.refresh import Refresh
    from app.modules.auth.usecases.remove_totp import RemoveTotp
    from app.modules.auth.usecases.start_totp import StartTotp
    from app.modules.auth.usecases.verify import Verify

    settings = p.settings[AuthSettings]
    db, issued, hashing = await p.use(database), await make(p, Tokens), await make(p, Passwords)
    secret = settings.master_secret.get_secret_value()
    factors = await make(p, SecondFactors)
    second_factor = StoredSecondFactor(db, factors)
    reauthenticate = Reauthenticate(db, ACTORS, hashing, second_factor, LIMITS, AUDIT)
    idle_s, lifetime_s = settings.session_idle, settings.session_lifetime
    yield SignIn(
        login=Login(
            db,
            ACTORS,
            SESSIONS,
            hashing,
            second_factor,
            issued,
            LIMITS,
            AUDIT,
            QUEUE,
            idle_s,
            lifetime_s,
            derive(secret, "failed passwords"),
        ),
        refresh=Refresh(db, SESSIONS, issued, AUDIT, idle_s),
        logout=Logout(db, SESSIONS, issued, AUDIT),
        get_me=GetMe(),
        change_password=ChangePassword(db, ACTORS, SESSIONS, hashing, reauthenticate, AUDIT, QUEUE),
        get_jwks=GetJwks(await make(p, Keyring)),
        verify=Verify(),
        start_totp=StartTotp(db, factors, SESSIONS, reauthenticate, AUDIT, settings.audience),
        confirm_totp=ConfirmTotp(db, factors, SESSIONS, LIMITS, AUDIT),
        remove_totp=RemoveTotp(db, factors, SESSIONS, reauthenticate, AUDIT),
    )


@asynccontextmanager
async def oauth(p: Process) -> AsyncGenerator[OAuth]:
    """Provide the use cases of OAuth 2."""
    from app.modules.auth.usecases.authenticate import Authenticate
    from app.modules.auth.usecases.oauth_client import OAuthClient
    from app.modules.auth.usecases.oauth_introspect import OAuthIntrospect
    from app.modules.auth.usecases.oauth_metadata import OAuthMetadata
    from app.modules.auth.usecases.oauth_revoke import OAuthRevoke
    from app.modules.auth.usecases.oauth_token import OAuthToken
    from app.modules.auth.usecases.refresh import Refresh

    settings = p.settings[AuthSettings]
    db, issued = await p.use(database), await make(p, Tokens)
    client = OAuthClient(db, API_KEYS, LIMITS, AUDIT)
    refresh = Refresh(db, SESSIONS, issued, AUDIT, settings.session_idle)
    yield OAuth(
        token=OAuthToken(db, client, SESSIONS, issued, refresh, AUDIT, settings.access_token_ttl),
        introspect=OAuthIntrospect(client, Authenticate(db, SESSIONS, API_KEYS, issued)),
        revoke=OAuthRevoke(db, client, SESSIONS, API_KEYS, issued, AUDIT),
        metadata=OAuthMetadata(settings.issuer),
    )


@asynccontextmanager
async def recovery(p: Process) -> AsyncGenerator[Recovery]:
    """Provide the use cases of operators at a terminal."""
    from app.modules.auth.usecases.create_superuser import CreateSuperuser
    from app.modules.auth.usecases.reset_password import ResetPassword
    from app.modules.auth.usecases.unlock import Unlock

    db, hashing = await p.use(database), await make(p, Passwords)
    yield Recovery(
        create_superuser=CreateSuperuser(db, ACTORS, hashing, AUDIT, QUEUE),
        reset_password=ResetPassword(db, ACTORS, SESSIONS, hashing, LIMITS, AUDIT, QUEUE),
        unlock=Unlock(db, ACTORS, LIMITS, AUDIT),
    )


@asynccontextmanager
async def reset_second_factor(p: Process) -> AsyncGenerator["ResetSecondFactor"]:
    """Provide the use case of `auth reset-second-factor`."""
    from app.modules.auth.postgres.second_factors import SecondFactors
    from app.modules.auth.usecases.reset_second_factor import ResetSecondFactor

    factors = await make(p, SecondFactors)
    yield ResetSecondFactor(await p.use(database), ACTORS, factors, SESSIONS, AUDIT)


@asynccontextmanager
async def rotate_keys(p: Process) -> AsyncGenerator["RotateKeys"]:
    """Provide the use case of `auth keys rotate`."""
    from app.modules.auth.usecases.rotate_keys import RotateKeys

    ttl_s = p.settings[AuthSettings].access_token_ttl
    yield RotateKeys(await p.use(database), await make(p, Keyring), AUDIT, ttl_s)
