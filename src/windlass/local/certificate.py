"""The certificate of the local endpoint: made at its first start, for clients that speak only HTTPS."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

VALID_DAYS = 3650
NAMES = ("localhost", "*.localhost")
ADDRESSES = ("127.0.0.1", "::1")


def tls_context(folder: Path) -> ssl.SSLContext:
    """A server's context with the folder's certificate; a new one where there is none. Raises ValueError."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if not (certificate.exists() and key.exists()):
        _make(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        msg = f"{folder} holds no usable certificate: {error}. Delete certificate.pem and key.pem to get new ones."
        raise ValueError(msg) from None
    return context


def _make(certificate: Path, key: Path) -> None:
    # Imported here: most clients speak HTTP, and a quarter of a second is theirs.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "windlass local")])
    now = datetime.now(UTC)
    alternatives = [x509.DNSName(host) for host in NAMES] + [x509.IPAddress(ip_address(each)) for each in ADDRESSES]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.parent.mkdir(parents=True, exist_ok=True)
    key.touch(mode=0o600)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
