"""How long certificates are valid."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509

_SOON = timedelta(days=14)


def not_after(certificates: "Sequence[x509.Certificate]") -> datetime:
    """Return the end of validity: that of the certificate that ends first."""
    return min(certificate.not_valid_after_utc for certificate in certificates)


def ends_soon(until: datetime) -> bool:
    """Whether less than 14 days are left, or none."""
    return until - datetime.now(UTC) < _SOON
