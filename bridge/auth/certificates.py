"""A CA of one's own, and the certificates that it signs: for the embedded server, and for a plain one.

All of them are ECDSA on P-256, which every TLS stack has. They stand in one private folder of the home, beside the
credentials: `ca.pem`, `ca.key`, and a `.pem` and `.key` for each name.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from squadron.bridge.daemons import locked, private_dir, write_private
from squadron.bridge.jetstream.link.at_home import embedded_tls, tls_folder
from squadron.runtime.errors import ConfigError

#: How long a CA is good, in days: whoever believes it has a copy, which is dear to change.
CA_DAYS = 3650
#: How long a certificate is good, in days: what browsers take at most, a year and a month.
DAYS = 397
#: The embedded server's is made anew when it is good for less than this, in days.
RENEWED_BEFORE_DAYS = 30
#: Clocks of hosts differ.
_SINCE = timedelta(minutes=5)
#: Whose certificate a plain server's is.
SERVER = "server"
#: What the embedded server is called.
_LOCAL = ("localhost", "127.0.0.1", "::1")
_EMBEDDED, _EMBEDDED_USER = "embedded", "embedded-user"
_LOCK_WITHIN_S = 10.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?({_LABEL}\.)*{_LABEL}")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, in files of PEM; `ends_at` is in seconds since the epoch."""

    name: str
    cert: Path
    key: Path
    ends_at: float


class CertificateAuthority:
    """The CA of one home. `open` it: it is made when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "ca.pem"
        if not self.path.is_file():
            self._create()
        try:
            self._cert = x509.load_pem_x509_certificate(self.path.read_bytes())
            key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"the CA in {folder} can't be read: {type(error).__name__}",
                hint="take ca.pem and ca.key from a backup; or remove both, and give all its new certificates",
            ) from None
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    @classmethod
    @contextlib.contextmanager
    def open(cls, home: Path) -> Iterator[CertificateAuthority]:
        """The CA of a home, for one process at a time.

        Raises:
            ConfigError: it can't be read, or the home can't be written.
        """
        folder = private_dir(tls_folder(home))
        with locked(folder / "lock", within_s=_LOCK_WITHIN_S):
            yield cls(folder)

    def for_server(self, hosts: Sequence[str], *, days: int = DAYS, name: str = SERVER) -> Certificate:
        """A certificate for a server that is reached by these names and addresses, of IPv4 or IPv6.

        Raises:
            ConfigError: one of them is none, or the certificate would be good for too long, or no day.
        """
        return self._issue(name, [_host(each) for each in hosts], ExtendedKeyUsageOID.SERVER_AUTH, days)

    def for_client(self, name: str, *, days: int = DAYS) -> Certificate:
        """A certificate for who connects to a server that looks for one (mutual TLS).

        Raises:
            ConfigError: `name` can't be used, or the certificate would be good for too long, or no day.
        """
        if not _NAME.fullmatch(name) or name in ("ca", SERVER, _EMBEDDED):
            fix = f"1 to 63 letters, digits, '_' or '-', not {SERVER}, {_EMBEDDED} or ca"
            raise ConfigError(f"{name!r} can't be used as a name", hint=fix)
        # Servers that map certificates to users look for a name of DNS (`verify_and_map`).
        return self._issue(name, [x509.DNSName(name)], ExtendedKeyUsageOID.CLIENT_AUTH, days)

    def _issue(
        self, name: str, names: list[x509.GeneralName], purpose: x509.ObjectIdentifier, days: int
    ) -> Certificate:
        if not 1 <= days <= CA_DAYS:
            raise ConfigError(f"--days: {days} can't be used", hint=f"a number from 1 to {CA_DAYS}")
        key, signer = ec.generate_private_key(ec.SECP256R1()), self._key.public_key()
        # None is good for longer than what signs it.
        until = min(_now() + timedelta(days=days), self._cert.not_valid_after_utc)
        made = (
            _builder(name, self._cert.subject, key.public_key(), until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        cert = self._folder / f"{name}.pem"
        _write(cert, made, key)
        return Certificate(name, cert, cert.with_suffix(".key"), until.timestamp())

    def _create(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        # A name of its own, so that who has two of them in a file of CAs tells them apart.
        serial = x509.random_serial_number()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"squadron {serial:x}"[:40])])
        made = (
            _builder(name, name, key.public_key(), _now() + timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write(self.path, made, key)


def secure_embedded(home: Path, *, mutual: bool) -> None:
    """Have TLS for the embedded server of a home from its next start; with `mutual` it wants certificates, too."""
    with CertificateAuthority.open(home) as authority:
        if mutual:
            authority.for_client(_EMBEDDED_USER)
        # Last: with it there is TLS.
        authority.for_server(_LOCAL, name=_EMBEDDED)


def unsecure_embedded(home: Path) -> None:
    """Have the embedded server of a home without TLS from its next start. Its CA stays."""
    for name in (_EMBEDDED, _EMBEDDED_USER):
        for suffix in (".pem", ".key"):
            (tls_folder(home) / f"{name}{suffix}").unlink(missing_ok=True)


def renew_embedded(home: Path) -> bool:
    """Make the certificates of the embedded server anew, if they end soon; whether that was so."""
    server, users = embedded_tls(home)
    if server.cert is None:
        return False
    soon = _now() + timedelta(days=RENEWED_BEFORE_DAYS)
    if all(ends_at(path) > soon.timestamp() for path in (server.cert, users.cert) if path is not None):
        return False
    secure_embedded(home, mutual=users.cert is not None)
    return True


def ends_at(path: Path) -> float:
    """Until when a certificate is good, in seconds since the epoch; 0 if it can't be read."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return 0.0


def _builder(
    name: str | x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) if isinstance(name, str) else name
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _SINCE)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def _host(text: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(text.strip("[]")))
    if not _HOST.fullmatch(text) or len(text) > 253:
        raise ConfigError(f"{text!r} is no name of a host", hint="like nats.example.com, 10.0.0.7 or ::1, no port")
    return x509.DNSName(text)


def _write(cert: Path, made: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    # The key first: a certificate says that both are there.
    write_private(cert.with_suffix(".key"), secret)
    write_private(cert, made.public_bytes(Encoding.PEM).decode())


def _now() -> datetime:
    return datetime.now(UTC)
