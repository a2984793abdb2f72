"""A certificate of the run: who holds its files may talk to the run's scheduler and workers, nobody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from unetcli.core.errors import UnetcliError
from unetcli.core.files import remove_aside

if TYPE_CHECKING:
    from distributed.security import Security

CERTIFICATE, KEY = "certificate.pem", "key.pem"
NAME = "unetcli run"
DAYS = 90
"""How long a certificate is good for: longer than any job may run."""


@contextmanager
def run_certificate(folder: Path) -> Iterator[Path]:
    """A folder with a fresh certificate, removed when the block ends; one of a killed run is replaced."""
    remove_aside(folder)
    write_certificate(folder)
    try:
        yield folder
    finally:
        remove_aside(folder)


def write_certificate(folder: Path) -> None:
    """Make the folder (mode 0700) with a new key and the certificate that it signed for itself (0600)."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(mode=0o700, parents=True)
    _write(folder / CERTIFICATE, _signed(key))
    _write(
        folder / KEY,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def security(folder: Path) -> Security:
    """What Dask's scheduler, workers and clients need to trust that certificate, and nothing else."""
    from distributed.security import Security

    certificate, key = (str(folder / name) for name in (CERTIFICATE, KEY))
    for path in (certificate, key):
        if not os.access(path, os.R_OK):
            raise UnetcliError(f"{path}: not readable; --tls names a folder with {CERTIFICATE} and {KEY}")
    pair = (("cert", certificate), ("key", key))
    roles = {f"tls_{role}_{what}": path for role in ("scheduler", "worker", "client") for what, path in pair}
    return Security(require_encryption=True, tls_ca_file=certificate, **roles)


def _signed(key: object) -> bytes:
    """A certificate of the key by itself, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks of nodes differ
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600, exist_ok=False)  # before there is anything to read in it
    path.write_bytes(content)
