"""One-time passwords of authenticator apps, and recovery codes."""

import base64
import hashlib
import hmac
import os
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

from pyotp.totp import TOTP

from app.kernel.errors import Conflict, Unauthenticated

STEP_S = 30
RECOVERY_CODES = 10
_SKEW = 1  # tolerated clock skew in steps


class OtpRequired(Unauthenticated):
    code = "OTP_REQUIRED"
    title = "A one-time password is needed"


class InvalidOtp(Unauthenticated):
    code = "INVALID_CREDENTIALS"
    title = "The one-time password is wrong or was used before"


class SecondFactorExists(Conflict):
    code = "SECOND_FACTOR_EXISTS"
    title = "There is a second factor already; remove it first"


class NoSecondFactor(Conflict):
    code = "NO_SECOND_FACTOR"
    title = "There is no second factor to confirm or remove"


@dataclass(frozen=True, slots=True)
class Totp:
    """An authenticator: its secret, its last used step, which prevents reuse, and the current time."""

    secret: bytes
    is_confirmed: bool
    last_step: int
    now: datetime


def totp(secret: bytes, step: int) -> str:
    """Return the one-time password of a time step (RFC 6238, with RFC 4226's truncation of HMAC-SHA-1)."""
    return TOTP(base32(secret)).generate_otp(step)


def as_meant(code: str) -> str:
    """Normalise a code (NFKC, without white space and invisible characters)."""
    return "".join(
        c for c in unicodedata.normalize("NFKC", code) if not c.isspace() and unicodedata.category(c) != "Cf"
    )


def matching_step(found: Totp, otp: str) -> int | None:
    """Return the time step of a one-time password; None if it is wrong, outdated or used."""
    given = as_meant(otp).encode(errors="replace")
    present = int(found.now.timestamp()) // STEP_S
    for step in range(present - _SKEW, present + _SKEW + 1):
        if hmac.compare_digest(totp(found.secret, step).encode(), given):
            return step if step > found.last_step else None
    return None


def new_secret() -> bytes:
    """Return a secret of 160 bits (RFC 4226, section 4)."""
    return os.urandom(20)


def base32(secret: bytes) -> str:
    """Return the secret in base32, the format of authenticator apps."""
    return base64.b32encode(secret).decode()


def otpauth_uri(secret: bytes, username: str, issuer: str) -> str:
    """Return the URI for a QR code."""
    return f"{TOTP(base32(secret)).provisioning_uri(name=f'{issuer}:{username}')}&issuer={quote(issuer, safe='')}"


def new_recovery_code() -> str:
    """Return 120 random bits in groups of four letters and digits."""
    text = base64.b32encode(os.urandom(15)).decode().lower()
    return "-".join(text[i : i + 4] for i in range(0, 24, 4))


def recovery_hash(code: str) -> bytes:
    """Return the stored hash of a recovery code. Its 120 random bits need no slow hash."""
    return hashlib.sha256(as_meant(code).lower().replace("-", "").encode(errors="replace")).digest()
