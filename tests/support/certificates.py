"""Certificates of a test, signed by an authority of its own."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Signs certificates into a folder; `file` is what clients trust."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    name: x509.Name

    @classmethod
    def made_in(cls, folder: Path) -> "Authority":
        folder.mkdir(exist_ok=True)
        key, name = ec.generate_private_key(ec.SECP256R1()), named("test authority")
        made = cls(folder, key, name)
        basic = x509.BasicConstraints(ca=True, path_length=None)
        usage = x509.KeyUsage(*(item == "sign" for item in ("", "", "", "", "", "sign", "sign", "", "")))
        builder = made._builder(name, key, DAY).add_extension(basic, critical=True).add_extension(usage, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        made.file.write_bytes(pem(builder.sign(key, hashes.SHA256())))
        return made

    @property
    def file(self) -> Path:
        return self.folder / "authority.pem"

    def sign(self, name: str, *others: str, days: float = 30, begins: float = -1) -> tuple[Path, Path]:
        """Write `NAME.pem` and `NAME.key` for 127.0.0.1 and the names; return both."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(named(name), key, days * DAY, begins * DAY)
        names = [*map(x509.DNSName, (name, *others)), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        cert_file, key_file = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert_file.write_bytes(pem(builder.sign(self.key, hashes.SHA256())))
        key_file.touch(0o600)
        kind, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, plain))
        return cert_file, key_file

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        ends: timedelta,
        begins: timedelta = -DAY,
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now + min(begins, ends - DAY)).not_valid_after(now + ends)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
