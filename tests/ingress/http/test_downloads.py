"""Which links the HTTP door gives to the callers of other doors."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from certificates import Certificates

from tinkergate.core.checkpoint_contents import CheckpointLinks
from tinkergate.core.gateway import Gateway
from tinkergate.ingress.http.door import HttpDoor
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.ingress.tls import TlsFiles
from tinkergate.store import Store
from tinkergate.v1 import Checkpoint

SAVED = Checkpoint(
    path="tinker://s:train:0/weights/a", model_id="s:train:0", checkpoint_id="weights/a"
)


async def links(
    folder: Path, listen: str, tls: TlsFiles | None = None, public_url: str = ""
) -> tuple[CheckpointLinks | None, int]:
    """What a door that was opened so gives, and its port."""
    settings = HttpSettings(listen=listen, public_url=public_url, allow_insecure_bind=True)
    door = HttpDoor(settings, data_dir=folder, tls=tls)
    gateway = Gateway([], Store(f"sqlite:///{folder / 'gateway.db'}"))
    await gateway.start()
    try:
        address = await door.start(gateway)
        return gateway.checkpoint_files.links, address.port
    finally:
        await door.stop(0)
        await gateway.close(0)


async def test_without_a_public_url_they_begin_with_the_address(tmp_path: Path) -> None:
    made, port = await links(tmp_path, "127.0.0.1:0")
    assert made is not None
    for link, end in (
        (made.archive(SAVED), "weights/a/archive"),
        (made.file(SAVED, "in/b"), "weights/a/files/in/b"),
    ):
        parts = urlsplit(link.url)
        assert (parts.scheme, parts.netloc) == ("http", f"127.0.0.1:{port}")
        assert parts.path == f"/api/v1/signed/checkpoints/s:train:0/{end}"
        assert {text.partition("=")[0] for text in parts.query.split("&")} == {
            "expires",
            "signature",
        }


async def test_a_name_and_tls_are_told_too(tmp_path: Path, certificates: Certificates) -> None:
    files = TlsFiles(cert=certificates.cert, key=certificates.key)
    made, port = await links(tmp_path, "localhost:0", files)
    assert made is not None
    assert made.archive(SAVED).url.startswith(f"https://localhost:{port}/api/")


async def test_a_public_url_goes_before_everything(tmp_path: Path) -> None:
    made, _ = await links(tmp_path, "0.0.0.0:0", public_url="https://gate.example/tinker/")
    assert made is not None
    assert made.archive(SAVED).url.startswith("https://gate.example/tinker/api/v1/signed/")


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
async def test_an_address_that_stands_for_all_gives_none(tmp_path: Path, listen: str) -> None:
    made, _ = await links(tmp_path, listen)
    assert made is None
