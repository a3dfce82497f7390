"""Access tokens, attacked."""

import base64
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jwt
from joserfc.jwk import ECKey

from app.kernel.config import load
from app.kernel.identifiers import uuid7
from app.modules.auth.domain.sessions import InvalidRefreshToken, InvalidToken, Session, TokenExpired
from app.modules.auth.keyring import Keyring
from app.modules.auth.settings import AuthSettings
from app.modules.auth.tokens import Tokens
from app.processes import sections
from tests.support.project import ROOT

KEY = ECKey.generate_key("P-256", {"kid": "one", "alg": "ES256"}, private=True)
SETTINGS = load(ROOT, sections(), {"APP_ENV": "test", "AUTH_ACCESS_TOKEN_TTL": "1d"})[AuthSettings]


class OneKey:
    """A keyring of one key."""

    refresh_mac = b"x" * 32
    refresh_macs = (refresh_mac,)
    at = time.time()

    def now(self) -> float:
        return self.at

    async def signing(self) -> ECKey:
        return KEY

    async def find(self, kid: str) -> ECKey | None:
        return KEY if kid == "one" else None


TOKENS = Tokens(cast("Keyring", OneKey()), SETTINGS)
NOW = datetime.now(UTC)
SESSION = Session(uuid7(), uuid7(), 0, NOW, NOW + timedelta(days=1), NOW + timedelta(days=2))
HEADER = {"alg": "ES256", "typ": "at+jwt", "kid": "one"}


def claims(**changes: Any) -> dict[str, Any]:
    good = {
        "iss": SETTINGS.issuer,
        "aud": SETTINGS.audience,
        "sub": str(SESSION.actor_id),
        "sid": str(SESSION.id),
        "jti": "1",
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 3600,
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def forged(header: dict[str, Any] | None = None, key: Any = KEY, **changes: Any) -> str:
    return jwt.encode(header or HEADER, claims(**changes), key, algorithms=["ES256", "HS256"])


async def test_a_token_says_who_and_under_which_session() -> None:
    issued = await TOKENS.issue(SESSION, NOW)
    found = await TOKENS.claims(issued.access_token)
    assert (found.actor_id, found.session_id) == (SESSION.actor_id, SESSION.id)
    assert issued.access_token_expires_at == NOW + timedelta(seconds=SETTINGS.access_token_ttl)
    assert await TOKENS.claims(forged()) == found


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "sid", "jti", "exp"])
async def test_a_token_without_one_of_its_claims_is_refused(name: str) -> None:
    with pytest.raises(InvalidToken):
        await TOKENS.claims(forged(**{name: None}))


@pytest.mark.parametrize(
    "change", [{"iss": "http://evil"}, {"aud": "other"}, {"sub": "me"}, {"sid": 7}, {"exp": "never"}]
)
async def test_a_token_with_a_wrong_claim_is_refused(change: dict[str, Any]) -> None:
    for allow_expired in (False, True):
        with pytest.raises(InvalidToken):
            await TOKENS.claims(forged(**change), allow_expired=allow_expired)


async def test_an_expired_token_is_refused_except_to_end_its_session() -> None:
    expired = forged(exp=int(NOW.timestamp()) - 1)
    with pytest.raises(TokenExpired):
        await TOKENS.claims(expired)
    assert (await TOKENS.claims(expired, allow_expired=True)).session_id == SESSION.id


@pytest.mark.parametrize("header", [{**HEADER, "typ": "JWT"}, {"alg": "ES256", "kid": "one"}, {**HEADER, "kid": "two"}])
async def test_a_token_of_another_kind_or_key_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken):
        await TOKENS.claims(forged(header))


async def test_a_token_signed_by_somebody_else_is_refused() -> None:
    other = ECKey.generate_key("P-256", {"kid": "one"}, private=True)
    with pytest.raises(InvalidToken):
        await TOKENS.claims(forged(key=other))


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def part(value: object) -> str:
    return encoded(json.dumps(value).encode())


def signed(header: dict[str, Any], key: ECKey = KEY) -> str:
    """Return a token signed with the key whatever its header says, for what joserfc would not make."""
    content = f"{part(header)}.{part(claims())}"
    private: Any = key.private_key
    r, s = decode_dss_signature(private.sign(content.encode(), ECDSA(SHA256())))
    return f"{content}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


@pytest.mark.parametrize(
    "secret",
    [
        KEY.as_pem(private=False),
        KEY.as_der(private=False),
        json.dumps(KEY.as_dict(private=False)).encode(),
        b"",
    ],
    ids=["pem", "der", "jwk", "empty"],
)
async def test_the_public_key_is_no_secret_to_sign_with(secret: bytes) -> None:
    content = f"{part({**HEADER, 'alg': 'HS256'})}.{part(claims())}"
    with pytest.raises(InvalidToken):
        await TOKENS.claims(f"{content}.{encoded(hmac.digest(secret, content.encode(), 'sha256'))}")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None])
async def test_a_token_without_a_signature_is_refused(algorithm: str | None) -> None:
    content = f"{part({**HEADER, 'alg': algorithm})}.{part(claims())}"
    for signature in ("", ".", "." + forged().rpartition(".")[2]):
        with pytest.raises(InvalidToken):
            await TOKENS.claims(content + signature)


