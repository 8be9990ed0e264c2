"""TLS as gRPC takes it."""

from __future__ import annotations

import grpc

from tinkergate.ingress.tls import TlsFiles, read_tls


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials | None:
    """What gRPC needs to serve TLS, and mTLS where there is a client CA; None for plain text.
    Raises ListenError."""
    read = read_tls(files)
    if read is None:
        return None
    return grpc.ssl_server_credentials(
        [(read.key, read.cert)],
        root_certificates=read.client_ca,
        require_client_auth=read.client_ca is not None,
    )
