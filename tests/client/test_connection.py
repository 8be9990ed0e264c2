from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme

from tinkergate_client import AccessDenied, GatewayUnreachable, Tls, connect


def test_a_gateway_tells_what_it_can_do(client: Any, micro_model_dir: Path) -> None:
    capabilities = client.capabilities()
    assert capabilities.default_model
    assert capabilities.limits.max_message_bytes == 64 * 1024 * 1024


def test_address_and_key_may_come_from_the_environment(
    start_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start_gateway(environment={"TINKERGATE_API_KEY": "secret"})
    monkeypatch.setenv("TINKERGATE_ADDRESS", gateway.address)
    with pytest.raises(AccessDenied, match="no API key was sent"):
        connect()
    with pytest.raises(AccessDenied):
        connect(api_key="wrong")
    monkeypatch.setenv("TINKERGATE_API_KEY", "secret")
    with connect() as client:
        assert client.target == gateway.address
        with client.create_session() as session:
            assert session.session_id


def test_tls_with_a_certificate_of_our_own(start_gateway: Any, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    mine = authority.issue_cert("me@example.org")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key", "my", "my_key")}
    authority.cert_pem.write_to_path(files["ca"])
    issued.cert_chain_pems[0].write_to_path(files["cert"])
    issued.private_key_pem.write_to_path(files["key"])
    mine.cert_chain_pems[0].write_to_path(files["my"])
    mine.private_key_pem.write_to_path(files["my_key"])
    gateway = start_gateway(
        *("--tls-cert", str(files["cert"]), "--tls-key", str(files["key"])),
        *("--tls-client-ca", str(files["ca"])),
    )
    with connect(gateway.address, tls=Tls(files["ca"], files["my"], files["my_key"])) as client:
        assert client.capabilities().gateway_version
    for tls in (False, True, Tls(ca=files["ca"])):
        with pytest.raises(GatewayUnreachable):
            connect(gateway.address, tls=tls, timeout=0.5)


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ValueError, match="certificate and key must be given together"):
        connect("127.0.0.1:1", tls=Tls(certificate="some.pem"))


def test_a_closed_client_says_so(gateway_process: Any) -> None:
    client = connect(gateway_process.address)
    client.close()
    with pytest.raises(GatewayUnreachable, match="this client is closed"):
        client.capabilities()


def test_closing_ends_the_calls_that_wait(gateway_process: Any) -> None:
    client = connect(gateway_process.address)
    with client.create_session() as session:
        model = session.create_model(rank=1)
        hole = model._submitter._take_id()  # nothing will ever have this place
        waiting = model.optim_step()
        assert waiting.accepted()[0].seq_id == hole + 1
        assert not waiting.done()
        session._ended.set()
        client.close()
        with pytest.raises(GatewayUnreachable, match="this client is closed"):
            waiting.result(30)
