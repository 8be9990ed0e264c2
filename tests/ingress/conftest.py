"""Certificates for doors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme


@dataclass(frozen=True)
class Certificates:
    """PEM files: a server's, a client's of the same authority, and a stranger's of another."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path
    stranger_ca: Path
    stranger_cert: Path
    stranger_key: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Real ones, for 127.0.0.1 and localhost."""
    folder = tmp_path_factory.mktemp("certificates")
    ours, other = trustme.CA(), trustme.CA()
    for name, authority in (("ca", ours), ("stranger_ca", other)):
        authority.cert_pem.write_to_path(folder / f"{name}.pem")
    for name, leaf in (
        ("", ours.issue_cert("127.0.0.1", "localhost")),
        ("client_", ours.issue_cert("client.example")),
        ("stranger_", other.issue_cert("stranger.example")),
    ):
        leaf.private_key_pem.write_to_path(folder / f"{name}key.pem")
        for pem in leaf.cert_chain_pems:
            pem.write_to_path(folder / f"{name}cert.pem", append=True)
    return Certificates(
        **{name: folder / f"{name}.pem" for name in Certificates.__dataclass_fields__}
    )
