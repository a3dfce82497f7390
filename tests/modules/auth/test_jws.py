"""Signed tokens, held against what two libraries say about them."""

import base64
import json
import time
from typing import Any, cast

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import assume, given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from joserfc.jwt import JWTClaimsRegistry

from app.modules.auth.domain.sessions import InvalidToken, TokenExpired
from app.modules.auth.jws import taken_apart
from tests.modules.auth.test_tokens import HEADER, KEY, SESSION, SETTINGS, TOKENS, claims

PRIVATE = cast("EllipticCurvePrivateKey", KEY.private_key)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
OTHER = ECKey.generate_key("P-256", {"kid": "one"}, private=True)
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
TOKEN = jwt.encode(HEADER, claims(), KEY, algorithms=["ES256"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def encoded(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def signed(header: bytes, payload: bytes, key: EllipticCurvePrivateKey = PRIVATE) -> str:
    """Return a token over any header and payload, sensible or not."""
    parts = encoded(header) + b"." + encoded(payload)
    r, s = decode_dss_signature(key.sign(parts, ECDSA(SHA256())))
    return (parts + b"." + encoded(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()


def verified(token: str) -> bytes:
    return taken_apart(token).verified(KEY.public_key)


def is_accepted(token: str) -> bool:
    try:
        verified(token)
    except ValueError:
        return False
    return True


def joserfc_accepts(token: str) -> bool:
    try:
        jwt.decode(token, KEY, algorithms=["ES256"])
    except (JoseError, ValueError):
        return False
    return True


def pyjwt_accepts(token: str) -> bool:
    options: Any = {"verify_exp": False, "verify_aud": False, "verify_iat": False, "verify_nbf": False}
    options |= {"verify_sub": False, "verify_jti": False}
    try:
        pyjwt.decode(token, KEY.public_key, algorithms=["ES256"], options=options)
    except pyjwt.InvalidTokenError:
        return False
    return True


@given(st.dictionaries(st.text(max_size=10), JSON, max_size=5), st.text(min_size=1, max_size=40))
def test_what_is_signed_in_our_form_is_accepted_by_all(payload: dict[str, Any], kid: str) -> None:
    by_joserfc = jwt.encode({**HEADER, "kid": kid}, payload, KEY, algorithms=["ES256"])
    by_pyjwt = pyjwt.encode(payload | {"iss": "x"}, PRIVATE, "ES256", {"typ": "at+jwt", "kid": kid})
    for token in (by_joserfc, by_pyjwt):
        assert joserfc_accepts(token)
        assert pyjwt_accepts(token)
        assert taken_apart(token).kid == kid
    assert json.loads(verified(by_joserfc)) == payload


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from(ALPHABET.decode() + ".+/= \n"))
def test_a_token_with_any_character_changed_is_refused(position: int, character: str) -> None:
    assume(TOKEN[position] != character)
    assert not is_accepted(TOKEN[:position] + character + TOKEN[position + 1 :])


@given(st.integers(0, len(TOKEN)), st.text(max_size=4), st.integers(0, 8))
def test_a_token_with_anything_inserted_or_cut_is_refused(position: int, text: str, cut: int) -> None:
    changed = TOKEN[:position] + text + TOKEN[position + cut :]
    assume(changed != TOKEN)
    assert not is_accepted(changed)


def test_no_other_character_at_the_end_means_the_same_signature() -> None:
    """Of the last character two bits count, and Python ignores the others."""
    same = [c for c in ALPHABET.decode() if base64.urlsafe_b64decode(TOKEN[-86:-1] + c + "==")[-1:] == _last_byte()]
    assert len(same) == 16
    assert [c for c in same if is_accepted(TOKEN[:-1] + c)] == [TOKEN[-1]]


def _last_byte() -> bytes:
    return base64.urlsafe_b64decode(TOKEN[-86:] + "==")[-1:]


@pytest.mark.parametrize(
    "changes",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "ES384"},
        {"alg": "es256"},
        {"alg": ["ES256"]},
        {"alg": None},
        {"typ": "JWT"},
        {"typ": "AT+JWT"},
        {"typ": "application/at+jwt"},
        {"typ": None},
        {"kid": 1},
        {"kid": None},
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False},
        {"jku": "https://evil.example/jwks.json"},
        {"x5u": "https://evil.example/cert"},
        {"x5c": []},
        {"jwk": OTHER.as_dict(private=False)},
        {"cty": "JWT"},
        {"zip": "DEF"},
        {"": ""},
    ],
)
def test_a_header_that_says_anything_else_is_refused(changes: dict[str, Any]) -> None:
    header = {name: value for name, value in {**HEADER, **changes}.items() if value is not None}
    assert not is_accepted(signed(json.dumps(header).encode(), json.dumps(claims()).encode()))


@given(JSON | st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "jku"]), JSON))
def test_no_other_json_is_a_header(header: Any) -> None:
    assert not is_accepted(signed(json.dumps(header).encode(), b"{}"))


