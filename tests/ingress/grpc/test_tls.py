"""TLS files are tried before anything listens."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from tinkergate.ingress.address import ListenError
from tinkergate.ingress.grpc.tls import server_credentials
from tinkergate.ingress.tls import TlsFiles


@pytest.fixture
def files(certificates) -> TlsFiles:
    return TlsFiles(certificates.cert, certificates.key, certificates.ca)


def refusal(files: TlsFiles) -> str:
    with pytest.raises(ListenError) as caught:
        server_credentials(files)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_files_give_credentials(files):
    assert server_credentials(files) is not None
    assert server_credentials(TlsFiles(files.cert, files.key)) is not None


def test_no_files_mean_plain_text():
    assert server_credentials(TlsFiles()) is None


def test_half_of_the_files_are_refused(files):
    assert refusal(TlsFiles(cert=files.cert)) == "--tls-cert and --tls-key go together"
    assert refusal(TlsFiles(key=files.key)) == "--tls-cert and --tls-key go together"
    assert "needs --tls-cert" in refusal(TlsFiles(client_ca=files.client_ca))


@pytest.mark.parametrize("field", ["cert", "key", "client_ca"])
def test_a_missing_file_is_named(files, field):
    broken = TlsFiles(**{**vars(files), field: Path("/nowhere/x.pem")})
    flag = "--tls-" + field.replace("_", "-")
    assert refusal(broken) == f"{flag} /nowhere/x.pem: No such file or directory"


@pytest.mark.parametrize("field", ["cert", "key", "client_ca"])
def test_a_file_that_is_no_pem_is_named(files, field, tmp_path):
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not a certificate\n")
    assert str(wrong) in refusal(TlsFiles(**{**vars(files), field: wrong}))


def test_a_key_of_another_certificate_is_told(files, tmp_path):
    other = tmp_path / "other.pem"
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(other)
    assert refusal(TlsFiles(files.cert, other)).endswith("the key is not that of the certificate")


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(files, tmp_path):
    key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert "passphrase" in refusal(TlsFiles(files.cert, locked))
