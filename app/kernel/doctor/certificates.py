"""When certificates end."""

from datetime import UTC, datetime

from cryptography import x509

from app.kernel.doctor import Finding, fail, warn

_EXPIRES_SOON_DAYS = 14


def expiry(what: str, content: bytes, fix: str) -> list[Finding]:
    """Return findings about the end of certificates, PEM or DER."""
    try:
        found = (
            x509.load_pem_x509_certificates(content)
            if b"-----" in content
            else [x509.load_der_x509_certificate(content)]
        )
    except ValueError:
        return [fail(f"{what} is not a certificate", fix)]
    findings: list[Finding] = []
    for certificate in found:
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        if left.days < _EXPIRES_SOON_DAYS:
            expired = left.total_seconds() < 0
            when = f"{'expired' if expired else 'expires'} at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M}Z"
            findings.append((fail if expired else warn)(f"{what} {when}", f"{fix}  # then renew it"))
    return findings
