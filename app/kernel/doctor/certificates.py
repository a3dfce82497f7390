"""When certificates end."""

from datetime import UTC, datetime

from app.kernel.certificates import ends_soon, not_after
from app.kernel.doctor import Finding, fail, warn


def expiry(what: str, content: bytes, fix: str) -> Finding | None:
    """Return a finding if certificates, PEM or DER, have expired or will soon."""
    from cryptography import x509  # a quarter of the time that it takes to load the checks

    is_pem = b"-----" in content
    try:
        found = x509.load_pem_x509_certificates(content) if is_pem else [x509.load_der_x509_certificate(content)]
    except ValueError:
        return fail(f"{what} is not a certificate", fix)
    until = not_after(found)
    if not ends_soon(until):
        return None
    has_expired = until < datetime.now(UTC)
    problem = f"{what} {'expired' if has_expired else 'expires'} at {until:%Y-%m-%d %H:%M}Z"
    return (fail if has_expired else warn)(problem, f"{fix}  # then renew it")