@given(st.binary(max_size=60))
def test_no_bytes_are_a_header(header: bytes) -> None:
    assert not is_accepted(signed(header, b"{}"))


@given(st.binary(max_size=200))
def test_no_other_bytes_are_a_signature(signature: bytes) -> None:
    signed_part = TOKEN.rpartition(".")[0]
    assert not is_accepted(f"{signed_part}.{encoded(signature).decode()}")


@pytest.mark.parametrize(("r", "s"), [(0, 0), (0, 1), (1, 0), (ORDER, 1), (1, ORDER), (ORDER, ORDER), (2**256 - 1, 1)])
def test_numbers_that_no_signature_has_are_refused(r: int, s: int) -> None:
    signed_part = TOKEN.rpartition(".")[0]
    assert not is_accepted(f"{signed_part}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big')).decode()}")


def test_a_signature_in_der_is_refused() -> None:
    signed_part, _, signature = TOKEN.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    assert not is_accepted(f"{signed_part}.{encoded(der).decode()}")


def test_a_signature_of_another_key_is_refused() -> None:
    other = cast("EllipticCurvePrivateKey", OTHER.private_key)
    assert not is_accepted(signed(json.dumps(HEADER).encode(), b"{}", other))


NOW = int(time.time())
IDENTIFIER = st.sampled_from([str(SESSION.id), "", "me", 7, None, [str(SESSION.id)]])
MOMENT = st.sampled_from([NOW - 10, NOW + 3600, 0, -1, 2**70, "1", 1.5, True, None, [NOW]])
CLAIMS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "iss": st.sampled_from([SETTINGS.issuer, SETTINGS.issuer + "/", "", None, 1]),
        "aud": st.sampled_from([SETTINGS.audience, "", None, 1, ["other"]]),
        "sub": IDENTIFIER,
        "sid": IDENTIFIER,
        "jti": st.sampled_from(["1", "", None, 1]),
        "exp": MOMENT,
        "iat": MOMENT,
        "nbf": MOMENT,
        "permissions": st.just(["*"]),
    },
)


def joserfc_finds(token: str) -> dict[str, Any] | None:
    essential: Any = {name: {"essential": True} for name in ("sub", "sid", "jti", "exp")}
    expected: Any = {name: {"essential": True, "value": claims()[name]} for name in ("iss", "aud")}
    try:
        decoded = jwt.decode(token, KEY, algorithms=["ES256"])
        JWTClaimsRegistry(leeway=0, **essential, **expected).validate(decoded.claims)
    except (JoseError, ValueError):
        return None
    return decoded.claims


@given(CLAIMS)
async def test_no_claims_are_accepted_that_joserfc_refuses(changes: dict[str, Any]) -> None:
    token = jwt.encode(HEADER, {**claims(), **changes}, KEY, algorithms=["ES256"])
    try:
        found = await TOKENS.claims(token)
    except (InvalidToken, TokenExpired):
        return
    stated = joserfc_finds(token)
    assert stated is not None
    assert (str(found.actor_id), str(found.session_id)) == (stated["sub"], stated["sid"])


@given(st.uuids(), st.uuids(), st.text(min_size=1, max_size=50), st.integers(NOW + 3600, 2**53))
async def test_all_good_claims_are_accepted_as_joserfc_does(sub: Any, sid: Any, jti: str, exp: int) -> None:
    good = claims(sub=str(sub), sid=str(sid), jti=jti, exp=exp, more={"a": 1})
    token = jwt.encode(HEADER, good, KEY, algorithms=["ES256"])
    found = await TOKENS.claims(token)
    assert (found.actor_id, found.session_id) == (sub, sid)
    assert joserfc_finds(token) == good
