"""The work of our `GET /auth/v1/me`, as it is usually written with FastAPI. Two peers, each given every advantage.

`sqlmodel` follows the well-known full-stack template: sync dependencies and endpoint, a SQLModel session, PyJWT.
`asynchronous` does the same with SQLAlchemy's AsyncSession. Both verify an ES256 token with exp, iss and aud, look the
session up live, return actor and permissions, write one JSON log line and send back a request id. In their favour: one
statement with a join and an array, the key parsed once, a pure ASGI middleware in place of BaseHTTPMiddleware, and
neither time limits, tracing, nor error documents.
"""

import json
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import jwt
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer
from pydantic import BaseModel
from sqlalchemy import Select, create_engine
from sqlalchemy.dialects.postgresql import array_agg
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlmodel import Field, Session, SQLModel, select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SCHEMA = """
    DROP SCHEMA IF EXISTS peer CASCADE;
    CREATE SCHEMA peer;
    CREATE TABLE peer.actors (LIKE auth.actors INCLUDING ALL);
    CREATE TABLE peer.actor_permissions (LIKE auth.actor_permissions INCLUDING ALL);
    CREATE TABLE peer.sessions (LIKE auth.sessions INCLUDING ALL);
    INSERT INTO peer.actors SELECT * FROM auth.actors;
    INSERT INTO peer.actor_permissions SELECT * FROM auth.actor_permissions;
    INSERT INTO peer.sessions SELECT * FROM auth.sessions;
"""

PEER = {"schema": "peer"}


class Actor(SQLModel, table=True):
    __tablename__ = "actors"
    __table_args__ = PEER
    id: uuid.UUID = Field(primary_key=True)
    type: str
    username: str
    is_superuser: bool
    is_active: bool
    last_active_at: datetime | None
    created_at: datetime
    updated_at: datetime


class ActorPermission(SQLModel, table=True):
    __tablename__ = "actor_permissions"
    __table_args__ = PEER
    actor_id: uuid.UUID = Field(primary_key=True)
    permission: str = Field(primary_key=True)


class LoginSession(SQLModel, table=True):
    __tablename__ = "sessions"
    __table_args__ = PEER
    id: uuid.UUID = Field(primary_key=True)
    actor_id: uuid.UUID
    idle_expires_at: datetime
    expires_at: datetime
    ended_at: datetime | None


class ActorPublic(BaseModel):
    id: uuid.UUID
    type: str
    username: str
    is_superuser: bool
    is_active: bool
    last_active_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Me(BaseModel):
    actor: ActorPublic
    session_id: uuid.UUID
    permissions: list[str]


class TokenPayload(BaseModel):
    sub: uuid.UUID
    sid: uuid.UUID


@dataclass
class Current:
    actor: Actor
    session_id: uuid.UUID
    permissions: list[str]


Token = Annotated[str, Depends(OAuth2PasswordBearer(tokenUrl="/login"))]


def verified(token: str) -> TokenPayload:
    try:
        payload = jwt.decode(
            token,
            _KEY,
            algorithms=["ES256"],
            audience="app",
            issuer="peer",
            options={"require": ["exp", "iss", "aud", "sub", "sid", "jti"]},
        )
        return TokenPayload(**payload)
    except (jwt.InvalidTokenError, ValueError):
        raise HTTPException(401, "Could not validate credentials") from None


def query(payload: TokenPayload) -> Select[Any]:
    now = datetime.now(UTC)
    permissions = (
        select(array_agg(ActorPermission.permission)).where(ActorPermission.actor_id == Actor.id).scalar_subquery()
    )
    return (
        select(Actor, permissions)
        .join(LoginSession, LoginSession.actor_id == Actor.id)
        .where(
            LoginSession.id == payload.sid,
            Actor.id == payload.sub,
            Actor.is_active,
            LoginSession.ended_at.is_(None),
            LoginSession.idle_expires_at > now,
            LoginSession.expires_at > now,
        )
    )


def current(row: Any, payload: TokenPayload) -> Current:
    if row is None:
        raise HTTPException(401, "Session not found")
    actor, granted = row
    permissions = sorted({*(granted or ()), *(["auth:superuser"] if actor.is_superuser else [])})
    return Current(actor=actor, session_id=payload.sid, permissions=permissions)


def answer(caller: Current) -> Any:
    return {"actor": caller.actor, "session_id": caller.session_id, "permissions": caller.permissions}


class RequestLog:
    """A request id, and a JSON line for each request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.log = logging.getLogger("requests")
        self.log.propagate = False
        self.log.setLevel(logging.INFO)
        self.log.addHandler(logging.FileHandler(os.environ["PEER_LOG"]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, request_id = time.perf_counter(), 0, str(uuid.uuid4())

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            line = {
                "time": datetime.now(UTC).isoformat(),
                "level": "info",
                "message": f"{scope['method']} {scope['path']} {status}",
                "duration_ms": (time.perf_counter() - started) * 1000,
                "request_id": request_id,
            }
            self.log.info(json.dumps(line))


def sqlmodel() -> FastAPI:
    """FastAPI and SQLModel, sync."""
    engine = create_engine(os.environ["PEER_DSN"], pool_size=10)
    app = FastAPI()
    app.add_middleware(RequestLog)

    def get_db() -> Generator[Session, None, None]:
        with Session(engine) as session:
            yield session

    def get_current(session: Annotated[Session, Depends(get_db)], token: Token) -> Current:
        payload = verified(token)
        return current(session.exec(query(payload)).first(), payload)

    @app.get("/auth/v1/me", response_model=Me)
    def me(caller: Annotated[Current, Depends(get_current)]) -> Any:
        return answer(caller)

    return app


def asynchronous() -> FastAPI:
    """FastAPI and SQLAlchemy's AsyncSession."""
    engine = create_async_engine(os.environ["PEER_DSN"], pool_size=10)
    sessions = partial(AsyncSession, engine, expire_on_commit=False)
    app = FastAPI()
    app.add_middleware(RequestLog)

    async def get_db() -> AsyncGenerator[AsyncSession, None]:
        async with sessions() as session:
            yield session

    async def get_current(session: Annotated[AsyncSession, Depends(get_db)], token: Token) -> Current:
        payload = verified(token)
        return current((await session.execute(query(payload))).first(), payload)

    @app.get("/auth/v1/me", response_model=Me)
    async def me(caller: Annotated[Current, Depends(get_current)]) -> Any:
        return answer(caller)

    return app


_KEY: Any = load_pem_public_key(os.environ["PEER_KEY"].encode()) if "PEER_KEY" in os.environ else None
