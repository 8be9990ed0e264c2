"""The way to a service: TLS under a private authority, and through a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificates
from forward_proxy import ForwardProxy
from local_backend import BASE, make_backend
from tinker_upstream import KEYS, StartUpstream, fingerprint, make, steps

from tinkergate.backends.tinker.backend import TinkerBackend
from tinkergate.backends.tinker.settings import TinkerSettings
from tinkergate.core.gateway import Gateway
from tinkergate.errors import GatewayError, Kind
from tinkergate.ingress.http.door import HttpDoor
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.ingress.tls import TlsFiles
from tinkergate.store import Store


@pytest.fixture
async def tls_port(
    micro_model_dir: Path, tmp_path: Path, certificates: Certificates
) -> AsyncIterator[int]:
    """Where a service listens behind TLS, with a certificate of an authority of its own."""
    backend = make_backend(micro_model_dir, tmp_path / "tls")
    gateway = Gateway([backend], Store(f"sqlite:///{tmp_path}/tls.db"))
    await gateway.start()
    door = HttpDoor(
        HttpSettings(listen="127.0.0.1:0"),
        data_dir=tmp_path / "tls",
        api_keys=[KEYS["tinker"]],
        tls=TlsFiles(cert=certificates.cert, key=certificates.key),
    )
    try:
        yield (await door.start(gateway)).port
    finally:
        await door.stop(1)
        await gateway.close(1)


def backend_at(url: str, **settings: Any) -> TinkerBackend:
    given = {"api_key": KEYS["tinker"], "retry_time": 1.0, **settings}
    return TinkerBackend(TinkerSettings("far", base_url=url, **given))


async def train(backend: TinkerBackend) -> None:
    """Start a backend, which must be able to train then."""
    try:
        await backend.start()
        assert BASE in [model.name for model in await backend.models()]
        await make(backend)
        before = await fingerprint(backend)
        await steps(backend, range(1))
        assert (await fingerprint(backend) != before).any()
    finally:
        await backend.close()


async def test_a_service_under_a_private_authority(
    tls_port: int, certificates: Certificates
) -> None:
    for host in ("127.0.0.1", "localhost"):
        await train(backend_at(f"https://{host}:{tls_port}", ca_file=certificates.ca))


@pytest.mark.parametrize("trusted", ["", "stranger_ca"])
async def test_a_service_that_no_trusted_authority_knows_is_told_nothing(
    trusted: str, tls_port: int, certificates: Certificates
) -> None:
    ca_file = getattr(certificates, trusted) if trusted else None
    backend = backend_at(f"https://127.0.0.1:{tls_port}", ca_file=ca_file)
    with pytest.raises(GatewayError, match="certificate") as raised:
        await backend.start()
    assert raised.value.kind is Kind.UNAVAILABLE
    await backend.close()


async def test_a_certificate_for_another_name_is_refused(
    tls_port: int, certificates: Certificates
) -> None:
    places = {f"elsewhere.test:{tls_port}": f"127.0.0.1:{tls_port}"}
    async with ForwardProxy(places) as proxy:
        url = f"https://elsewhere.test:{tls_port}"
        backend = backend_at(url, ca_file=certificates.ca, proxy=proxy.url)
        with pytest.raises(GatewayError, match="certificate"):
            await backend.start()
        await backend.close()


async def test_a_proxy_tunnels_what_is_encrypted(tls_port: int, certificates: Certificates) -> None:
    # The port is one that only the proxy knows a way from.
    async with ForwardProxy({"localhost:1": f"127.0.0.1:{tls_port}"}) as proxy:
        await train(backend_at("https://localhost:1", ca_file=certificates.ca, proxy=proxy.url))
        assert set(proxy.tunnels) == {"localhost:1"}
        assert proxy.forwarded == []


async def test_a_proxy_is_asked_by_absolute_url_for_what_is_not(
    start_upstream: StartUpstream,
) -> None:
    upstream = await start_upstream("tinker")
    async with ForwardProxy({"service.test:80": upstream.proxy.address}) as proxy:
        await train(backend_at("http://service.test", proxy=proxy.url))
        assert "http://service.test/api/v1/forward_backward" in proxy.forwarded
        assert len(proxy.forwarded) == len(upstream.proxy.seen)
        assert proxy.tunnels == []


async def test_a_proxy_of_the_environment_is_used_and_given_way_to(
    start_upstream: StartUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = await start_upstream("tinker")
    places = {"service.test:80": upstream.proxy.address}
    async with ForwardProxy(places) as usual, ForwardProxy(places) as named:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, usual.url)
        await train(backend_at("http://service.test"))
        assert usual.forwarded
        usual.forwarded.clear()
        await train(backend_at("http://service.test", proxy=named.url))
        assert named.forwarded
        assert not usual.forwarded


async def test_a_proxy_that_is_not_there_is_an_error_of_the_way() -> None:
    backend = backend_at("http://service.test", proxy="http://127.0.0.1:1")
    with pytest.raises(GatewayError, match="backend 'far'") as raised:
        await backend.start()
    assert raised.value.kind is Kind.UNAVAILABLE
    await backend.close()
