"""TLS files of the doors: read and tried before anything listens.

gRPC takes any bytes for a certificate and fails at the first handshake, so Python is asked
first: it tells at once that a file is missing, is no PEM, or that key and certificate do not match.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tinkergate.ingress.address import ListenError


@dataclass(frozen=True)
class TlsFiles:
    """The PEM files of a door. Without any, it speaks plain text."""

    cert: Path | None = None
    """The gateway's certificate, with those of the authorities between it and the root."""
    key: Path | None = None
    """The certificate's private key, without a passphrase."""
    client_ca: Path | None = None
    """The authorities whose clients are let in; with it, clients without a certificate are not."""


class TlsBytes(NamedTuple):
    """What the files of a door hold, in PEM."""

    cert: bytes
    key: bytes
    client_ca: bytes | None


def read_tls(files: TlsFiles) -> TlsBytes | None:
    """The files, which go together and work; None for plain text. Raises ListenError."""
    if files.cert is None and files.key is None:
        if files.client_ca is not None:
            raise ListenError("--tls-client-ca needs --tls-cert and --tls-key")
        return None
    if files.cert is None or files.key is None:
        raise ListenError("--tls-cert and --tls-key go together")
    certificate = _read(files.cert, "--tls-cert")
    key = _read(files.key, "--tls-key")
    _try_pair(files.cert, files.key)
    client_ca = None
    if files.client_ca is not None:
        client_ca = _read(files.client_ca, "--tls-client-ca")
        _try_authorities(files.client_ca)
    return TlsBytes(certificate, key, client_ca)


def server_context(files: TlsFiles) -> ssl.SSLContext | None:
    """What Python needs to serve TLS, and mTLS where there is a client CA; None for plain text.
    Raises ListenError."""
    if read_tls(files) is None:
        return None
    assert files.cert is not None
    assert files.key is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(files.cert, files.key)
    if files.client_ca is not None:
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ListenError(f"{flag} {path}: {error.strerror}") from None


def _try_pair(cert: Path, key: Path) -> None:
    def no_passphrase() -> str:
        raise ListenError(f"--tls-key {key}: keys with a passphrase are not supported")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = "the key is not that of the certificate"
        else:
            problem = f"no PEM certificate and private key ({error.reason or error})"
        raise ListenError(f"--tls-cert {cert}, --tls-key {key}: {problem}") from None


def _try_authorities(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except ssl.SSLError as error:
        raise ListenError(
            f"--tls-client-ca {path}: no PEM certificates ({error.reason or error})"
        ) from None