@pytest.mark.parametrize("algorithm", ["ES384", "ES512", "ES256K", "EdDSA", "RS256", "PS256"])
async def test_a_token_that_names_another_algorithm_is_refused(algorithm: str) -> None:
    with pytest.raises(InvalidToken):
        await TOKENS.claims(signed({**HEADER, "alg": algorithm}))


OTHER = ECKey.generate_key("P-256", {"kid": "one"}, private=True)
ELSEWHERE = [
    {"jku": "https://evil.example/jwks.json"},
    {"x5u": "https://evil.example/cert.pem"},
    {"jwk": OTHER.as_dict(private=False)},
    {"x5c": ["AAAA"]},
    {"jku": SETTINGS.issuer + "/.well-known/jwks.json"},
]


@pytest.mark.parametrize("more", ELSEWHERE, ids=lambda more: next(iter(more)))
async def test_a_token_that_says_where_its_key_is_is_refused(more: dict[str, Any]) -> None:
    for key in (OTHER, KEY):  # also when the signature is ours
        with pytest.raises(InvalidToken):
            await TOKENS.claims(signed({**HEADER, **more}, key))


@pytest.mark.parametrize("kid", [None, 1, ["one"], "", "../one", "one "])
async def test_a_token_whose_key_id_is_not_ours_is_refused(kid: object) -> None:
    with pytest.raises(InvalidToken):
        await TOKENS.claims(signed({**HEADER, "kid": kid}))


async def test_a_token_that_demands_something_unknown_is_refused() -> None:
    with pytest.raises(InvalidToken):
        await TOKENS.claims(signed({**HEADER, "crit": ["x"], "x": 1}))
    assert await TOKENS.claims(signed(HEADER))


async def test_a_token_that_is_not_valid_yet_is_refused() -> None:
    with pytest.raises(InvalidToken):
        await TOKENS.claims(forged(nbf=int(NOW.timestamp()) + 3000))
    assert await TOKENS.claims(forged(nbf=int(NOW.timestamp()) - 60))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b.c",
        "ü.ü.ü",
        f"{part({'alg': 'none', 'typ': 'at+jwt'})}.{part(claims())}.",
        forged()[:-4] + "AAAA",
        "x" * 5000,
        f"{part([])}.{part([])}.x",
        f"{part(HEADER)}.{part('text')}.x",
    ],
)
async def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidToken):
        await TOKENS.claims(token)


@pytest.mark.parametrize("name", ["iat", "nbf"])
@pytest.mark.parametrize("ahead_s", [-3600, 0, 2, 29, 31, 9**9])
async def test_clocks_may_differ_by_half_a_minute_when_a_token_is_issued(name: str, ahead_s: int) -> None:
    token = forged(**{name: int(OneKey.at) + ahead_s, "exp": 9**12})
    if ahead_s < 30:
        assert (await TOKENS.claims(token)).actor_id == SESSION.actor_id
    else:
        with pytest.raises(InvalidToken):
            await TOKENS.claims(token)


@pytest.mark.parametrize("behind_s", [0, 1, 30, 9**9])
async def test_a_token_has_expired_the_moment_it_says(behind_s: int) -> None:
    with pytest.raises(TokenExpired):
        await TOKENS.claims(forged(exp=int(OneKey.at) - behind_s, iat=0))
    assert await TOKENS.claims(forged(exp=int(OneKey.at) + 1, iat=0))


async def test_a_remembered_token_still_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    issued = (await TOKENS.issue(SESSION, NOW)).access_token
    await TOKENS.claims(issued)
    later = NOW.timestamp() + SETTINGS.access_token_ttl + 1
    monkeypatch.setattr(OneKey, "at", later)
    with pytest.raises(TokenExpired):
        await TOKENS.claims(issued)
    assert (await TOKENS.claims(issued, allow_expired=True)).session_id == SESSION.id


async def test_a_remembered_token_dies_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    issued = (await TOKENS.issue(SESSION, NOW)).access_token
    await TOKENS.claims(issued)

    async def forgotten(self: OneKey, kid: str) -> None:
        return None

    monkeypatch.setattr(OneKey, "find", forgotten)
    with pytest.raises(InvalidToken):
        await TOKENS.claims(issued)


async def test_refresh_tokens_say_session_and_counter_and_differ() -> None:
    sessions = [SESSION, replace(SESSION, refresh_counter=1), replace(SESSION, id=uuid7())]
    issued = [await TOKENS.issue(session, NOW) for session in sessions]
    assert len({tokens.refresh_token for tokens in issued}) == 3
    for session, tokens in zip(sessions, issued, strict=True):
        assert TOKENS.refresh_claims(tokens.refresh_token) == (session.id, session.refresh_counter)
        assert tokens.refresh_token not in repr(tokens)


@pytest.mark.parametrize(
    "change", [lambda t: t[:-2], lambda t: "rt_" + "A" * 75, lambda t: t[::-1], lambda t: "", lambda t: "ü"]
)
async def test_a_refresh_token_that_was_not_issued_is_refused(change: Callable[[str], str]) -> None:
    issued = (await TOKENS.issue(SESSION, NOW)).refresh_token
    with pytest.raises(InvalidRefreshToken):
        TOKENS.refresh_claims(change(issued))
